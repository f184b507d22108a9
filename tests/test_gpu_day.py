"""`make gpu`: steps that fail, hang and are done, in seconds; and all of it at tiny sizes on a CPU."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]


@pytest.fixture
def gpu_day(monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_day", TOP / "docs/gpu_day.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_day", module)
    spec.loader.exec_module(module)
    return module


def python(module, name, code, folder, limit=60.0, results=()):
    return module.Step(name, (sys.executable, "-c", code), limit, tuple(folder / result for result in results))


def test_each_step_stands_alone_and_what_is_not_done_runs_again(gpu_day, tmp_path, monkeypatch):
    work, home = tmp_path / "work", tmp_path / "home"
    write = f"import pathlib, sys; f = pathlib.Path({str(work)!r}) / 'bench_a.json'; "
    rows = [{"x": 1, "parts": {"y": 2}}]
    steps = [
        python(
            gpu_day, "good", write + f"f.write_text({json.dumps(json.dumps(rows))})", work, results=["bench_a.json"]
        ),
        python(gpu_day, "bad", "import sys; sys.exit('out of luck')", work),
        python(gpu_day, "slow", "import time; print('on my way', flush=True); time.sleep(600)", work, limit=3),
        python(gpu_day, "last", f"import os, pathlib; pathlib.Path({str(work)!r}, 'n').open('a').write('x')", work),
    ]
    assert not gpu_day.run_steps(steps, home)
    found = json.loads((home / "steps.json").read_text())
    assert [found[step.name]["status"] for step in steps] == [0, "ended with 1, see bad.txt", "not done in 3 s", 0]
    assert "out of luck" in (home / "bad.txt").read_text() and "on my way" in (home / "slow.txt").read_text()
    assert json.loads((home / "good/bench_a.json").read_text()) == rows
    assert (home / "good/bench_a.csv").read_text().split() == ["x,parts.y", "1,2"]
    assert all(found["good"][fact] for fact in ("hardware", "torch", "git_commit", "began", "command"))
    repaired = [steps[0], python(gpu_day, "bad", "pass", work), steps[3]]
    assert gpu_day.run_steps(repaired, home) and (work / "n").read_text() == "x"  # what was done was not done again
    assert json.loads((home / "steps.json").read_text())["bad"]["status"] == 0


def test_what_is_taken_home_is_small(gpu_day, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_day, "LARGEST", 3000)
    work = tmp_path / "work"
    make = f"import pathlib; w = pathlib.Path({str(work)!r}); w.mkdir(); "
    make += (
        "[(w / n).write_bytes(bytes(s)) for n, s in (('a.csv', 90), ('b.png', 1000), ('c.json', 9000), ('d.pt', 9))]"
    )
    gpu_day.run_steps([python(gpu_day, "one", make, tmp_path, results=["work"])], tmp_path / "home")
    assert sorted(path.name for path in (tmp_path / "home/one").iterdir()) == ["a.csv", "b.png"]
    assert json.loads((tmp_path / "home/steps.json").read_text())["one"]["left_out"] == ["one/c.json"]


def test_a_step_that_is_cut_off_is_taken_home_too(gpu_day, tmp_path, monkeypatch):
    write = f"import pathlib, time; pathlib.Path({str(tmp_path / 'a.json')!r}).write_text('[]'); time.sleep(600)"
    monkeypatch.setattr(gpu_day.subprocess.Popen, "wait", cut_once(gpu_day.subprocess.Popen.wait, tmp_path / "a.json"))
    with pytest.raises(SystemExit):
        gpu_day.run_steps([python(gpu_day, "one", write, tmp_path, results=["a.json"])], tmp_path / "home")
    assert (tmp_path / "home/one/a.json").read_text() == "[]"
    assert json.loads((tmp_path / "home/steps.json").read_text())["one"]["status"] == "cut off"


def cut_once(wait, path):
    """Popen.wait, whose first call ends as Ctrl-C does, once a file is there."""
    calls = []

    def cut(process, limit):
        if calls:
            return wait(process, limit)
        calls.append(process)
        while not path.exists() or path.read_text() != "[]":
            time.sleep(0.01)
        raise SystemExit(1)

    return cut


def test_every_step_is_planned_with_its_limit(gpu_day, tmp_path):
    steps = gpu_day.steps_of(tmp_path, "/photos", tiny=False)
    names, quick = [step.name for step in steps], gpu_day.QUICK
    assert names == [*quick, "bench_compiled_cifar10", "bench_compiled_imagenet64", *names[-3:]]
    assert names[-3:] == ["photos_ablations", "metric_network", "study"] and "data.root=/photos" in steps[-1].command
    assert sum(step.limit for step in steps if step.name in quick) <= 540
    assert all(0 < step.limit <= 4 * 3600 for step in steps)
    assert max(step.limit for step in gpu_day.steps_of(tmp_path, "/photos", tiny=False, limit=99)) == 99


@pytest.mark.parametrize("words, fault", [([], "no such folder"), (["--tiny", "--wheels", "nowhere"], "--fetch")])
def test_wrong_input_is_a_line(tmp_path, words, fault):
    command = [sys.executable, TOP / "docs/gpu_day.py", "--out", tmp_path, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and fault in done.stderr.splitlines()[-1] and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_all_of_it_at_tiny_sizes(tmp_path):
    command = [sys.executable, TOP / "docs/gpu_day.py", "--tiny", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    steps = json.loads((tmp_path / "home/steps.json").read_text())
    assert done.returncode == 0 and all(step["status"] == 0 for step in steps.values()), (done.stdout, steps)
    for name in ("study/results.csv", "study/receipts.json", "study/grid.png", "bench_step_smoke/bench_step_smoke.csv"):
        assert (tmp_path / "home" / name).stat().st_size > 0
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.count("done before") == len(steps)
