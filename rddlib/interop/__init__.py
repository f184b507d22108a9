"""Models from elsewhere and for elsewhere: the files published with RCFD and RDD, pipelines of diffusers, TorchScript."""

from rddlib.interop.released import load_released_classifier, load_released_unet

__all__ = ["load_released_classifier", "load_released_unet"]
