"""Options that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rddlib.utils.errors import UserError

if TYPE_CHECKING:
    from rddlib.study.study import Study

_PROFILE = ("--profile", "-p")
_NUMBERS = "Whose numbers to use: smoke, digits, photos, own (your images), cifar10_small, .."
ProfileOption = Annotated[str, typer.Option(*_PROFILE, help=_NUMBERS)]
StudyProfileOption = Annotated[
    str | None, typer.Option(*_PROFILE, help=f"{_NUMBERS}; default: the folder's own, else digits.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one number, e.g. --set distill.train.batch_size=32; repeatable."),
]
OutOption = Annotated[Path | None, typer.Option(help="The study's folder; default runs/<profile>.")]
SeedOption = Annotated[
    int | None,
    typer.Option(help="Random seed of base model, extractor and halvings by pd; default: the folder's own, else 0."),
]
TeacherOption = Annotated[
    str | None,
    typer.Option(
        help="Distil this model instead of a base model of the study: a checkpoint, a published file, the folder of a "
        "diffusers pipeline, or its name on the hub, owner/name or owner/name@revision."
    ),
]
DownloadOption = Annotated[bool, typer.Option("--download", help="Fetch what --teacher and --extractor name.")]
ExtractorOption = Annotated[
    str | None,
    typer.Option(
        help="Look through this: a classifier's file (of rdd extractor, or published), or what needs no labels: teacher (its "
        "own features) or torchvision:resnet50, ..."
    ),
]
UpdateOption = Annotated[bool, typer.Option(help="Let a folder take a changed configuration.")]


PLACES = ("data.root", "pretrained.teacher", "pretrained.extractor")  # fields that name a file or folder


def _is_place(field: str, value: str) -> bool:
    from rddlib.interop.hub import is_hub_name

    if field == "evaluation.network":  # a name, such as digits or extractor, or a file
        return bool(Path(value).suffix)
    return field in PLACES and bool(value) and not (field == "pretrained.teacher" and is_hub_name(value))


def parse_overrides(settings: list[str] | None) -> dict[str, str]:
    """["a.b=1"] -> {"a.b": "1"}; UserError for one without "="."""
    overrides = {}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {setting}: write it as section.field=value")
        key, value = key.strip(), value.strip()
        if _is_place(key, value):
            value = str(Path(value).expanduser().resolve())  # the same place wherever it is read
        overrides[key] = value
    return overrides


def with_models(settings: list[str] | None, teacher: str | None, extractor: str | None, download: bool) -> list[str]:
    """The settings, and what --teacher, --extractor and --download set."""
    from rddlib.distillation.label_free import TEACHER, TORCHVISION

    settings = list(settings or [])
    if teacher is not None:
        settings.append(f"pretrained.teacher={teacher}")
    if extractor is not None:
        free = extractor == TEACHER or extractor.startswith(TORCHVISION)
        settings.append(f"{'extractor.name' if free else 'pretrained.extractor'}={extractor}")
    if download:
        settings += ["pretrained.download=true", "extractor.download=true"]
    return settings


def study_of(
    profile: str | None,
    out: Path | None,
    settings: list[str] | None,
    seed: int | None,
    update: bool = False,
    check=lambda study: None,
) -> "Study":
    """The study that the shared options name, its folder prepared; check(study) may refuse before anything is written."""
    from rddlib.study.folder import as_recorded, continue_study

    profile, folder, seed = as_recorded(profile, out, seed)
    return continue_study(profile, parse_overrides(settings), folder, seed, update, check)


def listed(option: str, words: str) -> list[str]:
    """What an option names with commas between. Raises UserError where that is nothing."""
    if not (found := [word.strip() for word in words.split(",") if word.strip()]):
        raise UserError(f"{option} names nothing: see --help")
    return found


def whole(option: str, word: str) -> int:
    """An option's whole number. Raises UserError for another word."""
    try:
        return int(word)
    except ValueError:
        raise UserError(f"{option} {word}: expected whole numbers, e.g. {option} 0,1,2") from None
