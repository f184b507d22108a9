"""Tables for people and programs: aligned text, Markdown, one frame for a CSV file, panels for a figure."""

import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from rddlib.report.figures import SCORE_NAMES
from rddlib.report.tables.build import COLUMNS, Table
from rddlib.report.tables.measurements import SCORES

HEADINGS = {"paper": "From the papers", "peer": "Peers", "measured": "Measured here"}
_PEERS_NOTE = (
    "Other networks and budgets. params: millions of parameters (the papers' networks: 35.7 on CIFAR-10, 116 on ImageNet "
    "64x64); ?: not verified."
)
_WIDE = {"paper": ["note"], "peer": ["note"], "measured": ["receipts", "folder"]}
_FORMS = {"fid": ".2f", "is": ".2f", "pfd": ".3f", "kid": ".5f", "precision": ".3f", "recall": ".3f"}


def as_frame(tables: Sequence[Table]) -> pd.DataFrame:
    """All rows of all tables, with COLUMNS."""
    return pd.DataFrame([row for table in tables for row in table.rows], columns=COLUMNS)


def panels(tables: Sequence[Table]) -> list[tuple[str, str, pd.DataFrame]]:
    """(title, name of the FID, rows with the column curve) of each table, for rddlib.report.figures.comparison_figure."""
    found = []
    for table in tables:
        frame = as_frame([table])[["kind", "method", "steps", "fid", "fid_spread"]]
        frame["curve"] = [_curve(row, table) for row in table.rows]
        found.append((table.title, table.metric, frame.astype({"steps": int, "fid": float, "fid_spread": float})))
    return found


def _curve(row: dict, table: Table) -> str:
    """What tells a row's line from others: its classifier; its footnote, its folder and whether its mean is over noises."""
    if row["kind"] == "paper":
        return f"{row['method']}, {row['classifier']}" if row["classifier"] == "ResNet18" else row["method"]
    if row["kind"] == "peer":
        return row["method"]
    alike = [other for other in table.rows if other["kind"] == "measured" and other["method"] == row["method"]]
    words = [Path(row["folder"]).name] if len({other["folder"] for other in alike}) > 1 else []
    words += ["noises"] if len({"seed" in other["over"] for other in alike}) > 1 and "seed" not in row["over"] else []
    return ", ".join([row["method"], *words]) + (f" [{row['footnote']}]" if row["footnote"] else "")


def as_text(tables: Sequence[Table]) -> str:
    """The tables as aligned text of at most 100 columns."""
    return "\n\n".join("\n".join(_table_text(table)) for table in tables) + "\n"


def as_markdown(tables: Sequence[Table]) -> str:
    """The tables in Markdown, with sources, notes and the file of each receipt."""
    parts = [
        "# Comparison",
        "Mean ± standard deviation. Lower FID, pFD and KID are better, higher IS, precision, recall.",
    ]
    for table in tables:
        parts += [f"## {table.title}", *table.lines]
        for kind, rows in _kinds(table):
            headings, cells = _cells(kind, rows, wide=True)
            parts += [f"### {HEADINGS[kind]}", *[_PEERS_NOTE] * (kind == "peer")]
            parts += [_markdown([*headings, *_WIDE[kind]], cells)]
        parts += [f"[{number}] {text}" for number, text in enumerate(table.footnotes, 1)]
    measured = [row for table in tables for row in table.rows if row["kind"] == "measured"]
    files = [
        pair for row in measured for pair in zip(row["receipt"].split(), row["receipt_path"].split("\n"), strict=True)
    ]
    if files:
        parts += ["## Receipts", _markdown(["receipt", "file"], [[name, f"`{path}`"] for name, path in files])]
    return "\n\n".join(parts) + "\n"


def _kinds(table: Table) -> Iterator[tuple[str, list[dict]]]:
    """(kind, its rows) of a table, in order."""
    for kind in HEADINGS:
        if rows := [row for row in table.rows if row["kind"] == kind]:
            yield kind, rows


def _table_text(table: Table) -> list[str]:
    lines = [table.title, "=" * len(table.title)]
    for line in table.lines:
        lines += _wrapped(line)
    kinds = list(_kinds(table))
    for kind, rows in kinds:
        lines += ["", *[HEADINGS[kind]] * (len(kinds) > 1), *_aligned(*_cells(kind, rows))]
        lines += _wrapped(_PEERS_NOTE) if kind == "peer" else []
        if kind == "measured" and (more := [score for score in _present(rows) if score not in _beside(rows)]):
            lines += ["", "Further scores", *_aligned(*_further(rows, more))]
    if not any(row["kind"] == "measured" for row in table.rows):
        lines += ["", f"{HEADINGS['measured']}: nothing in the papers' way yet."]
    for number, text in enumerate(table.footnotes, 1):
        lines += _wrapped(f"[{number}] {text}", "    ")
    return lines


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, 100, subsequent_indent=indent, break_on_hyphens=False)


def _cells(kind: str, rows: Sequence[dict], wide: bool = False) -> tuple[list[str], list[list[str]]]:
    """(headings, cells) of the rows of one kind; wide: with nothing shortened and what stands in _WIDE."""
    if kind == "measured":
        return _measured_cells(rows, wide)
    cells = []
    for row in rows:
        fid, source = _score(row, "fid"), row["source"]
        if kind == "paper":
            cells.append([*_arm(row), row["classifier"], fid, _score(row, "is"), source])
        else:
            facts = [row["network"], _plain(row["parameters_millions"]), row["conditioning"], row["gan_loss"]]
            cells.append([*_arm(row), fid, *(fact or "?" for fact in facts), source if wide else _arxiv(source)])
        cells[-1] += [row["note"]] if wide else []
    headings = {
        "paper": ["classifier", "FID", "IS", "source"],
        "peer": ["FID", "network", "params", "conditioning", "GAN", "source"],
    }
    return ["steps", "method", *headings[kind]], cells


def _present(rows: Sequence[dict]) -> list[str]:
    """The scores that some row has."""
    return [score for score in SCORES if any(score in row for row in rows)]


def _several(rows: Sequence[dict]) -> bool:
    return len({row["folder"] for row in rows}) > 1


def _beside(rows: Sequence[dict]) -> list[str]:
    """The scores that fit beside one another in 100 columns."""
    return [score for score in _present(rows) if score in SCORES[: 2 if _several(rows) else 3]]


def _measured_cells(rows: Sequence[dict], wide: bool) -> tuple[list[str], list[list[str]]]:
    scores = [score for score in (_present(rows) if wide else _beside(rows)) if score != "fid"]
    cells = []
    for row in rows:
        ids = row["receipt"].split()
        short = ids[0] + (f" +{len(ids) - 1}" if len(ids) > 1 else "")
        line = [*_arm(row, wide), _score(row, "fid"), _plain(row.get("fid_min"), ".2f")]
        line += [*(_score(row, score) for score in scores), row["over"], " ".join(ids) if wide else short]
        cells.append(
            line + [row["folder"] if wide else _short(Path(row["folder"]).name, 14)] * (wide or _several(rows))
        )
    headings = ["steps", "method", "FID", "min", *(SCORE_NAMES[score] for score in scores), "over"]
    return headings + ([] if wide else ["receipt", *["folder"] * _several(rows)]), cells


def _further(rows: Sequence[dict], scores: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Scores that do not fit beside the others, of the rows that have any."""
    rows = [row for row in rows if any(score in row for score in scores)]
    cells = [[*_arm(row), *(_score(row, score) for score in scores), row["over"]] for row in rows]
    return ["steps", "method", *(SCORE_NAMES[score] for score in scores), "over"], cells


def _arm(row: dict, wide: bool = False) -> list[str]:
    """Steps and method, with the mark of its footnote."""
    mark = f" [{row['footnote']}]" if row.get("footnote") else ""
    return [str(row["steps"]) if row["steps"] else "-", (row["method"] if wide else _short(row["method"], 14)) + mark]


def _score(row: dict, score: str) -> str:
    """Mean and, of several runs, spread; empty where not measured."""
    spread = _plain(row.get(f"{score}_spread"), _FORMS[score])
    return _plain(row.get(score), _FORMS[score]) + (f" ± {spread}" if spread else "")


def _plain(value, form: str = ".1f") -> str:
    return "" if value is None or math.isnan(value) else format(value, form)


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _arxiv(source: str) -> str:
    found = re.search(r"arXiv [\d.]+", source)
    return found[0] if found else _short(source, 20)


def _aligned(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: numbers to the right, words to the left."""
    columns = list(zip(headings, *cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(re.fullmatch(r"[-?\d.]*( ± [\d.]+)?", cell) for cell in column[1:]) for column in columns]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in (headings, *cells)
    ]


def _markdown(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *cells]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
