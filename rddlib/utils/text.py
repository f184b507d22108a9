"""Lines, numbers and tables as plain text: what commands print."""

import sys
from collections.abc import Collection, Iterable, Sequence


def say(line: str) -> None:
    """What goes on, beside the results: on standard error."""
    print(line, file=sys.stderr, flush=True)


def joined(values: Iterable) -> str:
    """a, b, c: what a tuple holds, without Python's marks; "none" of an empty one."""
    return ", ".join(map(str, values)) or "none"


def counted(number: int, noun: str = "step", form: str = "") -> str:
    """1 step, 4 steps, 2 batches; form: of the number, "," for 50,000 images."""
    ending = "" if number == 1 else "es" if noun.endswith(("s", "h")) else "s"
    return f"{number:{form}} {noun}{ending}"


def aligned(heads: Sequence[str], body: Sequence[Sequence[str]], words: Collection[int]) -> str:
    """A table in plain text; words: the columns that lean left, as numbers do not."""
    widths = [max(len(line[column]) for line in [heads, *body]) for column in range(len(heads))]

    def line(cells):
        padded = zip(cells, widths, strict=True)
        return "  ".join(c.ljust(w) if k in words else c.rjust(w) for k, (c, w) in enumerate(padded)).rstrip()

    return "\n".join(map(line, [heads, *body]))


def number(x: float | None, form: str) -> str:
    """x in the given format, a dash for None."""
    return "-" if x is None else format(x, form)


def markdown_table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; bars inside cells are escaped."""
    lines = [heads, ["---"] * len(heads), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def one_line(thing, longest: int = 120) -> str:
    """str(thing) without line breaks and cut to `longest` characters, for a message."""
    text = " ".join(str(thing).split())
    return text if len(text) <= longest else f"{text[:longest]}..."


def human_time(seconds: float) -> str:
    """42 s, 3 min, 5.2 h, 41 d."""
    for unit, length, limit in (("s", 1, 90), ("min", 60, 90 * 60), ("h", 3600, 48 * 3600)):
        if seconds < limit:
            amount = seconds / length
            return f"{amount:.1f} {unit}" if amount < 9.95 and unit != "min" else f"{amount:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def human_size(size: float) -> str:
    """512 KiB, 3.2 GiB."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1024, units[1:]
    unit = units[0]
    return f"{size:.1f} {unit}" if size < 9.95 and unit not in ("B", "KiB") else f"{size:.0f} {unit}"
