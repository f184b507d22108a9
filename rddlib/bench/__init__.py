"""Speed and memory, as ratios within one run: the relational losses here, a training step in `rddlib.bench.step`."""

from rddlib.bench.losses import CIFAR, IMAGENET, IMPLS, SIZES, SWEEP, Size, bench_losses, format_table, write_json

__all__ = [
    "CIFAR",
    "IMAGENET",
    "IMPLS",
    "SIZES",
    "SWEEP",
    "Size",
    "bench_losses",
    "format_table",
    "write_json",
]
