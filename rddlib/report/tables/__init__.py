"""Comparison tables: what the papers report, what peers report and what was measured here, three kinds of rows kept apart.

Two numbers stand in one table only if they were measured alike: same metric, protocol, network, reference and number of
samples, as their receipts say. Where that is overruled, footnotes say how each was measured.
"""

from rddlib.report.tables.build import CHOICES, COLUMNS, LABELS, Table, comparison, describe
from rddlib.report.tables.measurements import (
    SCORES,
    UNKNOWN,
    Measurement,
    count_results,
    measured_under,
    read_measurements,
)
from rddlib.report.tables.render import HEADINGS, as_frame, as_markdown, as_text, panels

__all__ = [
    "CHOICES",
    "COLUMNS",
    "HEADINGS",
    "LABELS",
    "SCORES",
    "UNKNOWN",
    "Measurement",
    "Table",
    "as_frame",
    "as_markdown",
    "as_text",
    "comparison",
    "count_results",
    "describe",
    "measured_under",
    "panels",
    "read_measurements",
]
