"""`rdd demo`: the first picture, from the models that come with the package."""

from pathlib import Path
from typing import Annotated

import typer

from rddlib.cli.options import ProfileOption


def demo(
    profile: ProfileOption = "photos",
    out: Annotated[Path | None, typer.Option(help="The picture's folder; default runs/demo.")] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the picture too.")] = False,
) -> None:
    """Draw with the models that come with rddlib.

    From one noise: the teacher in its steps, base model and students in one. Nothing is trained and no data set is needed;
    profiles with models are photos and digits.

    \b
    Examples:
      rdd demo
      rdd demo --open
      rdd demo --profile digits --out somewhere
    """
    from rddlib.report.demo import demo_view
    from rddlib.report.figures import to_png
    from rddlib.study.folder import default_out
    from rddlib.utils.checkpoint import write_atomically
    from rddlib.utils.text import say

    picture = (out or default_out("demo")) / f"{profile}.png"
    write_atomically(picture, to_png(demo_view(profile)()))
    print(f"{picture}: a row is a model, a column one noise")
    if show and typer.launch(str(picture)):
        say("nothing here opens pictures: open it yourself")
