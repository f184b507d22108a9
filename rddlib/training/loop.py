"""`Trainer`: forward, backward, clip, update, average; and between two iterations log, look, save, stop.

On any number of processes (torchrun, accelerate launch, notebook_launcher) it is the same loop.
"""

import contextlib
import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rddlib.losses import finite_checks
from rddlib.training.adapters import adapted, merged, sharing
from rddlib.training.batches import Epochs, Step, derive_seed
from rddlib.training.config import RunConfig, TrainConfig
from rddlib.training.graphs import recorded
from rddlib.training.hardware import (
    autocast,
    compiled,
    enough_memory,
    laid_out,
    on_threads,
    peak_memory,
    plain,
    process_group,
    tf32_context,
)
from rddlib.training.metrics import MetricsLogger
from rddlib.training.resume import Checkpoints, State
from rddlib.training.stopping import StopRequests
from rddlib.utils.distributed import broadcast
from rddlib.utils.errors import Interrupted, UserError
from rddlib.utils.progress import Progress

SAVING_SHARE = 20  # iterations are to take this many times as long as writing checkpoints does
COMPILE_FROM = 2000  # iterations of a training for which run.compile=auto compiles: that takes about a minute

Loss = Callable[[nn.Module, Step], tuple[Tensor, dict[str, Tensor]]]


@dataclass
class Trainer:
    """Minimise a loss over a model; one object for one training.

    Args:
        config: iterations, batch, learning rate and the like.
        seed: of the order of images and of all noise.
        label: what the progress bar says.
        files: how the names of its files begin; None: nothing is written. files.<iteration>.resume are what a killed run
            goes on from, the state after the last iteration included; they stay until `Checkpoints(files).clear()`,
            to be called once the result is stored. files.metrics.jsonl has the loss, its terms, the gradient's norm, the
            learning rate, images a second and peak memory at every run.log_every-th iteration, as `history` does.
        run: how this machine runs it.
        same_noise: give every process the same noise, as the released RDD code does.
        lora: rank of the adapters of attention that are trained in the place of all weights (`training.adapters`), 0: none.
            The others stay those of the given model, and are not copied while it trains.
    """

    config: TrainConfig
    seed: int = 0
    label: str = "training"
    files: Path | None = None
    run: RunConfig = field(default_factory=RunConfig)
    same_noise: bool = False
    lora: int = 0
    history: list[dict] = field(default_factory=list)
    state_bytes: int = 0  # of what a killed run goes on from, known after the training

    def __post_init__(self):
        if self.run.compile == "auto" and self.config.iterations < COMPILE_FROM:
            self.run = replace(self.run, compile="never")

    def fit(
        self,
        model: nn.Module,
        loss: Loss,
        rows: int,
        *,
        auxiliary: nn.Module | None = None,
        auxiliary_free: bool = False,
        debug: bool = False,
        after_step: Callable[[Step], None] | None = None,
        preview: Callable[[nn.Module], Tensor] | None = None,
        about: str = "",
    ) -> nn.Module:
        """Train and return the model (its averaged weights where config.ema > 0), in eval mode and without gradients.

        Training happens on `training_device()`; the model comes back on the device it was given on.

        Args:
            loss: loss(model, step) -> (scalar, terms to log).
            rows: images in the data set, from which Step.rows are drawn.
            auxiliary: state besides the model, such as an objective with its queue and projection head; its trainable
                parameters are optimised along, clipped on their own.
            auxiliary_free: these at a constant learning rate and unclipped.
            debug: every loss refuses NaN and infinite inputs by name.
            after_step: called with the step once its gradient has been taken (of each part, where
                config.accumulate > 1).
            preview: preview(model) -> images [N, C, H, W] in [-1, 1], drawn every run.sample_every iterations.
            about: what is trained; a checkpoint of something else is refused.

        Raises:
            Interrupted: SIGINT or SIGTERM came, between two iterations, after a checkpoint.
            UserError: the loss or gradient stops being finite, or a checkpoint does not fit or cannot be written; the
                checkpoints before it stay. And as `adapted` does.
        """
        accelerator = process_group()
        self._check_share(accelerator.num_processes)
        device, config, origin = accelerator.device, self.config, next(model.parameters()).device
        state = self._state(model, auxiliary or nn.Module(), auxiliary_free, device)
        self._about = about
        start = self._resume(state, accelerator)
        compiled(state.model, self.run)
        if config.accumulate == 1:
            recorded(state.model, self.run)
        wrapped = accelerator.prepare_model(state.model)
        main = accelerator.is_main_process
        logger = MetricsLogger(self.files if main else None, start, self.run.tracker)
        self.history = logger.history
        epochs, watch, saving = (
            Epochs(rows, config.batch_size, self.seed),
            _Watch(device),
            CheckpointTimer(self.run.save_every),
        )
        meter, progress = _Meter(config.batch_size, device), Progress(self.label, config.iterations, start)
        devices = [device] if device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=devices),  # dropout reads the global stream
            finite_checks(debug),
            torch.enable_grad(),
            tf32_context(config.precision, device),
            enough_memory(
                self.label, "lower its batch_size, or raise accumulate (--set distill.train.accumulate=2, ..)"
            ),
            on_threads(self.run.threads),
            contextlib.closing(logger),
            StopRequests(device) as stop,
        ):
            for number in progress:
                step, last = self._step(number, epochs, accelerator), number + 1 == config.iterations
                self._set_rates(state.optimizer, number)
                state.optimizer.zero_grad(set_to_none=True)
                total, terms = self._backward(wrapped, loss, step, accelerator, after_step)
                norm = self._clip(state.optimizer)
                watch.see(number, total, norm)
                asked = stop.requested(number, last)
                due = self.files is not None and main and (saving.due() or asked)
                if step.logged or due or device.type == "cpu":  # elsewhere a look at the values waits for the device
                    self._check(watch, total, norm, terms)
                if step.logged:
                    logger.add(self._record(number, total, norm, terms, meter, state.optimizer))
                    progress.note = f"loss {logger.history[-1]['loss']:.4g}"
                state.optimizer.step()
                if state.average is not None:
                    state.average.follow(number)
                every = self.run.sample_every
                if main and preview is not None and every and (number + 1) % every == 0:
                    logger.grid(self._preview(preview, state), number + 1)
                if due or (last and main and self.files is not None):
                    logger.keep()
                    saving.time(lambda done=number + 1: self._save(state, done))
                if asked:
                    accelerator.wait_for_everyone()  # the first process may still be writing
                    raise Interrupted(self._farewell(number + 1), asked)
        self.state_bytes = sum(tensor.nbytes for tensor in state.tensors().values())
        state.auxiliary.to(origin)
        trained = state.average.module if state.average is not None else plain(state.model)
        trained = merged(trained) if self.lora else trained
        return plain(trained).to(origin).eval().requires_grad_(False)

    # before the loop

    def _check_share(self, processes: int) -> None:
        parts = processes * self.config.accumulate
        if self.config.batch_size % parts:
            raise UserError(
                f"batch_size {self.config.batch_size} cannot be shared by {processes} processes in "
                f"{self.config.accumulate} parts each: choose a multiple of {parts}"
            )

    def _state(self, model: nn.Module, auxiliary: nn.Module, auxiliary_free: bool, device: torch.device) -> State:
        config = self.config
        model = (sharing if self.lora else copy.deepcopy)(model).to(device)
        model = laid_out(model, self.run, config.precision).train().requires_grad_(not self.lora)
        if self.lora:
            with torch.random.fork_rng():
                torch.manual_seed(derive_seed(self.seed, 13))
                model = adapted(model, self.lora)
        auxiliary = auxiliary.to(device)
        average = Average(model, config.ema) if config.ema else None
        groups = [{"params": [p for p in model.parameters() if p.requires_grad], "config": config}]
        if trainable := [p for p in auxiliary.parameters() if p.requires_grad]:
            free = replace(config, lr_schedule="constant", warmup=0, clip=0.0)
            groups.append({"params": trainable, "config": free if auxiliary_free else config})
        common = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "fused": True}
        if config.optimizer == "adam":
            return State(model, auxiliary, average, torch.optim.AdamW(groups, **common))
        return State(model, auxiliary, average, torch.optim.SGD(groups, momentum=0.9, nesterov=True, **common))

    def _identity(self) -> dict:
        return {
            "kind": "resume",
            "label": self.label,
            "seed": self.seed,
            "config": repr(self.config),
            **({"about": self._about} if self._about else {}),
        }

    @property
    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self.files, self.run.keep)

    def _resume(self, state: State, accelerator: Accelerator) -> int:
        """Load the newest whole checkpoint, the first process's choice, from a folder all of them see."""
        chosen = torch.zeros((), dtype=torch.long, device=accelerator.device)
        if self.files is not None and accelerator.is_main_process:
            chosen.fill_(self._checkpoints.newest_whole(self._identity()))
        broadcast(chosen)
        if start := int(chosen):
            try:
                state.load(self._checkpoints.load(start, self._identity()))
            except (RuntimeError, ValueError, KeyError, IndexError) as error:
                path = self._checkpoints.path(start)
                raise UserError(
                    f"{path} holds another architecture, or is another version's: delete it or choose another --out"
                ) from error
            if accelerator.is_main_process and start < self.config.iterations:
                print(f"{self.label}: going on from iteration {start}", flush=True)
        for tensor in (*state.auxiliary.parameters(), *state.auxiliary.buffers()):  # DDP does this for the model alone
            broadcast(tensor.data)
        return start

    # an iteration

    def _step(self, number: int, epochs: Epochs, accelerator: Accelerator) -> Step:
        rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
        torch.manual_seed(derive_seed(self.seed, number, rank, 2))
        noise = derive_seed(self.seed, number, 0 if self.same_noise else rank, 3)
        return Step(
            number,
            epochs.batch(number)[rank::world],
            torch.Generator(device).manual_seed(noise),
            torch.Generator(device).manual_seed(derive_seed(self.seed, number, 4)),
            number % self.run.log_every == 0 or number + 1 == self.config.iterations,
        )

    @staticmethod
    def _set_rates(optimizer: torch.optim.Optimizer, number: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["config"].learning_rate_at(number)

    def _backward(
        self, wrapped: nn.Module, loss: Loss, step: Step, accelerator: Accelerator, after: Callable[[Step], None] | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradients of the mean over the batch's parts; (loss, terms), detached, means over the parts too."""
        parts, found = self.config.accumulate, []
        for index, part in enumerate(step.parts(parts)):
            last = index + 1 == parts
            with contextlib.nullcontext() if last else accelerator.no_sync(wrapped):
                with autocast(self.config.precision, accelerator.device):
                    total, terms = loss(wrapped, part)
                accelerator.backward(total / parts if parts > 1 else total)
            if after is not None:
                after(part)
            found.append({"loss": total.detach(), **{name: value.detach() for name, value in terms.items()}})
        means = {name: torch.stack([one[name] for one in found if name in one]).mean() for name in found[-1]}
        return means.pop("loss"), means

    @staticmethod
    def _clip(optimizer: torch.optim.Optimizer) -> Tensor:
        """Clip each group's gradient; the model's norm before."""
        norm, *_ = [
            nn.utils.clip_grad_norm_(group["params"], group["config"].clip or math.inf)
            for group in optimizer.param_groups
        ]
        return norm

    def _check(self, watch: "_Watch", total: Tensor, norm: Tensor, terms: dict[str, Tensor]) -> None:
        if (number := watch.first()) < 0:
            return
        values = {"loss": total, "gradient": norm, **terms}
        culprits = ", ".join(name for name, value in values.items() if not torch.isfinite(value)) or "gradient"
        raise UserError(
            f"{self.label} diverged at iteration {number} ({culprits} not finite): lower learning_rate"
            f"{self._last_good()}"
        )

    def _last_good(self) -> str:
        steps = self._checkpoints.steps() if self.files is not None else []
        return f"; last good checkpoint: {self._checkpoints.path(steps[0])}" if steps else ""

    def _record(self, number, total, norm, terms, meter: "_Meter", optimizer) -> dict:
        record = {"step": number, "loss": float(total), "gradient": float(norm)}
        record |= {name: float(value) for name, value in terms.items()}
        return record | {"learning_rate": optimizer.param_groups[0]["lr"], **meter.read(number)}

    # between two iterations

    @staticmethod
    def _preview(preview: Callable[[nn.Module], Tensor], state: State) -> Tensor:
        model = state.average.module if state.average is not None else state.model
        model = copy.deepcopy(model).eval()  # which is not compiled: a few calls are not worth that
        with torch.no_grad():
            return preview(model).cpu()

    def _save(self, state: State, step: int) -> None:
        self._checkpoints.save(state.tensors(), self._identity(), step)

    def _farewell(self, step: int) -> str:
        saved = "a checkpoint holds it" if self.files is not None else "nothing was saved"
        return f"{self.label} stopped after iteration {step}, {saved}"


class _Watch:
    """The first iteration whose loss or gradient was not finite, noted on the device without waiting for it."""

    def __init__(self, device: torch.device):
        self._first = torch.full((), -1, dtype=torch.long, device=device)

    def see(self, number: int, total: Tensor, norm: Tensor) -> None:
        bad = ~(torch.isfinite(total) & torch.isfinite(norm)) & (self._first < 0)
        self._first = torch.where(bad, number, self._first)

    def first(self) -> int:
        """Its number, -1 for none. Waits for the device."""
        return int(self._first)


class Average(nn.Module):
    """The exponential moving average of a model's parameters: m <- decay m + (1 - decay) p, a copy after the first iteration.

    What `torch.optim.swa_utils.AveragedModel` does, without its search for the parameters at every step and its wait for the
    GPU, together a fifth of a small model's step there.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__()
        self.module, self.decay = copy.deepcopy(model).requires_grad_(False), decay
        self._weights = list(self.module.parameters()), list(model.parameters())
        self._others = list(self.module.buffers()), list(model.buffers())

    @torch.no_grad()
    def follow(self, number: int) -> None:
        """Take in the model as iteration `number` left it."""
        if number == 0:
            torch._foreach_copy_(*self._weights)
        else:
            torch._foreach_lerp_(*self._weights, 1 - self.decay)
        if self._others[0]:
            torch._foreach_copy_(*self._others)


class CheckpointTimer:
    """When to save: every so many seconds, and so seldom that writing takes no more than 1/SAVING_SHARE of the time."""

    def __init__(self, seconds: float):
        self.seconds, self._saved, self._cost = seconds, time.monotonic(), 0.0

    def due(self) -> bool:
        return time.monotonic() - self._saved > max(self.seconds, SAVING_SHARE * self._cost * (self.seconds > 0))

    def time(self, save: Callable[[], None]) -> None:
        began = time.monotonic()
        save()
        self._saved = time.monotonic()
        self._cost = self._saved - began


class _Meter:
    """Images a second since the last reading, and the peak of memory."""

    def __init__(self, batch_size: int, device: torch.device):
        self.batch_size, self.device, self._last = batch_size, device, None

    def read(self, number: int) -> dict[str, float]:
        now, last = time.perf_counter(), self._last
        self._last = (number, now)
        memory = {"memory_mib": round(peak_memory(self.device) / 2**20, 1)}
        if last is None or now <= last[1]:
            return memory
        return {"images_per_second": round((number - last[0]) * self.batch_size / (now - last[1]), 2), **memory}
