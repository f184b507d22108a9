"""The fused form in Triton's interpreter, through Triton's compiler, and refused where it cannot run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import refused

from rddlib.losses import is_p2p_loss
from rddlib.losses.relations import check_form

TOP = Path(__file__).resolve().parents[2]


ALIKE = "gradient_goes or twice or dead_pixel or memory_layout or bf16_gradient or float16"  # tests of every form


def run_form(**environment):
    """What pytest says of `fused_form.py` in a process of its own: Triton reads TRITON_INTERPRET when it is imported."""
    files = ["tests/losses/fused_form.py", "tests/losses/test_losses.py", "-k", f"fused_form or {ALIKE}"]
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=TOP, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout


@pytest.mark.ci
def test_equals_the_reference_in_tritons_interpreter():
    pytest.importorskip("triton", reason="triton comes with PyTorch for CUDA alone")
    assert "passed" in run_form(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="", RDD_FUSED="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_equals_the_reference_on_a_gpu():
    assert "passed" in run_form(TRITON_INTERPRET="0", RDD_FUSED="cuda")


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from rddlib.losses import fused

for kernel, (maps, sums, form) in zip(
    [fused._kl_kernel, fused._gradient_kernel] * 3,
    [("bf16", "fp32", (True, True))] * 2 + [("fp32", "fp32", (False, False))] * 2 + [("fp64", "fp64", (False, True))] * 2,
):
    width = fused.CHANNELS // (2 if sums == "fp64" else 1)
    constants = {"GROUPS": 4, "WIDE": 16, "ROWS": fused.ROWS, "COLUMNS": fused.COLUMNS, "CHANNELS": width}
    constants |= {"DIFFERENCE": form[0], "SYMMETRIC": form[1], "PRECISION": "tf32" if maps == "fp32" else "ieee"}
    pointers = dict.fromkeys(("S", "T", "D", "K_S", "K_T", "K_D", "G"), "*" + maps)
    pointers |= {"log_Z_S": "*" + sums, "log_Z_T": "*" + sums, "kl": "*fp64"}
    kinds = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name not in constants}
    source = ASTSource(kernel, kinds, {n: constants[n] for n in kernel.arg_names if n in constants}, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": fused.WARPS})
    print(kernel.__name__, maps, made.metadata.shared, "mma" in made.asm["ptx"], len(made.asm["cubin"]) > 0)
"""


@pytest.mark.ci
def test_compiles_for_an_h100_without_one(tmp_path):
    """With tensor cores and within the shared memory of a block (227 KiB)."""
    pytest.importorskip("triton", reason="triton comes with PyTorch for CUDA alone")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(TOP)}
    done = subprocess.run([sys.executable, "-c", COMPILE], cwd=TOP, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 6
    assert all(int(shared) <= 227 * 1024 and rest == ["True", "True"] for _, _, shared, *rest in lines), lines


def test_elsewhere_it_is_refused_in_a_line(monkeypatch):
    x = torch.ones(1, 2, 2, 2)
    assert "impl=fused runs on CUDA, not on cpu: choose auto" in refused(is_p2p_loss, x, x, impl="fused")
    monkeypatch.setitem(sys.modules, "rddlib.losses.fused", None)  # what a missing triton looks like
    monkeypatch.delattr("rddlib.losses.fused", raising=False)
    assert "needs the package triton" in refused(check_form, "fused", torch.device("cuda"))
