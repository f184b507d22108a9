"""README's picture of photographs: teacher, undistilled and distilled one-step samples from the same noise.

python docs/photographs.py FOLDER    # of a finished study of the profile photos; writes data/results/photos_one_step.png
"""

import sys
from functools import partial
from pathlib import Path

from rddlib import open_study
from rddlib.methods import WINNER
from rddlib.report.figures import same_noise_figure, to_png
from rddlib.utils.checkpoint import write_atomically

TARGET = Path(__file__).resolve().parents[1] / "data/results/photos_one_step.png"


def main(folder: Path) -> None:
    study = open_study("photos", folder)
    draw = partial(study.images, noise=study.noise(12, seed=1))
    arms = [(method, 1) for method in ("ddim", "pd", "cfd", "rdd", WINNER)]
    title = "One noise a column, CIFAR-10 (JPEG copy) at 16x16"
    figure = same_noise_figure(draw, study.profile.progressive.teacher_steps, arms, title, width=9.0)
    write_atomically(TARGET, to_png(figure))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
