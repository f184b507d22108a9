"""The one training loop: base models, classifiers, progressive and relational distillation all go through `Trainer`."""

from rddlib.training.batches import Epochs, Step, stream
from rddlib.training.config import OPTIMIZERS, PRECISIONS, RATES, SWITCHES, RunConfig, TrainConfig
from rddlib.training.hardware import chosen_precision, prepared, training_device
from rddlib.training.loop import Trainer
from rddlib.training.resume import Checkpoints

__all__ = [
    "OPTIMIZERS", "PRECISIONS", "RATES", "SWITCHES", "Checkpoints", "Epochs", "RunConfig", "Step", "TrainConfig",
    "Trainer", "chosen_precision", "prepared", "stream", "training_device",
]  # fmt: skip
