"""The numbers of the tiny study that tests share, and studies of the smoke profile with other numbers."""

from rddlib.study.profiles import load_profile
from rddlib.study.study import Study

TINY = {  # of the smoke profile: every training takes a second at most, the numbers mean nothing
    "base.train.iterations": "2",
    "progressive.train.iterations": "1",
    "extractor.train.iterations": "2",
    "distill.iterations": "[1, 1, 1]",
    "evaluation.samples": "80",
    "evaluation.batch_size": "80",
    "evaluation.baselines": "[pndm-10]",
    "guidance.base.iterations": "2",
    "guidance.train.iterations": "3",
    "guidance.stochastic": "3",
    "guidance.samples": "80",
    "methods": "[pd, rdd]",
    "jobs": "1",
}

SHORT = {  # besides: no halving before the students', and of these one
    "base.steps": "2",
    "progressive.teacher_steps": "2",
    "distill.iterations": "[1]",
    "distill.temperatures": "[1]",
}


def smoke(folder, **changes):
    """Of changed numbers: section__field=value, or **{"section.field": value}."""
    return Study(load_profile("smoke", {key.replace("__", "."): value for key, value in changes.items()}), folder)
