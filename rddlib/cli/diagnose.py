"""`rdd diagnose`: why a student is worse than it should be."""

from pathlib import Path
from typing import Annotated

import typer

from rddlib.utils.errors import UserError


def diagnose(
    folder: Annotated[Path | None, typer.Argument(help="A study's folder; default runs/digits.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the pictures go; default diagnosis/ in the folder.")] = None,
) -> None:
    """Why the newest student is blurry, or got worse.

    Looks at its log, its x beside the teacher's, and its checkpoints; draws both and says which known causes fit, each with
    a command to try. --set loss.watch=25 in rdd distill logs gradients on the way.

    \b
    Examples:
      rdd diagnose
      rdd diagnose runs/mine
    """
    from rddlib.report.diagnosis import causes, curves_figure, images_figure, look
    from rddlib.report.figures import to_png
    from rddlib.study.folder import STUDY_FILE, default_out, recorded_study
    from rddlib.utils.checkpoint import write_atomically

    folder = folder or default_out("digits")
    if not (folder / STUDY_FILE).exists():
        raise UserError(
            f"{folder} holds no study and so no metrics: name the folder that rdd distill or rdd study wrote"
        )
    study = recorded_study(folder)
    seen = look(study)
    for name, figure in (("curves", curves_figure(seen)), ("images", images_figure(seen))):
        write_atomically((out or folder / "diagnosis") / f"{name}.png", to_png(figure))
    student = f"--objective {seen.stage.kind} --to {seen.steps}" + " --guided" * seen.stage.name.startswith("guided-")
    print(f"{seen.stage.label}: {seen.stage.path.name}")
    for cause in (found := causes(seen)):
        print(f"\n{cause.name}: {cause.shown}.")
        print(f"  try: rdd distill --profile {study.profile.name} --out {folder} {student} {cause.remedy}")
    if not found:
        print(
            f"\nNo known cause fits: it has gone {seen.gone:.0%} of the way to its targets. Train for longer, or rdd ablate."
        )
    print(f"\n{out or folder / 'diagnosis'}: curves.png, images.png")
