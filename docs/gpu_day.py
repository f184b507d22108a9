"""All that is to be measured once a GPU is at hand, step by step; what is to be taken home lies in one small folder.

python docs/gpu_day.py --images CIFAR10_FOLDER [--out runs/gpu] [--wheels wheels]     # make gpu IMAGES=CIFAR10_FOLDER
python docs/gpu_day.py --images CIFAR10_FOLDER --only study --limit 540 --set base.train.iterations=5000
python docs/gpu_day.py --tiny                                                         # the same on a CPU, in minutes

Each step has a time limit, and what it left is kept whatever becomes of the others: JSON, CSV, PNG in OUT/home, with
steps.json, which says what ran, when, on what and how it ended. Run again, it goes on with the steps that are not done.
Those of QUICK end within nine minutes together: no training in them is compiled, which takes minutes. The study goes on where
it was stopped, so that --limit does it in pieces.
Nothing is fetched: what a machine with PyTorch and typer lacks can be brought along. Where there is a network, python
docs/gpu_day.py --fetch FOLDER fills the folder for --wheels, whatever that machine's Python.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
KEPT = (".json", ".jsonl", ".csv", ".png", ".txt", ".xml", ".html")
LARGEST = 16 * 2**20  # bytes of what is taken home, all together
WHEELS = ("torch-fidelity", "diffusers", "importlib-metadata", "zipp")  # what else they need comes with PyTorch
FAREWELL = 20  # seconds between asking a step to stop, and so to save, and stopping it
GPU_TESTS = (
    "tests/test_on_device.py",
    "tests/losses/test_fused.py",
    "tests/data/test_data.py",
)  # that a GPU adds tests to
QUICK = {  # and their limits in seconds: 540 together
    "smoke": 60,
    "test_gpu": 120,
    "bench_step_cifar10": 120,
    "bench_step_imagenet64": 120,
    "bench_losses_is_p2p": 60,
    "bench_losses_m_p2p": 60,
}
LIMITS = QUICK | {"metric_network": 300, "study": 4 * 3600}  # of all others: LONGEST
LONGEST = 900
EAGER, COMPILED = "float32 eager,bf16 graphs", "float32 eager,tf32,bf16 channels_last,fused losses,bf16 blocks,auto"
STEPS = {  # a float32 step of imagenet64's whole batch of 256 takes eight seconds
    "cifar10": ("--what", "rdd", "--steps", "10"),
    "imagenet64": ("--what", "rdd", "--steps", "3", "--batch", "32"),
}
ABLATIONS = ("losses", "batch", "tau_is", "balance")
METHODS = "pd,pd_stages,cfd,rcfd,rdd,cfd_is,cfd_pd,cfd_is_pd"
TINY = ("base.train.iterations=2", "progressive.train.iterations=1", "extractor.train.iterations=2")
TINY += (
    "distill.iterations=[1,1,1]",
    "evaluation.samples=80",
    "evaluation.batch_size=80",
    "evaluation.baselines=[]",
    "jobs=1",
)


@dataclass(frozen=True)
class Step:
    """A command, run in the checkout; limit: seconds; results: files and folders of which a copy is taken home."""

    name: str
    command: tuple[str, ...]
    limit: float
    results: tuple[Path, ...] = ()


def steps_of(out: Path, images: str, tiny: bool, settings: Sequence[str] = (), limit: float = 4 * 3600) -> list[Step]:
    """What there is to do, in order; tiny: in minutes, on a CPU; settings: FIELD=VALUE of the last study; limit: of each."""
    python, rdd = sys.executable, (sys.executable, "-m", "rddlib.cli")
    device, work, steps = ("cpu" if tiny else "cuda"), out / "work", []

    def step(name: str, command: tuple[str, ...], *results: Path) -> None:
        longest = LONGEST if tiny else LIMITS.get(name, LONGEST)
        steps.append(Step(name, command, min(longest, limit), results))

    def bench(name: str, *options: str) -> None:
        path = work / f"bench_{name}.json"
        step(f"bench_{name}", (*rdd, "bench", *options, "--out", str(path)), path)

    def study(name: str, profile: str, *settings: str) -> None:
        folder = work / name
        chosen = [word for setting in settings for word in ("--set", setting)]
        command = (*rdd, "study", "--profile", profile, "--no-notebooks", "--out", str(folder), *chosen)
        step(name, command, folder)

    if not tiny:  # whose own study comes last
        study("smoke", "smoke")
    chosen = (GPU_TESTS[0], "-k", "queue") if tiny else (*GPU_TESTS, "-m", "gpu and not slow", "-n4")
    report = work / "test_gpu.xml"
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, f"--junitxml={report}")
    step("test_gpu", pytest, report)
    quick = {"smoke": ("--what", "pd", "--batch", "2", "--steps", "1")} if tiny else STEPS
    how = () if tiny else ("--how", EAGER)
    for profile, few in quick.items():
        bench(f"step_{profile}", "step", "--profile", profile, *few, *how)
    quick = ("--size", "cifar10", "--repetitions", "1", "--dtype", "float32")
    quick = quick if tiny else ("--size", "cifar10,imagenet64", "--dtype", "bfloat16")
    for loss in ("is_p2p",) if tiny else ("is_p2p", "m_p2p"):
        bench(f"losses_{loss}", "losses", "--device", device, "--loss", loss, *quick)
    if tiny:
        study("study", "smoke", "methods=[pd,rdd]", *TINY)
    else:
        for profile, few in STEPS.items():
            bench(f"compiled_{profile}", "step", "--profile", profile, *few, "--how", COMPILED)
        metric, data = work / "metric.safetensors", f"data.root={images}"
        folder, few = work / "photos", ("--first", "--seeds", "1", "--jobs", "8", "--set", data)
        command = (*rdd, "ablate", *ABLATIONS, "--profile", "photos", *few, "--out", str(folder))
        step("photos_ablations", command, folder / "ablations")
        command = (*rdd, "metric-network", "cifar10_small", "--out", str(metric), "--set", data)
        step("metric_network", command, metric.with_suffix(".json"))
        chosen = (data, f"methods=[{METHODS}]", f"evaluation.network={metric.resolve()}", *settings)
        study("study", "cifar10_small", *chosen)
    return steps


def run_steps(steps: Sequence[Step], home: Path) -> bool:
    """Run those that are not done, in order; returns whether all are. home: where steps.json and copies of results go."""
    home.mkdir(parents=True, exist_ok=True)
    notes = home / "steps.json"
    done = json.loads(notes.read_text()) if notes.exists() else {}
    for step in steps:
        before = done.get(step.name, {})
        if before.get("status") == 0 and before["command"] == list(step.command):
            print(f"{step.name}: done before, in {before['seconds']} s", flush=True)
            continue
        print(f"{step.name}: at most {step.limit:.0f} s", flush=True)
        began, clock, status = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.monotonic(), "cut off"
        try:
            status = _run(step, home / f"{step.name}.txt")
        finally:  # of a step that was cut off too
            left_out = [name for result in step.results for name in _take_home(result, home / step.name, home)]
            done[step.name] = {"command": list(step.command), "status": status, "began": began, "limit": step.limit}
            done[step.name] |= {"seconds": round(time.monotonic() - clock, 1), "left_out": left_out, **_facts()}
            _write(notes, json.dumps(done, indent=1) + "\n")
        print(f"{step.name}: {'done' if status == 0 else status}, {done[step.name]['seconds']} s", flush=True)
    return all(done.get(step.name, {}).get("status") == 0 for step in steps)


def _run(step: Step, log: Path) -> int | str:
    """0, or why it is not done; what it says goes into the log."""
    place = {"PYTHONPATH": os.pathsep.join(filter(None, [str(TOP), os.environ.get("PYTHONPATH")]))}
    place |= {"RDD_PROGRESS": "line", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    for result in step.results:
        result.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as said:
        process = subprocess.Popen(
            step.command, cwd=TOP, env=os.environ | place, stdout=said, stderr=said, start_new_session=True
        )
        try:
            code = process.wait(step.limit)
            return code if code == 0 else f"ended with {code}, see {log.name}"
        except subprocess.TimeoutExpired:
            return f"not done in {step.limit:.0f} s"
        finally:  # on Ctrl-C too
            _stop(process)


def _stop(process: subprocess.Popen) -> None:
    """Ask a step and all that it started to stop, which lets a training save, then stop what is left."""
    for number, wait in ((signal.SIGTERM, FAREWELL), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            continue


def _take_home(result: Path, to: Path, home: Path) -> list[str]:
    """Copy the small files of a result; returns the names of those that did not fit."""
    left_out, files = [], sorted(result.rglob("*")) if result.is_dir() else [result] * result.exists()
    for path in sorted(
        (path for path in files if path.suffix in KEPT and path.is_file()), key=lambda p: p.stat().st_size
    ):
        target = to / (path.relative_to(result) if result.is_dir() else path.name)
        old = target.stat().st_size if target.exists() else 0
        if _size(home) - old + path.stat().st_size > LARGEST:
            left_out.append(str(target.relative_to(home)))
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        if path.name.startswith("bench_") and path.suffix == ".json":
            _as_csv(path, target.with_suffix(".csv"))
    return left_out


def _as_csv(report: Path, path: Path) -> None:
    import pandas as pd

    found = json.loads(report.read_text())
    pd.json_normalize(found if isinstance(found, list) else found["rows"]).to_csv(path, index=False)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _facts() -> dict:
    sys.path.insert(0, str(TOP))
    from benchmarks.process import machine

    return {name: value for name, value in machine().items() if name != "written"}


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def bring(folder: Path, *, fetch: bool) -> None:
    """Fetch wheels into the folder, or install those that it holds."""
    how = ("download", "-c", TOP / "constraints.txt", "--dest") if fetch else ("install", "--no-index", "--find-links")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    subprocess.run([*pip, *how, folder, "--no-deps", *WHEELS], check=True)


def main() -> int:
    """0 where all is done, 1 where a step is not, 2 for wrong input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="CIFAR-10 in a folder: torchvision's files, or images in folders")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to install what is missing from")
    parser.add_argument("--fetch", type=Path, help="only fill such a folder")
    parser.add_argument("--tiny", action="store_true", help="try it on a CPU, in minutes")
    parser.add_argument("--only", help="some of the steps, with commas between them")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a number of the last study")
    parser.add_argument("--limit", type=float, default=4 * 3600.0, help="seconds that a step may take at most")
    given = parser.parse_args()
    if given.fetch:
        bring(given.fetch, fetch=True)
        return 0
    if not given.tiny and not (given.images and Path(given.images).is_dir()):
        parser.error(f"--images {given.images}: no such folder; name one that holds CIFAR-10, or add --tiny")
    if given.limit <= 0:
        parser.error(f"--limit {given.limit:g}: give more than 0 seconds")
    if given.wheels:
        if not given.wheels.is_dir():
            parser.error(f"--wheels {given.wheels}: no such folder; --fetch makes one")
        bring(given.wheels, fetch=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which stops the step that runs, as Ctrl-C does
    import torch

    if not given.tiny and not torch.cuda.is_available():
        parser.error("this machine has no GPU that PyTorch sees: add --tiny to try it on the CPU")
    out = given.out.resolve()
    steps = steps_of(out, str(Path(given.images or ".").resolve()), given.tiny, given.set, given.limit)
    chosen = (given.only or ",".join(step.name for step in steps)).split(",")
    if unknown := set(chosen) - {step.name for step in steps}:
        parser.error(f"--only {','.join(sorted(unknown))}: known are {', '.join(step.name for step in steps)}")
    whole = run_steps([step for step in steps if step.name in chosen], out / "home")
    print(f"{out / 'home'}: {_size(out / 'home') / 2**20:.1f} MiB to take home")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
