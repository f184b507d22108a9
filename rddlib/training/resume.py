"""What a killed run needs to go on: everything that changes while training, in checkpoints of which the last few stay."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rddlib.utils.checkpoint import DamagedFile, load_checkpoint, save_checkpoint
from rddlib.utils.errors import UserError


@dataclass
class State:
    """All that changes while training, as one flat dict of tensors.

    Learning rate, data position and random streams are not among it: they follow from the number of the iteration.
    """

    model: nn.Module
    auxiliary: nn.Module
    average: nn.Module | None
    optimizer: torch.optim.Optimizer

    def _modules(self) -> dict[str, nn.Module]:
        modules = {"model": self.model, "auxiliary": self.auxiliary, "average": self.average}
        return {name: module for name, module in modules.items() if module is not None}

    def tensors(self) -> dict[str, Tensor]:
        flat = {f"{m}/{k}": v for m, module in self._modules().items() for k, v in module.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            flat |= {f"optimizer/{index}/{slot}": value for slot, value in slots.items()}
        return flat

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Raises RuntimeError or ValueError where the tensors are another architecture's."""
        for name, module in self._modules().items():
            prefix = f"{name}/"
            module.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, index, slot = key.split("/")
                like = parameters[int(index)]
                if value.shape == like.shape:  # fused optimisers read memory in order: it must be the parameter's
                    value = torch.empty_like(like, dtype=value.dtype).copy_(value)
                slots.setdefault(int(index), {})[slot] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": slots})


@dataclass(frozen=True)
class Checkpoints:
    """The last `keep` states of a training: files.<iteration>.resume. Only their owner clears them, once what was
    trained is stored: until then a killed run finds them."""

    files: Path
    keep: int = 2

    def path(self, step: int) -> Path:
        return self.files.with_name(f"{self.files.name}.{step:08d}.resume")

    def steps(self) -> list[int]:
        """Iterations of the checkpoints there are, the newest first."""
        begin = f"{self.files.name}."  # no glob of it: a name may hold what glob reads otherwise
        names = [path.name for path in self.files.parent.glob("*.resume") if path.name.startswith(begin)]
        numbers = [name.removeprefix(begin).removesuffix(".resume") for name in names]
        return sorted(map(int, filter(str.isdigit, numbers)), reverse=True)

    def save(self, tensors: dict[str, Tensor], info: dict, step: int) -> None:
        """Write one more, then drop the oldest. Raises UserError where it cannot be written; the others stay."""
        save_checkpoint(self.path(step), tensors, {**info, "step": step})
        for old in self.steps()[self.keep :]:
            self.path(old).unlink(missing_ok=True)

    def newest_whole(self, identity: dict) -> int:
        """The iteration of the newest checkpoint that is not damaged, 0 where there is none at all; a line for each
        damaged one. Raises UserError where one is another training's (its info differs from `identity`), or all are
        damaged."""
        steps = self.steps()
        for step in steps:
            try:
                self.load(step, identity)
                return step
            except DamagedFile as error:
                print(f"{error.fault}; using the one before it", flush=True)
        if steps:
            raise UserError(
                f"all checkpoints {self.files}.*.resume are damaged: delete them to start from the beginning"
            )
        return 0

    def load(self, step: int, identity: dict) -> dict[str, Tensor]:
        """The tensors of one checkpoint."""
        tensors, info = load_checkpoint(self.path(step))
        info = {"about": identity.get("about")} | info  # which an earlier version did not write
        if {name: info.get(name) for name in identity} != identity:
            raise UserError(f"{self.path(step)} belongs to another run: delete it or choose another --out")
        return tensors

    def clear(self) -> None:
        """Delete them all."""
        for step in self.steps():
            self.path(step).unlink(missing_ok=True)
