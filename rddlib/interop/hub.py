"""Pipelines by their name on the Hugging Face hub, owner/name or owner/name@revision: from its cache, or fetched on request."""

import json
import re
from pathlib import Path

from rddlib.utils.errors import UserError
from rddlib.utils.text import one_line, say

NAME = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?")
TIMEOUT = 30.0  # seconds without an answer after which to give up
PARTS = ("unet", "transformer", "vae", "vqvae", "text_encoder")  # folders of networks
WHOLE = re.compile(r"[\w-]+(-\d+-of-\d+)?")  # a file of weights, or one of its parts; variants have a dot more
DESCRIBING = ("*.json", "*/merges.txt", "README.md")  # what is fetched first, and may refuse the rest


def is_hub_name(text: str) -> bool:
    """Whether it reads as a name on the hub and nothing here has it."""
    return bool(NAME.fullmatch(text)) and not Path(text).expanduser().exists()


def hub_folder(name: str, download: bool, check) -> Path:
    """The folder of a pipeline's snapshot.

    What the cache holds is taken without going online. Weights are safetensors; only where a repository has none of them are
    its .bin files taken, which are read as tensors alone, or else its variant fp16. download: fetch what the cache
    lacks, with a bar. check(folder) may raise UserError once the descriptions are there, before any weights are fetched. Raises
    UserError where the snapshot cannot be had, and without huggingface_hub.
    """
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError:
        raise UserError("names on the hub need huggingface_hub: pip install 'rddlib[baselines]'") from None
    repository, revision = NAME.fullmatch(name).groups()
    options = {"revision": revision, "etag_timeout": TIMEOUT}
    if (cached := _cached(snapshot_download, repository, options)) is not None:
        return cached
    if not download:
        raise UserError(
            f"there is no file or folder {name}, and the hub's cache lacks a model of that name: correct it, fetch it with rdd "
            "distill --download, or download its folder elsewhere and name that"
        )
    try:
        say(f"fetching {name} from the hub, whose cache lacks it")
        folder = Path(snapshot_download(repository, allow_patterns=list(DESCRIBING), **options))
        check(folder)
        there = [file.rfilename for file in HfApi().repo_info(repository, revision=revision, timeout=TIMEOUT).siblings]
        return Path(snapshot_download(repository, allow_patterns=[*DESCRIBING, *_weights(there)], **options))
    except UserError:
        raise
    except Exception as error:  # of many kinds: no such name, no network, no room
        said = f"{name} cannot be fetched ({one_line(error)})"
        raise UserError(f"{said}: try again, or download its folder and name that") from error


def _cached(snapshot_download, repository: str, options: dict) -> Path | None:
    """The snapshot's folder in the cache, None where it lacks the weights."""
    try:
        folder = Path(snapshot_download(repository, local_files_only=True, **options))
    except Exception:  # of several kinds, by version
        return None
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*")]
    weighed = {name.rpartition("/")[0] for name in _weights(names)}
    index = folder / "model_index.json"
    if not index.is_file():  # a network alone, which needs its scheduler
        return folder if weighed == {""} and "scheduler_config.json" in names else None
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))
        wanted = {part for part in PARTS if any(parts.get(part) or ())}  # [null, null]: it has none
    except (ValueError, AttributeError, TypeError):  # said where it is read
        wanted = set()
    return folder if weighed and (weighed == {""} or wanted <= weighed) else None


def _weights(names: list[str]) -> list[str]:
    """Which of a repository's files hold its networks' weights, in half precision only where there are no others: those of its
    parts, or else at its top."""
    there = {name.rpartition("/")[0] for name in names}
    found = []
    for part in [part for part in PARTS if part in there] or [""]:
        own = [name for name in names if name.rpartition("/")[0] == part]
        whole = [name for name in own if WHOLE.fullmatch(Path(name).stem)]
        choices = ((whole, ".safetensors"), (whole, ".bin"), (own, ".fp16.safetensors"))
        found += next(filter(None, ([name for name in some if name.endswith(end)] for some, end in choices)), [])
    return found


def licence(folder: Path) -> str:
    """What the front matter of its README says, "" where it says nothing."""
    try:
        head = (folder / "README.md").read_text(encoding="utf-8").split("---")[1]
    except (OSError, ValueError, IndexError):
        return ""
    found = re.search(r"^license:\s*(\S+)", head, flags=re.M)
    return found[1] if found else ""
