"""Which of an x86 CPU's instructions PyTorch uses: the same on every one, so that trainings repeat from machine to machine.

Vectors of another width, and matrix products chosen for a maker's CPUs, add in another order; a training carries each rounding
on. The variables are read when a library first computes, so importing torch before rddlib does no harm.
"""

import os
from pathlib import Path

CHOICE = "RDD_CPU"
CHOICES = ("portable", "native")
PORTABLE = {
    "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch's own loops
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # convolutions
    "MKL_CBWR": "COMPATIBLE",  # matrix products and exponentials, alike on CPUs of all makers
}


def pin_instructions() -> None:
    """Set PORTABLE, what is set already excepted, on Linux where the CPU has AVX2, unless RDD_CPU=native."""
    info = Path("/proc/cpuinfo")
    if os.environ.get(CHOICE) != "native" and info.exists() and " avx2 " in info.read_text(encoding="utf-8"):
        for name, value in PORTABLE.items():
            os.environ.setdefault(name, value)
