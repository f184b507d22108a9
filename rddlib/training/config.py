"""What a training is (TrainConfig) and how this machine runs it (RunConfig)."""

import math
from dataclasses import dataclass

from rddlib.utils.checks import at_least, check, one_of

LR_SCHEDULES = ("constant", "cosine")
PRECISIONS = ("auto", "float32", "tf32", "bf16")
OPTIMIZERS = ("adam", "sgd")
SHIPPED = ("all", "earlier", "start", "none")
SWITCHES = ("auto", "always", "never")
TRACKERS = ("none", "tensorboard", "wandb", "mlflow", "aim")


@dataclass(frozen=True)
class TrainConfig:
    """What is trained. Raises ValueError for a value out of range."""

    iterations: int  # updates of the weights
    batch_size: int  # images an iteration, over all processes
    learning_rate: float  # the highest, of AdamW or SGD
    lr_schedule: str = "constant"  # "constant" or "cosine": annealed to 0
    warmup: int = 0  # iterations of linear rise
    clip: float = 1.0  # largest gradient norm, 0: none
    ema: float = 0.0  # decay of the averaged weights, 0: none
    optimizer: str = "adam"  # "adam": AdamW where weight_decay > 0; "sgd": with Nesterov momentum 0.9
    weight_decay: float = 0.0  # of AdamW or SGD, 0: none
    accumulate: int = (
        1  # parts that a batch is worked through in, to save memory; what relates images sees one at a time
    )
    precision: str = "auto"  # "float32", "tf32", "bf16"; "auto": bf16 on CUDA, else float32

    def __post_init__(self):
        at_least(self, 1, "iterations", "batch_size", "accumulate")
        at_least(self, 0, "learning_rate", "warmup", "clip", "weight_decay")
        for name in ("learning_rate", "clip", "weight_decay"):
            check(getattr(self, name) < math.inf, f"{name} is infinite")
        check(0 <= self.ema < 1, f"ema is {self.ema}, expected [0, 1)")
        parts = f"accumulate is {self.accumulate}, expected a divisor of batch_size {self.batch_size}"
        check(self.batch_size % self.accumulate == 0, parts)
        one_of(self, LR_SCHEDULES, "lr_schedule")
        one_of(self, PRECISIONS, "precision")
        one_of(self, OPTIMIZERS, "optimizer")

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of iteration `step`, counted from 0."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        fall = 0.5 * (1 + math.cos(math.pi * step / self.iterations)) if self.lr_schedule == "cosine" else 1.0
        return self.learning_rate * rise * fall


@dataclass(frozen=True)
class RunConfig:
    """How the machine runs a training. Nothing here changes what is learned, but for rounding. Raises ValueError for a value
    out of range."""

    channels_last: str = "auto"  # where it is faster: on CUDA, and in float32 on a CPU; or "always", "never"
    # torch.compile of denoisers, on CUDA where a training is long enough for it; "always": of all; "blocks": of our U-Nets'
    # blocks, each kind once, which takes less time than the whole; or "never"
    compile: str = "auto"
    graphs: str = "auto"  # U-Nets and extractors as CUDA graphs, where one process trains, a batch at once; or "never"
    threads: int = 0  # of a training on the CPU, 0: all it may take; another number of them rounds otherwise
    save_every: float = 30.0  # seconds between checkpoints, or twenty times what writing one takes where that is more
    keep: int = 2  # checkpoints
    log_every: int = 25  # iterations between records of metrics.jsonl
    sample_every: int = 0  # iterations between grids of samples from one noise, 0: none
    # models taken from the package instead of trained: "all", "earlier" (all but the students of each method's last halving),
    # "start" (all but students) or "none"
    shipped: str = "start"
    tracker: str = "none"  # who else gets the records, on this machine's disk: "tensorboard", "wandb", "mlflow", "aim"

    def __post_init__(self):
        one_of(self, SWITCHES, "channels_last")
        one_of(self, (*SWITCHES, "blocks"), "compile")
        one_of(self, ("auto", "never"), "graphs")
        one_of(self, SHIPPED, "shipped")
        one_of(self, TRACKERS, "tracker")
        at_least(self, 0, "threads", "save_every", "sample_every")
        at_least(self, 1, "keep", "log_every")
