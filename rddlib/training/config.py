"""What a training is (TrainConfig) and how this machine runs it (RunConfig)."""

import math
from dataclasses import dataclass

LR_SCHEDULES = ("constant", "cosine")
PRECISIONS = ("auto", "float32", "tf32", "bf16")
OPTIMIZERS = ("adam", "sgd")
SWITCHES = ("auto", "always", "never")


def _one_of(config, name: str, known: tuple[str, ...]) -> None:
    if getattr(config, name) not in known:
        raise ValueError(f"{name} is {getattr(config, name)!r}, expected one of {known}")


@dataclass(frozen=True)
class TrainConfig:
    """What is trained.

    iterations; batch_size: images an iteration, over all processes; learning_rate; lr_schedule: "constant" or "cosine"
    (annealed to 0); warmup: iterations of linear rise; clip: largest gradient norm, 0 for none; ema: decay of the averaged
    weights, 0 for none; optimizer: "adam" (AdamW where weight_decay > 0) or "sgd" with Nesterov momentum 0.9; weight_decay;
    accumulate: parts that a batch is worked through in, to save memory (whatever relates images of a batch, batch
    normalisation and the relational losses, then sees one part at a time); precision: "float32", "tf32", "bf16", or
    "auto", bf16 where the hardware multiplies it fast.
    """

    iterations: int
    batch_size: int
    learning_rate: float
    lr_schedule: str = "constant"
    warmup: int = 0
    clip: float = 1.0
    ema: float = 0.0
    optimizer: str = "adam"
    weight_decay: float = 0.0
    accumulate: int = 1
    precision: str = "auto"

    def __post_init__(self):
        for name in ("iterations", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("learning_rate", "warmup", "clip", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 0")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}, expected [0, 1)")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate is {self.accumulate}, expected a divisor of batch_size {self.batch_size}")
        _one_of(self, "lr_schedule", LR_SCHEDULES)
        _one_of(self, "precision", PRECISIONS)
        _one_of(self, "optimizer", OPTIMIZERS)

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of iteration `step`, counted from 0."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        fall = 0.5 * (1 + math.cos(math.pi * step / self.iterations)) if self.lr_schedule == "cosine" else 1.0
        return self.learning_rate * rise * fall


@dataclass(frozen=True)
class RunConfig:
    """How the machine runs a training. Nothing here changes what is learned, but for rounding.

    channels_last, compile: "always", "never" or "auto", which takes channels_last where it is faster (on CUDA, and in
    float32 on a CPU) and torch.compile on CUDA. save_every: seconds between checkpoints, or twenty times what writing one
    takes where that is more; keep: checkpoints kept. log_every: iterations between records of metrics.jsonl; sample_every:
    iterations between grids of samples from one noise, 0 for none; tensorboard: write the records for TensorBoard too.
    """

    channels_last: str = "auto"
    compile: str = "auto"
    save_every: float = 30.0
    keep: int = 2
    log_every: int = 25
    sample_every: int = 0
    tensorboard: bool = False

    def __post_init__(self):
        _one_of(self, "channels_last", SWITCHES)
        _one_of(self, "compile", SWITCHES)
        for name, least in (("save_every", 0), ("keep", 1), ("log_every", 1), ("sample_every", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}")
