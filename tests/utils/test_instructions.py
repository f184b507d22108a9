"""Which instructions are asked for; that they give the same bits was checked with emulated CPUs (docs/reproducing.md)."""

import pytest

from rddlib.training.hardware import check_environment
from rddlib.utils import instructions
from rddlib.utils.errors import UserError
from rddlib.utils.instructions import CHOICE, PORTABLE, pin_instructions


@pytest.mark.parametrize(
    "flags, before, after",
    [
        ("fma avx avx2 avx512f", {}, PORTABLE),
        ("fma avx avx2 bmi2", {"MKL_CBWR": "AVX2"}, PORTABLE | {"MKL_CBWR": "AVX2"}),
        ("fma avx avx2 bmi2", {CHOICE: "native"}, {CHOICE: "native"}),
        ("sse4_2 avx bmi2", {}, {}),
        (None, {}, {}),
    ],
)
def test_what_is_asked_for(flags, before, after, tmp_path, monkeypatch):
    info, environment = tmp_path / "cpuinfo", dict(before)
    if flags:
        info.write_text(f"flags : {flags}\n")
    monkeypatch.setattr(instructions, "Path", lambda path: info)
    monkeypatch.setattr("os.environ", environment)
    pin_instructions()
    assert environment == after


def test_another_choice_is_refused(monkeypatch):
    monkeypatch.setenv(CHOICE, "fast")
    with pytest.raises(UserError, match="RDD_CPU=fast: give portable or native"):
        check_environment()
