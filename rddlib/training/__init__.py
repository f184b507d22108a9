"""The one training loop: base models, classifiers, progressive and relational distillation all go through `Trainer`."""

# ruff: noqa: F401 (the names that other packages use)
from rddlib.training.batches import Epochs, Step, derive_seed
from rddlib.training.config import RunConfig, TrainConfig
from rddlib.training.hardware import chosen_precision, prepared, training_device
from rddlib.training.loop import Trainer
from rddlib.training.resume import Checkpoints
