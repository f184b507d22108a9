"""The one training loop: base models, classifiers, progressive and relational distillation all go through `Trainer`."""

from rddlib.training.batches import Epochs, Step, derive_seed
from rddlib.training.config import LR_SCHEDULES, OPTIMIZERS, PRECISIONS, SWITCHES, RunConfig, TrainConfig
from rddlib.training.hardware import chosen_precision, prepared, training_device
from rddlib.training.loop import Trainer
from rddlib.training.resume import Checkpoints

__all__ = [
    "OPTIMIZERS",
    "PRECISIONS",
    "LR_SCHEDULES",
    "SWITCHES",
    "Checkpoints",
    "Epochs",
    "RunConfig",
    "Step",
    "TrainConfig",
    "Trainer",
    "chosen_precision",
    "prepared",
    "derive_seed",
    "training_device",
]
