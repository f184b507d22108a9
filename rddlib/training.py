"""The one training loop: base models, classifiers, progressive and relational distillation all go through `Trainer`.

Everything random at a step follows from (seed, step, rank), so a run resumed from step k continues as if never stopped.
"""

import contextlib
import copy
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rddlib.checkpoint import load_checkpoint, save_checkpoint, write_atomically
from rddlib.distributed import broadcast
from rddlib.errors import UserError
from rddlib.losses import finite_checks
from rddlib.progress import Progress

RATES = ("constant", "cosine")
PRECISIONS = ("auto", "float32", "bf16")


@dataclass(frozen=True)
class TrainConfig:
    """How to run the loop.

    iterations; batch_size: over all processes; learning_rate: of Adam; rate: "constant" or "cosine" (annealed to 0);
    warmup: iterations of linear rise; clip: largest gradient norm, 0 for none; ema: decay of the averaged weights, 0 for
    none; weight_decay: 0 gives Adam, else AdamW; precision: "auto" is bf16 where the hardware multiplies it fast.
    """

    iterations: int
    batch_size: int
    learning_rate: float
    rate: str = "constant"
    warmup: int = 0
    clip: float = 1.0
    ema: float = 0.0
    weight_decay: float = 0.0
    precision: str = "auto"

    def __post_init__(self):
        for name in ("iterations", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("learning_rate", "warmup", "clip", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 0")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}, expected [0, 1)")
        if self.rate not in RATES:
            raise ValueError(f"rate is {self.rate!r}, expected one of {RATES}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}, expected one of {PRECISIONS}")

    def rate_at(self, step: int) -> float:
        """Learning rate of iteration `step`, counted from 0."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        fall = 0.5 * (1 + math.cos(math.pi * step / self.iterations)) if self.rate == "cosine" else 1.0
        return self.learning_rate * rise * fall


@dataclass
class Step:
    """What one iteration knows: its number, the rows of the data set it uses, and its random streams.

    generator: differs by rank (noise, times); shared: the same on every rank (draws from the pixel queue); logged:
    whether this iteration's terms are recorded.
    """

    number: int
    rows: Tensor
    generator: torch.Generator
    shared: torch.Generator
    logged: bool


def stream(*numbers: int) -> int:
    """A 63-bit seed from several numbers, such as (seed, step, rank): streams of different numbers are unrelated."""
    mixed = 0x9E3779B97F4A7C15
    for number in numbers:
        mixed = (mixed ^ (number + 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
        mixed = (mixed ^ (mixed >> 31)) * 0x94D049BB133111EB & (2**64 - 1)
    return (mixed ^ (mixed >> 29)) >> 1


class Epochs:
    """Row numbers of batch after batch: each epoch a fresh permutation that follows from (seed, epoch) alone."""

    def __init__(self, rows: int, batch_size: int, seed: int):
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(stream(self.seed, epoch, 1))
            self._epoch, self._order = epoch, torch.randperm(self.rows, generator=generator)
        return self._order

    def batch(self, step: int) -> Tensor:
        """Row numbers [batch_size] of iteration `step`."""
        position, taken = step * self.batch_size, []
        while sum(map(len, taken)) < self.batch_size:
            epoch, offset = divmod(position, self.rows)
            missing = self.batch_size - sum(map(len, taken))
            taken.append(self._permutation(epoch)[offset : offset + missing])
            position += len(taken[-1])
        return torch.cat(taken)


def chosen_precision(precision: str, device: torch.device) -> torch.dtype:
    """float32 or bfloat16; "auto" takes bfloat16 on CUDA and on CPUs that multiply it in hardware tiles (AMX)."""
    if precision == "auto":
        amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
        precision = "bf16" if device.type == "cuda" or (device.type == "cpu" and amx) else "float32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def training_device() -> torch.device:
    """Where training runs: this process's GPU (LOCAL_RANK says which of several), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


Loss = Callable[[nn.Module, Step], tuple[Tensor, dict[str, Tensor]]]


@dataclass
class Trainer:
    """Minimise a loss over a model.

    config; seed; rows: images in the data set; label: what the progress bar says; files: how the names of two files
    begin (None: neither is written): files.resume is what a killed run needs to go on, written every `save_every` seconds
    and deleted at the end; files.metrics.jsonl holds the loss, its terms and the gradient's norm at every `log_every`-th
    iteration, as `history` does. same_noise: give every process the same noise, as the released RDD code does.
    """

    config: TrainConfig
    seed: int
    rows: int
    label: str = "training"
    files: Path | None = None
    save_every: float = 30.0
    log_every: int = 25
    same_noise: bool = False
    history: list[dict] = field(default_factory=list)

    def fit(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        companion: nn.Module | None = None,
        companion_free: bool = False,
        debug: bool = False,
        after_step: Callable[[Step], None] | None = None,
    ) -> nn.Module:
        """Train and return the model (its averaged weights where config.ema > 0), in eval mode and without gradients.

        loss(model, step) -> (scalar, terms to log). companion: state besides the model, such as an objective with its
        queue and projection head; its trainable parameters are optimised along, clipped on their own; companion_free: at a
        constant rate and unclipped. debug: every loss refuses NaN and infinite inputs by name. after_step(step) runs after
        each update. Training happens on `training_device()`; the model comes back on the device it was given on.
        Raises UserError where the loss or gradient stops being finite, or a checkpoint does not fit.
        """
        accelerator = Accelerator(cpu=training_device().type == "cpu")
        device, config = accelerator.device, self.config
        if config.batch_size % accelerator.num_processes:
            raise UserError(
                f"batch_size {config.batch_size} cannot be shared by {accelerator.num_processes} processes: "
                "choose a multiple"
            )
        origin = next(model.parameters()).device
        model = copy.deepcopy(model).to(device).train().requires_grad_(True)
        companion = (companion or nn.Module()).to(device)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema)) if config.ema else None
        groups = [{"params": list(model.parameters()), "config": config}]
        if trainable := [p for p in companion.parameters() if p.requires_grad]:
            free = replace(config, rate="constant", warmup=0, clip=0.0)
            groups.append({"params": trainable, "config": free if companion_free else config})
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
        state = _State(model, companion, average, optimizer)
        start = self._resume(state)
        if accelerator.num_processes > 1:  # DDP does this for the model alone
            for tensor in (*companion.parameters(), *companion.buffers()):
                broadcast(tensor.data)
        wrapped = accelerator.prepare_model(model)
        epochs = Epochs(self.rows, config.batch_size, self.seed)
        autocast = chosen_precision(config.precision, device)
        saved = time.monotonic()
        progress = Progress(self.label, config.iterations, start)
        devices = [device] if device.type == "cuda" else []
        fork, checks = torch.random.fork_rng(devices=devices), finite_checks(debug)  # dropout reads the global stream
        with fork, checks, torch.enable_grad():
            for number in progress:
                step = self._step(number, epochs, accelerator)
                for group in optimizer.param_groups:
                    group["lr"] = group["config"].rate_at(number)
                with torch.autocast(device.type, autocast) if autocast != torch.float32 else contextlib.nullcontext():
                    total, terms = loss(wrapped, step)
                optimizer.zero_grad(set_to_none=True)
                accelerator.backward(total)
                norm, *_ = [
                    nn.utils.clip_grad_norm_(group["params"], group["config"].clip or math.inf)
                    for group in optimizer.param_groups
                ]
                due = self.files is not None and time.monotonic() - saved > self.save_every
                if step.logged or due or device.type == "cpu":  # elsewhere a look at the values waits for the device
                    self._check(number, total, norm, terms)
                if step.logged:
                    self._log(number, total, norm, terms, progress)
                optimizer.step()
                if average is not None:
                    average.update_parameters(model)
                if after_step is not None:
                    after_step(step)
                if due and accelerator.is_main_process:
                    self._save(state, number + 1)
                    saved = time.monotonic()
        if self.files and accelerator.is_main_process:
            self._write_metrics()
            self._resume_file.unlink(missing_ok=True)
        companion.to(origin)
        return (average.module if average is not None else model).to(origin).eval().requires_grad_(False)

    def _step(self, number: int, epochs: Epochs, accelerator: Accelerator) -> Step:
        rank, world = accelerator.process_index, accelerator.num_processes
        torch.manual_seed(stream(self.seed, number, rank, 2))
        return Step(
            number,
            epochs.batch(number)[rank::world].to(accelerator.device),
            torch.Generator(accelerator.device).manual_seed(
                stream(self.seed, number, 0 if self.same_noise else rank, 3)
            ),
            torch.Generator(accelerator.device).manual_seed(stream(self.seed, number, 4)),
            number % self.log_every == 0 or number + 1 == self.config.iterations,
        )

    def _check(self, number: int, total: Tensor, norm: Tensor, terms: dict[str, Tensor]) -> None:
        if not (torch.isfinite(total) and torch.isfinite(norm)):
            values = {"loss": total, "gradient": norm, **terms}
            culprits = ", ".join(name for name, value in values.items() if not torch.isfinite(value))
            raise UserError(f"{self.label} diverged at iteration {number} ({culprits} not finite): lower learning_rate")

    def _log(self, number: int, total: Tensor, norm: Tensor, terms: dict[str, Tensor], progress: Progress) -> None:
        record = {"step": number, "loss": float(total.detach()), "gradient": float(norm)}
        record |= {name: float(value.detach()) for name, value in terms.items()}
        self.history.append(record)
        progress.note = f"loss {record['loss']:.4g}"

    def _identity(self) -> dict:
        return {"kind": "resume", "label": self.label, "seed": self.seed, "config": repr(self.config)}

    @property
    def _resume_file(self) -> Path:
        return self.files.with_name(self.files.name + ".resume")

    def _write_metrics(self) -> None:
        lines = "".join(json.dumps(record) + "\n" for record in self.history)
        write_atomically(self.files.with_name(self.files.name + ".metrics.jsonl"), lines)

    def _save(self, state: "_State", step: int) -> None:
        self._write_metrics()
        save_checkpoint(self._resume_file, state.tensors(), {**self._identity(), "step": step, "history": self.history})

    def _resume(self, state: "_State") -> int:
        if not self.files or not self._resume_file.exists():
            return 0
        tensors, info = load_checkpoint(self._resume_file)
        if {name: info.get(name) for name in self._identity()} != self._identity():
            raise UserError(f"{self._resume_file} belongs to another run: delete it or choose another --out")
        state.load(tensors)
        self.history = info["history"]
        print(f"{self.label}: going on from iteration {info['step']}", flush=True)
        return info["step"]


@dataclass
class _State:
    """All that changes while training, as one flat dict of tensors."""

    model: nn.Module
    companion: nn.Module
    average: nn.Module | None
    optimizer: torch.optim.Optimizer

    def _modules(self) -> dict[str, nn.Module]:
        modules = {"model": self.model, "companion": self.companion, "average": self.average}
        return {name: module for name, module in modules.items() if module is not None}

    def tensors(self) -> dict[str, Tensor]:
        flat = {f"{m}/{k}": v for m, module in self._modules().items() for k, v in module.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            flat |= {f"optimizer/{index}/{slot}": value for slot, value in slots.items()}
        return flat

    def load(self, tensors: dict[str, Tensor]) -> None:
        for name, module in self._modules().items():
            prefix = f"{name}/"
            module.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, index, slot = key.split("/")
                slots.setdefault(int(index), {})[slot] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": slots})
