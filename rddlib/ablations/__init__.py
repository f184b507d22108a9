"""The papers' ablations and ours, as sweeps that go on where they stopped.

`catalogue` says what varies, `sweep` makes keyed runs of it and tables of what they measured, `engines` perform them here or
on a cluster, `costs` says what they take, `conduct` does it all.
"""

from rddlib.ablations.catalogue import ABLATIONS, Ablation, Axis, Setting, custom, find_ablation
from rddlib.ablations.conduct import conduct, write_tables
from rddlib.ablations.sweep import COLUMNS, Run, Sweep, check_version

__all__ = [
    "ABLATIONS", "COLUMNS", "Ablation", "Axis", "Run", "Setting", "Sweep", "check_version", "conduct", "custom",
    "find_ablation", "write_tables",
]  # fmt: skip
