"""What the machine offers a training: device, precision, memory format, compilation."""

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from torch import nn
from torch._dynamo import config as dynamo
from torch._functorch import config as functorch

from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.unet import ResidualBlock, UNet
from rddlib.training.config import RunConfig
from rddlib.utils.distributed import join
from rddlib.utils.errors import UserError
from rddlib.utils.instructions import CHOICE, CHOICES
from rddlib.utils.text import counted, say

# That torch.compile may keep: imagenet64 has 18 kinds, each with and without gradients, at each batch size.
KINDS_OF_BLOCKS = 128

# What `accelerate launch` and its configuration tell a training, what of it changes nothing, and who says it here instead.
_PRECISION = "--set distill.train.precision=bf16 (or base.train, ..) chooses the precision"
_SHARDED = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG")
LAUNCHED = {
    "ACCELERATE_MIXED_PRECISION": ("no", _PRECISION),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", "--set distill.train.accumulate=2 (or base.train, ..) accumulates"),
    "ACCELERATE_DYNAMO_BACKEND": ("no", "--set run.compile=always compiles"),
    **{f"ACCELERATE_USE_{how}": ("false", "each process holds the whole model here") for how in _SHARDED},
    "ONEDNN_DEFAULT_FPMATH_MODE": ("strict", _PRECISION),
    "DNNL_DEFAULT_FPMATH_MODE": ("strict", _PRECISION),
    "NVIDIA_TF32_OVERRIDE": ("", "precision auto multiplies as TF32, float32 does not"),
}


def check_environment() -> None:
    """Raise UserError for a variable that is none, or would change numbers behind the record's back."""
    if (chosen := os.environ.get(CHOICE, CHOICES[0])) not in CHOICES:
        raise UserError(f"{CHOICE}={chosen}: give {' or '.join(CHOICES)}")
    for name, (harmless, instead) in LAUNCHED.items():
        if os.environ.get(name, "").lower() not in ("", harmless):
            raise UserError(f"{name}={os.environ[name]} would change numbers behind the record: unset it; {instead}")


def process_group() -> Accelerator:
    """How many processes train together, and the device of this one; precision, accumulation and compilation are ours.

    Raises UserError for what the environment says of these, and for another Accelerator of this process that does.
    """
    check_environment()
    join()
    try:
        found = Accelerator(
            cpu=training_device().type == "cpu",
            mixed_precision="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
    except ValueError as error:  # its state is shared by the whole process
        raise UserError(
            f"another Accelerator was made in this process ({error}): restart it, or leave that out"
        ) from error
    if found.device.type != training_device().type:
        raise UserError(
            f"accelerate was told to train on {found.device.type}, this machine has {training_device().type}: unset "
            "ACCELERATE_USE_CPU and ACCELERATE_TORCH_DEVICE; CUDA_VISIBLE_DEVICES= (empty) trains on the CPU"
        )
    return found


def _busy() -> tuple[str, int] | None:
    """(a line's beginning, half of the cores) where this machine already has more to do than it has cores; None where
    OMP_NUM_THREADS decides, too."""
    if "OMP_NUM_THREADS" in os.environ or not hasattr(os, "getloadavg"):  # Windows does not tell
        return None
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    words = f"this machine is busy ({load:.1f} processes for {counted(cores, 'core')})"
    return (words, max(1, cores // 2)) if load > cores else None


def say_if_busy() -> None:
    """One line on standard error where this machine already has more to do than it has cores.

    Fewer threads are only advised: sums of floats in another order are other bits, and a run is to repeat its own.
    """
    if busy := _busy():
        words, few = busy
        say(
            f"{words}, so trainings take longer than they need to; OMP_NUM_THREADS={few} lets them take {few} of the cores"
        )


@contextlib.contextmanager
def fewer_threads_if_busy(say: Callable[[str], None] = say):
    """Inside, half the threads where this machine is busy, and a line that says so: for measurements, which repeat no bits.

    A thread that waits for one that another program keeps from running can slow a small network down a hundred times.
    """
    words, few = _busy() or ("", 0)
    if few:
        say(f"{words}: measured with {counted(few, 'thread')}; on an idle machine it may be faster")
    with on_threads(few):
        yield


def training_device() -> torch.device:
    """Where training runs: this process's GPU (LOCAL_RANK says which of several), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def chosen_precision(precision: str, device: torch.device) -> torch.dtype:
    """float32 or bfloat16; "auto" takes bfloat16 on CUDA."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "float32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def laid_out(module: nn.Module, run: RunConfig, precision: str) -> nn.Module:
    """The module, in place, in the memory format in which its convolutions are fast on its device."""
    device = next(module.parameters()).device
    fast = device.type == "cuda" or chosen_precision(precision, device) == torch.float32  # on CPUs it slows bf16 down
    if run.channels_last == "always" or (run.channels_last == "auto" and fast):
        module.to(memory_format=torch.channels_last)
    return module


def compiled(module: nn.Module, run: RunConfig) -> nn.Module:
    """The module, in place, with torch.compile where `run` asks for it: our U-Nets in it, or their blocks, else the whole.
    "auto" leaves classifiers alone (DenseNet201 takes over five minutes on a GPU's machine). It happens at the first call."""
    blocks, chosen = run.compile == "blocks", isinstance(module, Denoiser) and next(module.parameters()).is_cuda
    if blocks or run.compile == "always" or (run.compile == "auto" and chosen):
        functorch.donated_buffer = False  # terms with a share take their gradients through one extractor, one by one
        dynamo.recompile_limit = KINDS_OF_BLOCKS  # blocks of one kind share their code
        kind = ResidualBlock if blocks else UNet
        for network in [part for part in module.modules() if isinstance(part, kind)] or [module] * (not blocks):
            network.compile(dynamic=False if blocks else None)
        for network in [part for part in module.modules() if isinstance(part, UNet)] * blocks:
            network.tail.compile(dynamic=False)
    return module


def prepared(module: nn.Module, run: RunConfig, precision: str) -> nn.Module:
    """Both: for modules that are only applied, such as teachers and extractors; a function without parameters stays as it is.
    In place."""
    if next(module.parameters(), None) is None:
        return module
    return compiled(laid_out(module, run, precision), run)


def plain(module: nn.Module) -> nn.Module:
    """The module as before `prepared`, in place."""
    for part in module.modules():
        part._compiled_call_impl = None
    return module.to(memory_format=torch.contiguous_format)


@contextlib.contextmanager
def on_threads(number: int):
    """Inside, PyTorch works with so many threads on the CPU; 0: with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def tf32_context(precision: str, device: torch.device):
    """Inside, what is left in float32 on CUDA is multiplied as TF32, unless precision is "float32"."""
    backends, allowed = (torch.backends.cuda.matmul, torch.backends.cudnn), precision != "float32"
    before = [backend.allow_tf32 for backend in backends] if device.type == "cuda" else []
    try:
        for backend, _ in zip(backends, before, strict=False):
            backend.allow_tf32 = allowed
        yield
    finally:
        for backend, value in zip(backends, before, strict=False):
            backend.allow_tf32 = value


def autocast(precision: str, device: torch.device):
    """The context that a forward pass runs in."""
    dtype = chosen_precision(precision, device)
    return torch.autocast(device.type, dtype) if dtype != torch.float32 else contextlib.nullcontext()


def peak_memory(device: torch.device | str) -> int:
    """Most bytes held so far: allocated on the GPU, resident in this process on a CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    resident = proc_field("/proc/self/status", "VmHWM")
    if resident is not None:
        return resident
    import resource  # absent on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextlib.contextmanager
def enough_memory(what: str, remedy: str):
    """Inside, memory that does not suffice is a UserError in one line, with the remedy."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error):  # of a GPU, of a CPU
            raise UserError(f"{what} does not fit into memory: {remedy}") from error
        raise


def release_memory() -> None:
    """Give back what is no longer used: on a CPU the allocator would otherwise hold it, and it would count."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # only the GNU C library has it
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak(device: str) -> int:
    """Forget the peak so far; bytes in use now."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return in_use(device)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM starts anew
        return in_use(device)
    except OSError:
        return peak_memory(device)  # elsewhere the peak cannot be reset, but so far it is that of the inputs


def in_use(device: str) -> int:
    """Bytes in use now; 0 where the system does not tell."""
    if device.startswith("cuda"):
        return torch.cuda.memory_allocated(device)
    return proc_field("/proc/self/status", "VmRSS") or 0


def proc_field(path: str, field: str) -> int | None:
    """Bytes that Linux states under a name, such as VmHWM in /proc/self/status; None elsewhere."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)


def free_memory(device: str) -> int | None:
    """Bytes that can still be had, None where the system does not tell."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    return proc_field("/proc/meminfo", "MemAvailable")
