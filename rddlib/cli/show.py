"""`rdd demo`, `app`, `diagnose`, `report`: pictures, pages and tables of what was measured and made."""

from pathlib import Path
from typing import Annotated

import typer

from rddlib.cli.options import OutOption, ProfileOption, SeedOption, SetOption, StudyProfileOption, parse_overrides
from rddlib.utils.errors import UserError


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
    from rddlib.report.figures import to_png
    from rddlib.report.pages import demo_view
    from rddlib.study.folder import default_out
    from rddlib.utils.checkpoint import write_atomically
    from rddlib.utils.text import say

    picture = (out or default_out("demo")) / f"{profile}.png"
    write_atomically(picture, to_png(demo_view(profile)()))
    print(f"{picture}: a row is a model, a column one noise")
    if show and typer.launch(str(picture)):
        say("nothing here opens pictures: open it yourself")


def app(
    profile: StudyProfileOption = None,
    out: OutOption = None,
    seed: SeedOption = None,
    settings: SetOption = None,
    port: Annotated[int, typer.Option(help="Where the pages are served.")] = 8866,
    ip: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 lets others in.")] = "127.0.0.1",
) -> None:
    """Show the notebooks' sliders to a class.

    Notebooks 02 to 06 as pages: prose, pictures and sliders, no code and nothing to edit. Nothing is trained: the models
    come with rddlib (digits, photos) or from a study's folder. A page takes a process of about 0.8 GB for each visitor,
    and one more waits for the next.

    \b
    Examples:
      rdd app
      rdd app --profile photos --set data.download=true
      rdd app --out runs/digits --port 9000
    """
    from rddlib.report.app import check_server, prepare, serve
    from rddlib.study.folder import as_recorded

    check_server(ip, port)
    study = prepare(*as_recorded(profile, out, seed), parse_overrides(settings))
    print(f"Open http://{ip}:{port} in a browser, in half a minute; Ctrl-C ends it.", flush=True)
    serve(study, ip, port)


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
        again = f"rdd distill --profile {study.profile.name} --out {folder} {student} " * cause.remedy.startswith("--")
        print(f"  try: {again}{cause.remedy}")
    if not found:
        print(
            f"\nNo known cause fits: it has gone {seen.gone:.0%} of the way to its targets. Train for longer, or rdd ablate."
        )
    print(f"\n{out or folder / 'diagnosis'}: curves.png, images.png")


def report(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Studies' folders; default runs/digits, where it is.")
    ] = None,
    table: Annotated[str, typer.Option(help="1 (CIFAR-10), 2 (ImageNet 64x64) or all, other data sets too.")] = "all",
    protocol: Annotated[str, typer.Option(help="Only what was measured under it: torch-fidelity or released.")] = "",
    mix: Annotated[
        bool, typer.Option("--mix", help="Let differently measured rows into one table, with footnotes.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Where files go; default report/ in the first folder.")] = None,
) -> None:
    """The papers' tables, peers' scores, what was measured here.

    They are kept apart, in tables and in a figure of FID against steps.

    Numbers that were measured differently do not share a table: the receipts in FOLDER/scores and FOLDER/evaluations
    decide. Writes comparison.csv, comparison.md and fid_against_steps.png.

    \b
    Examples:
      rdd report
      rdd report --table 1
      rdd report runs/cifar10 runs/alpha100 --protocol released --out runs/comparison
    """
    from rddlib.report.figures import comparison_figure, to_png
    from rddlib.report.tables import (
        as_frame,
        as_markdown,
        as_text,
        comparison,
        count_results,
        measured_under,
        panels,
        read_measurements,
    )
    from rddlib.study.folder import default_out
    from rddlib.study.study import csv_of
    from rddlib.utils.checkpoint import write_atomically

    usual = default_out("digits")
    folders = folders or ([usual] if count_results(usual) else [])
    found = read_measurements(folders)
    if protocol:
        found = measured_under(found, protocol)
    tables = comparison(found, table, mix)
    print(as_text(tables))
    place = out or (folders[0] / "report" if folders else None)
    if place is None:
        print("Nothing is measured yet (rdd study does it), so nothing is written; --out FOLDER writes this.")
        return
    write_atomically(place / "comparison.csv", csv_of(as_frame(tables)))
    write_atomically(place / "comparison.md", as_markdown(tables))
    write_atomically(place / "fid_against_steps.png", to_png(comparison_figure(panels(tables))))
    left = sum(map(count_results, {folder.resolve() for folder in folders})) - sum(1 + len(one.others) for one in found)
    if left and not protocol:
        print(f"Left out: {left} of the results on file; they were measured again later, or repeat another.")
    print(f"Written to {place}: comparison.csv (every row, its receipts' files), comparison.md, fid_against_steps.png")
