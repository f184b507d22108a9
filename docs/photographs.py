"""README's picture of photographs: teacher, undistilled and distilled one-step samples from the same noise.

python docs/photographs.py FOLDER    # of a finished study of the profile photos; writes data/results/photos_one_step.png
"""

import sys
from pathlib import Path

from rddlib import open_study
from rddlib.methods import LABELS, WINNER
from rddlib.report.figures import image_rows, to_png
from rddlib.utils.checkpoint import write_atomically

TARGET = Path(__file__).resolve().parents[1] / "data/results/photos_one_step.png"


def main(folder: Path) -> None:
    study = open_study("photos", folder)
    noise, teacher = study.noise(12, seed=1), study.profile.progressive.teacher_steps
    rows = {f"teacher, {teacher} steps": study.images("pd", teacher, noise)}
    for method in ("ddim", "pd", "cfd", "rdd", WINNER):
        rows[f"{LABELS[method]}, 1 step"] = study.images(method, 1, noise)
    write_atomically(TARGET, to_png(image_rows(rows, "One noise a column, CIFAR-10 (JPEG copy) at 16x16", width=9.0)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
