"""Guidance distilled (Meng et al. 2022): `study` has the teacher, stage one and stage two, `results` scores them against w,
`figures` draws what was found and `findings` says it."""

from rddlib.guidance.figures import GUIDED_NAMES, tradeoff_figure, weights_figure
from rddlib.guidance.findings import findings
from rddlib.guidance.results import GUIDED_FILE, guided_done, guided_results, published, scores_table
from rddlib.guidance.study import GUIDED_COLUMNS, GUIDED_METHODS, GuidedStudy, guided_study

__all__ = [
    "GUIDED_COLUMNS", "GUIDED_FILE", "GUIDED_METHODS", "GUIDED_NAMES", "GuidedStudy", "findings", "guided_done",
    "guided_results", "guided_study", "published", "scores_table", "tradeoff_figure", "weights_figure",
]  # fmt: skip
