"""Import and export of models: files published with RCFD and RDD, pipelines of diffusers, TorchScript."""

from rddlib.interop.files import load_classifier, load_model
from rddlib.interop.pipelines import from_diffusers, to_diffusers
from rddlib.interop.released import load_released_classifier, load_released_unet
from rddlib.interop.torchscript import export_torchscript

__all__ = [
    "export_torchscript",
    "from_diffusers",
    "load_classifier",
    "load_model",
    "load_released_classifier",
    "load_released_unet",
    "to_diffusers",
]
