"""`rdd report`: what the papers and their peers report beside what was measured here, as tables and a figure."""

from pathlib import Path
from typing import Annotated

import typer


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
    write_atomically(place / "comparison.csv", as_frame(tables).to_csv(index=False, float_format="%.6g"))
    write_atomically(place / "comparison.md", as_markdown(tables))
    write_atomically(place / "fid_against_steps.png", to_png(comparison_figure(panels(tables))))
    left = sum(map(count_results, {folder.resolve() for folder in folders})) - sum(1 + len(one.others) for one in found)
    if left and not protocol:
        print(f"Left out: {left} of the results on file; they were measured again later, or repeat another.")
    print(f"Written to {place}: comparison.csv (every row, its receipts' files), comparison.md, fid_against_steps.png")
