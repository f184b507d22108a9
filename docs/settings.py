"""The page on settings: every field of a profile, what it means and what it is in four profiles; for `docs/build_site.py`."""

import ast
import inspect
import io
import re
import textwrap
import tokenize
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import partial
from importlib import import_module

from rddlib.study.profiles import Profile, load_profile
from rddlib.training import TrainConfig
from rddlib.utils.errors import UserError

SHOWN = ("digits", "photos", "cifar10", "imagenet64")
HEAD = f"""# Settings

`--set section.field=value` changes one number of a profile, for `rdd study`, `plan`, `train`, `distill` and all others that
know `--profile`; it may be given several times. Values are written as in YAML: `--set distill.iterations=[150,150,300]`,
`--set data.download=true`. What a study was told is in its `study.json`. The columns are what the profiles
{", ".join(SHOWN)} have. The last two have the papers' numbers; the source of each stands beside it in
`rddlib/study/profiles.py`.
"""


def words_of(kind: type) -> dict[str, str]:
    """What each field of a dataclass is, from the comment beside it or from "field: words" in the docstring."""
    source = textwrap.dedent(inspect.getsource(kind))
    comments: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
    found = {}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign):
            first = node.lineno
            while first - 1 in comments and source.splitlines()[first - 2].lstrip().startswith("#"):
                first -= 1
            found[node.target.id] = " ".join(
                comments[line] for line in range(first, node.end_lineno + 1) if line in comments
            )
    for name, words in re.findall(r"\b(\w+): ((?:[^;.\n]|\.(?!\s)|\n(?!\s*\w+:))+)", kind.__doc__):
        if name in found and not found[name]:
            found[name] = " ".join(words.split())
    return found


def settings_page() -> str:
    """The page, in Markdown. Raises UserError for a field that nothing is said of."""
    profiles, parts = [load_profile(name) for name in SHOWN], [HEAD]
    for section in fields(Profile):
        values = [getattr(profile, section.name) for profile in profiles]
        if is_dataclass(values[0]):
            first = " ".join(type(values[0]).__doc__.split("\n\n")[0].split("Raises")[0].split())
            parts.append(f"## {section.name}\n\n{first}\n\n{_table(section.name, values)}")
    parts.append(f"## Of the whole study\n\n{_as_table(_rows('', profiles)[1:])}")  # the first is the name
    words = said(TrainConfig)
    usual = [[f"`{field.name}`", words[field.name], _usual(field)] for field in fields(TrainConfig)]
    parts.append(f"## Of each training\n\n{_as_table(usual, ('field', 'what it is', 'where nothing is said'))}")
    return "\n\n".join(parts) + "\n"


def said(kind: type) -> dict[str, str]:
    words = {
        name: re.sub(r"of ((?:\w+\.)*)([A-Z_]{4,})\b", partial(_values, kind), text)
        for name, text in words_of(kind).items()
    }
    sections = {field.name for field in fields(kind) if isinstance(field.type, type) and is_dataclass(field.type)}
    if silent := [name for name in words if name not in sections | {"name"} and not words[name]]:
        raise UserError(f"{kind.__name__} says nothing of {', '.join(silent)}: give each a comment")
    return words


def _values(kind: type, match: re.Match) -> str:
    """What "of rddlib.losses.IMPLEMENTATIONS" means: its values; a name without a module is of the dataclass's own."""
    found = getattr(import_module(match[1].rstrip(".") or kind.__module__), match[2], None)
    return f"of: {', '.join(map(str, found))}" if isinstance(found, tuple | dict) else match[0]


def _table(section: str, values: list) -> str:
    trainings = [field.name for field in fields(values[0]) if isinstance(getattr(values[0], field.name), TrainConfig)]
    rows = _rows(f"{section}.", values)
    for name in trainings:  # what none of them changes stands in the table of trainings
        given = _rows(f"{section}.{name}.", [getattr(value, name) for value in values])
        rows += [row for row, field in zip(given, fields(TrainConfig), strict=True) if set(row[2:]) != {field.default}]
    rows = [row for row in rows if row[0] != "`distill.train.iterations`"]  # distill.iterations says them
    return _as_table(rows)


def _rows(prefix: str, values: list) -> list[list]:
    words = said(type(values[0]))
    names = [field.name for field in fields(values[0]) if not is_dataclass(getattr(values[0], field.name))]
    return [[f"`{prefix}{name}`", words.get(name, ""), *(getattr(value, name) for value in values)] for name in names]


def _as_table(rows: list[list], heads: tuple[str, ...] = ("field", "what it is", *SHOWN)) -> str:
    lines = [f"| {' | '.join(_shown(cell) for cell in row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *lines])


def _usual(field: Field):
    return "-" if field.default is MISSING else field.default


def _shown(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_shown, value)) + "]"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.replace("|", r"\|") or '""'
