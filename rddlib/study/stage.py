"""A stage of a study: one network that is trained once, kept under a key of all it depends on, and found again."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from rddlib.training import Checkpoints, RunConfig, TrainConfig, Trainer, chosen_precision, training_device
from rddlib.training.hardware import peak_memory, release_memory, reset_peak
from rddlib.utils.checkpoint import load_checkpoint, save_checkpoint, write_atomically
from rddlib.utils.distributed import agreed, locked, rank, wait
from rddlib.utils.errors import UserError
from rddlib.utils.installation import find_shipped
from rddlib.utils.text import say

MODELS = "data/models"  # that come with the package, named as in a study's folder


def key_of(facts: object) -> str:
    """A short name for a configuration: the first 12 hexadecimal digits of the sha256 of its JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Workplace:
    """Where and how stages are made: the folder of checkpoints, and how this machine trains."""

    folder: Path
    run: RunConfig


@dataclass(frozen=True, eq=False)
class Stage:
    """One node of a study's graph.

    Args:
        name: how its file begins, "rdd-4".
        kind: which training it is: "base", "extractor", "halving", "guidance", "convert" or a method's name; an
            iteration of one kind costs the same whatever the steps.
        label: as people and progress bars read it, "RDD 8 to 4 steps".
        parents: the stages whose networks it needs.
        config: how it is trained; None for a network that is taken as it is.
        seed: of its training.
        facts: facts() -> what its result depends on, as JSON; the parents' keys among it.
        fit: fit(trainer, *the parents' networks) -> (network, facts to record besides). It depends on nothing else, so a
            plan may call it with a trainer of few iterations, and it leaves the parents' networks as they are.
        load: load(tensors, recorded facts) -> the network, ready to use.
        place: where it is made.
        student: whether it is what a study compares, a student of one of its methods: such are trained, not taken from the
            package, unless a run asks for that (run.shipped).
        last: whether it is the student of its method's last halving.
    """

    name: str
    kind: str
    label: str
    parents: tuple["Stage", ...]
    config: TrainConfig | None
    seed: int
    facts: Callable[[], dict]
    fit: Callable[..., tuple[nn.Module, dict]]
    load: Callable[[Mapping[str, Tensor], dict], nn.Module]
    place: Workplace
    student: bool = False
    last: bool = False

    @cached_property
    def key(self) -> str:
        """A hash of its facts, known before it is trained."""
        return key_of(self.facts())

    @cached_property
    def mark(self) -> str:
        """Of a student that comes with the package "-shipped": it is rounded, so it never passes for one that was trained; nor
        does one that was trained from it, "-after-shipped". One trained before either was wanted in its folder is kept."""
        if not self.student:
            return ""
        mark = "-shipped" if self._shipped else "-after-shipped" if any(parent.mark for parent in self.parents) else ""
        wanted, trained = (self.place.folder / f"{self.name}{one}-{self.key}.safetensors" for one in (mark, ""))
        return "" if trained.exists() and not wanted.exists() else mark

    @property
    def path(self) -> Path:
        """Its checkpoint; beside it lie its facts as JSON and the log of its training."""
        return self.place.folder / f"{self.name}{self.mark}-{self.key}.safetensors"

    @property
    def files(self) -> Path:
        """How the names of its training's files begin."""
        return self.path.with_suffix("")

    @property
    def done(self) -> bool:
        return self.path.exists()

    @property
    def ships(self) -> bool:
        """Whether it comes with the package, and this run takes it from there."""
        return self._shipped is not None

    @property
    def at_hand(self) -> bool:
        """Whether it needs no training."""
        return self.done or self.ships

    @property
    def iterations(self) -> int:
        return self.config.iterations if self.config else 0

    def lineage(self) -> list["Stage"]:
        """All that it needs, ancestors first, itself last, each once."""
        ancestors = [stage for parent in self.parents for stage in parent.lineage()]
        return [*dict.fromkeys(ancestors), self]

    def missing(self) -> list["Stage"]:
        """What has to be made or taken before it is there, ancestors first, itself last; one that ships needs no other."""
        if self.done:
            return []
        before = [] if self._shipped else [stage for parent in self.parents for stage in parent.missing()]
        return [*dict.fromkeys(before), self]

    def trainer(self, config: TrainConfig | None = None, files: Path | None = None) -> Trainer:
        """A trainer as this stage needs it; config: instead of its own."""
        config = config or self.config
        return Trainer(config, self.seed, self.label, files, self.place.run)

    def get(self) -> nn.Module:
        """Its network: from its file, or made now, what it needs first, by all processes of this run together.

        Two runs never make the same one.
        """
        with locked(self.path):
            if not agreed(self.done):
                self._take() if self._shipped else self._make()
            return self.load(*load_checkpoint(self.path))

    def recorded(self) -> dict:
        """What is recorded of it: its facts, seconds, precision, peak memory, test accuracy and the like.

        Raises UserError where it is not made yet.
        """
        return load_checkpoint(self.path)[1]

    def noted(self) -> dict:
        """As `recorded`, from the small file beside the checkpoint; {} where that was deleted."""
        try:
            return json.loads(self.path.with_suffix(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _make(self) -> None:
        networks = [parent.get() for parent in self.parents]
        network, extra = self._timed(networks) if self.config else self.fit(None, *networks)
        if rank() == 0:
            extra |= {"after_shipped": True} if self.mark else {}
            self._keep(network.state_dict(), {"kind": self.name, "label": self.label, "facts": self.facts(), **extra})
            Checkpoints(self.files).clear()
        wait()

    def _keep(self, tensors: dict[str, Tensor], info: dict) -> None:
        save_checkpoint(self.path, tensors, info)
        write_atomically(self.path.with_suffix(".json"), json.dumps(info, indent=1) + "\n")

    @cached_property
    def _shipped(self) -> tuple[dict[str, Tensor], dict] | None:
        """(tensors, record) of this key from the package, where it has one and the run asks for it."""
        wanted = self.place.run.shipped
        if wanted == "none" or (wanted == "start" and self.student) or (wanted == "earlier" and self.last):
            return None
        file = find_shipped(f"{MODELS}/{self.name}-{self.key}.safetensors")
        try:
            return file and load_checkpoint(file)
        except UserError as error:
            say(f"{self.label}: {getattr(error, 'fault', error)}, so it is trained")
            return None

    def _take(self) -> None:
        """Keep the package's network as this stage's."""
        if rank() == 0:
            tensors, info = self._shipped
            trained = "start" if self.student else "none"
            say(f"{self.label}: the one that comes with rddlib (--set run.shipped={trained} trains it instead)")
            rounded = (torch.float16, torch.bfloat16)
            whole = {name: value.float() if value.dtype in rounded else value for name, value in tensors.items()}
            record = {name: value for name, value in info.items() if name not in ("sha256", "peak_memory")}
            self._keep(whole, record | {"seconds": 0.0, "seconds_elsewhere": info.get("seconds")})
        wait()

    def _timed(self, networks: list[nn.Module]) -> tuple[nn.Module, dict]:
        """(trained network, facts): how long this took, in which precision, and the bytes that it held at most beside what
        was held before (of a resumed run, its last stretch)."""
        device = training_device()
        release_memory()
        before, began = reset_peak(str(device)), time.perf_counter()
        network, extra = self.fit(self.trainer(files=self.files), *networks)
        precision = str(chosen_precision(self.config.precision, device)).removeprefix("torch.")
        measured = {"seconds": time.perf_counter() - began, "precision": precision}
        return network, {**measured, "peak_memory": peak_memory(device) - before, **extra}
