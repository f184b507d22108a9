"""The papers' ablations and ours, as sweeps that go on where they stopped.

`catalogue` says what varies, `sweep` makes keyed runs of it and tables of what they measured, `engines` perform them here or
on a cluster, `costs` says what they take, `conduct` does it all; `results` finds what was measured, `figures` draws it and
`verdicts` holds it against what the papers claim.
"""

from rddlib.ablations.catalogue import ABLATIONS, Ablation, Axis, Setting, custom, find_ablation
from rddlib.ablations.conduct import conduct, write_results
from rddlib.ablations.figures import ablation_figure
from rddlib.ablations.results import Measured, measured
from rddlib.ablations.sweep import COLUMNS, Run, Sweep, check_version
from rddlib.ablations.verdicts import told, verdicts

__all__ = [
    "ABLATIONS", "COLUMNS", "Ablation", "Axis", "Measured", "Run", "Setting", "Sweep", "ablation_figure", "check_version",
    "conduct", "custom", "find_ablation", "measured", "told", "verdicts", "write_results",
]  # fmt: skip
