"""The training loop: what it learns, repeats, writes down and refuses."""

import itertools
import json
import math
import os
import struct
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import refused, tiny_denoiser
from torch import nn

from rddlib.diffusion.unet import ResidualBlock
from rddlib.training import Checkpoints, Epochs, RunConfig, TrainConfig, Trainer, chosen_precision, derive_seed, metrics
from rddlib.training.hardware import compiled, fewer_threads_if_busy, plain, say_if_busy, tf32_context
from rddlib.training.loop import COMPILE_FROM, CheckpointTimer, _Watch
from rddlib.utils.errors import UserError

ROWS = 100
CONFIG = TrainConfig(60, 8, 1e-2, lr_schedule="cosine", warmup=5, ema=0.9)
EACH = RunConfig(save_every=0, log_every=1)  # a checkpoint after each iteration


def regression(model, step):
    x = torch.randn(8, 4, generator=step.generator, device=step.generator.device)
    total = ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()
    return total, {"mse": total}


def net():
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 1))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_loop_learns():
    trainer = Trainer(TrainConfig(300, 8, 1e-2))
    trained = trainer.fit(nn.Linear(4, 1), regression, ROWS)
    assert trainer.history[-1]["loss"] < 1e-3 < trainer.history[0]["loss"]
    assert not trained.training and not any(p.requires_grad for p in trained.parameters())


def test_it_repeats_and_leaves_model_and_random_stream_alone():
    model = net()
    before, stream = weights(model), torch.random.get_rng_state()
    a, b, c = (weights(Trainer(CONFIG, seed).fit(model, regression, ROWS)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(weights(model), before) and torch.equal(torch.random.get_rng_state(), stream)


def test_the_end_is_kept_until_its_owner_clears_it(tmp_path):
    model, path = net(), tmp_path / "run"
    trained = Trainer(CONFIG, files=path, run=replace(EACH, keep=3)).fit(model, regression, ROWS)
    assert Checkpoints(path).steps() == [60, 59, 58]

    def never(model, step):
        raise AssertionError("a finished training was run again")

    again = Trainer(CONFIG, files=path).fit(model, never, ROWS)
    assert torch.equal(weights(again), weights(trained))
    Checkpoints(path).clear()
    assert os.listdir(tmp_path) == ["run.metrics.jsonl"]


@pytest.mark.parametrize("name", ["student", "run[1]"])
def test_checkpoints_are_found_by_their_whole_name_taken_literally(tmp_path, name):
    for files, step in ((name, 5), (f"{name}.v2", 8)):
        Checkpoints(tmp_path / files).path(step).touch()
    assert Checkpoints(tmp_path / name).steps() == [5]


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    fit = lambda model: Trainer(TrainConfig(2, 8, 1e-2), files=tmp_path / "it").fit(model, regression, ROWS)  # noqa: E731
    fit(nn.Linear(4, 1))
    assert "another architecture" in refused(fit, net())


def test_saving_takes_a_small_share_of_the_time(monkeypatch):
    clock = itertools.count().__next__
    monkeypatch.setattr("rddlib.training.loop.time", types.SimpleNamespace(monotonic=lambda: float(clock())))
    timer = CheckpointTimer(5.0)
    timer.time(lambda: [clock() for _ in range(9)])  # saving takes 10 s of this clock
    assert next(k for k in itertools.count(1) if timer.due()) == 201


def test_channels_last_changes_the_speed_and_only_the_rounding():
    def loss(model, step):
        return (model(torch.randn(8, 3, 8, 8, generator=step.generator)) ** 2).mean(), {}

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 1, 3))
    runs = [RunConfig(channels_last=switch) for switch in ("never", "always")]
    a, b = (Trainer(TrainConfig(5, 8, 1e-2, ema=0.5), run=run).fit(model, loss, ROWS) for run in runs)
    torch.testing.assert_close(weights(a), weights(b), rtol=1e-4, atol=1e-5)
    assert all(p.is_contiguous() for p in b.parameters())


def test_accumulated_parts_make_the_same_gradient():
    x = torch.randn(ROWS, 4)

    def loss(model, step):
        return ((model(x[step.rows]) - x[step.rows].sum(1, keepdim=True)) ** 2).mean(), {}

    model, config, seen = nn.Linear(4, 1), TrainConfig(20, 8, 1e-2), []
    a, b = (Trainer(replace(config, accumulate=parts)) for parts in (1, 4))
    whole = a.fit(model, loss, ROWS)
    parts = b.fit(model, loss, ROWS, after_step=lambda step: seen.append((step.number, len(step.rows))))
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-5, atol=1e-6)
    assert seen == [(k // 4, 2) for k in range(80)]
    assert a.history[-1]["loss"] == pytest.approx(b.history[-1]["loss"], rel=1e-4)


@pytest.mark.parametrize("free, share", [(False, 0.1), (True, 1.0)])
def test_auxiliary_parameters_learn_along_at_their_rate(free, share):
    """Adam's first step has the size of the learning rate, whatever the gradient."""
    model, auxiliary = nn.Linear(4, 1), nn.Linear(1, 1)
    before = weights(auxiliary)
    loss = lambda model, step: ((auxiliary(model(torch.ones(8, 4))) - 100).square().mean(), {})  # noqa: E731
    trained = Trainer(TrainConfig(1, 8, 1e-2, warmup=10)).fit(
        model, loss, ROWS, auxiliary=auxiliary, auxiliary_free=free
    )
    moved = (weights(auxiliary) - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-2 * share), rtol=1e-3, atol=0)
    torch.testing.assert_close((weights(trained) - weights(model)).abs(), torch.full((5,), 1e-3), rtol=1e-3, atol=0)


def test_gradients_are_clipped_to_the_given_norm():
    """With SGD: the first step is rate x (1 + momentum) x gradient, and the gradient has the norm asked for."""
    model = nn.Linear(4, 1, bias=False)
    steep = lambda model, step: (1e6 * model(torch.ones(1, 4)).sum(), {})  # noqa: E731
    trainer = Trainer(TrainConfig(1, 8, 1e-2, clip=0.5, optimizer="sgd"))
    moved = weights(model) - weights(trainer.fit(model, steep, ROWS))
    assert float(moved.norm()) == pytest.approx(1e-2 * 1.9 * 0.5, rel=1e-4)
    assert trainer.history[0]["gradient"] == pytest.approx(2e6)


# what is written down


def test_metrics_are_one_json_object_a_line(tmp_path):
    trainer = Trainer(CONFIG, files=tmp_path / "run", run=RunConfig(log_every=20))
    trainer.fit(net(), regression, ROWS)
    lines = lines_of(tmp_path / "run.metrics.jsonl")
    assert lines == trainer.history and [x["step"] for x in lines] == [0, 20, 40, 59]
    assert set(lines[1]) == {"step", "loss", "gradient", "mse", "learning_rate", "images_per_second", "memory_mib"}
    assert [x["learning_rate"] for x in lines] == [CONFIG.learning_rate_at(x["step"]) for x in lines]


def test_metrics_of_a_resumed_run_have_each_iteration_once(tmp_path):
    def stopped(model, step):
        if step.number == 30:
            raise KeyboardInterrupt
        return regression(model, step)

    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        Trainer(CONFIG, files=path, run=EACH).fit(net(), stopped, ROWS)
    with (tmp_path / "run.metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "loss": 1}\n{"step": 3')  # two iterations past the checkpoint, the second cut off
    trainer = Trainer(CONFIG, files=path, run=EACH)
    trainer.fit(net(), regression, ROWS)
    lines = lines_of(tmp_path / "run.metrics.jsonl")
    assert [x["step"] for x in lines] == list(range(60)) and lines == trainer.history


def test_a_tracker_and_sample_grids(tmp_path):
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def preview(model):
        assert not model.training
        return torch.linspace(-1, 1, 9 * 16).reshape(9, 1, 4, 4) + 0 * torch.rand(1)

    whole = Trainer(CONFIG).fit(model := net(), regression, ROWS)
    run = RunConfig(tracker="tensorboard", sample_every=25, log_every=10)
    trained = Trainer(CONFIG, files=tmp_path / "run", run=run).fit(model, regression, ROWS, preview=preview)
    assert torch.equal(weights(trained), weights(whole))  # looking changes nothing
    grids = sorted((tmp_path / "run.samples").iterdir())
    assert [p.name for p in grids] == ["00000025.png", "00000050.png"] and Image.open(grids[0]).size == (256, 256)
    board = EventAccumulator(str(tmp_path / "run.tensorboard")).Reload()
    assert [e.step for e in board.Scalars("loss")] == [0, 10, 20, 30, 40, 50, 59]


@pytest.mark.parametrize("name", ["wandb", "mlflow", "aim"])
def test_trackers_get_the_records_and_stay_on_this_machine(tmp_path, monkeypatch, name):
    got = []

    class Double(metrics.GeneralTracker):
        requires_logging_directory, tracker = False, None

        def __init__(self, **options):
            got.append(options)

        def log(self, values, step=None):
            got.append((step, values))

        def finish(self):
            got.append("finished")

    uri = []
    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(set_tracking_uri=uri.append))
    monkeypatch.setitem(metrics.LOGGER_TYPE_TO_CLASS, name, Double)
    monkeypatch.setattr(metrics, "get_available_trackers", lambda: [name])
    trainer = Trainer(CONFIG, files=tmp_path / "run", run=RunConfig(tracker=name, log_every=20))
    trainer.fit(net(), regression, ROWS)
    options, *records, last = got
    assert [{"step": step, **values} for step, values in records] == trainer.history and last == "finished"
    assert options.get("mode", "offline") == "offline" and str(tmp_path) in f"{options} {uri}"


def _wandb_records(folder: Path) -> list[tuple[int, float]]:
    """Of a file of records in blocks of 32 KiB, each piece after checksum, size and kind (1: whole, 4: the last piece)."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, found, whole = path.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):
            record, whole = Record.FromString(whole), b""
            values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            found += [(values["_step"], values["loss"])] if values else []
    return found


def _mlflow_records(folder: Path) -> list[tuple[int, float]]:
    import mlflow

    (run,) = mlflow.search_runs(experiment_names=["rddlib"], output_format="list")
    return [(m.step, m.value) for m in mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")]


@pytest.mark.parametrize("name, read", [("wandb", _wandb_records), ("mlflow", _mlflow_records)])
def test_a_tracker_without_a_network_keeps_every_record(tmp_path, monkeypatch, name, read):
    pytest.importorskip(name, reason=f"{name} is the user's own to install")
    monkeypatch.chdir(tmp_path)
    trainer = Trainer(CONFIG, files=tmp_path / "run", run=RunConfig(tracker=name, log_every=20))
    trainer.fit(net(), regression, ROWS)
    assert read(tmp_path) == [(record["step"], pytest.approx(record["loss"])) for record in trainer.history]
    kept = {path.name for path in tmp_path.iterdir() if not path.name.startswith("run.")}
    assert kept <= {"wandb", "mlflow.db", "mlruns"}


def test_a_tracker_that_is_unknown_or_not_installed_is_one_line(refusal, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "get_available_trackers", lambda: [])
    for name, words in (("wandb", "pip install wandb"), ("carrier-pigeon", "none, tensorboard, wandb, mlflow, aim")):
        out = tmp_path / name
        assert words in refusal("train", "--profile", "smoke", "--out", out, "--set", f"run.tracker={name}")
        assert not out.exists()


# what stops it


def test_divergence_names_the_term_and_the_last_good_checkpoint(tmp_path):
    def loss(model, step):
        total, terms = regression(model, step)
        broken = math.nan if step.number == 7 else 0.0
        return total + broken, {**terms, "m_p2p": total.detach() + broken}

    said = r"toy diverged at iteration 7 \(loss, m_p2p not finite\).*checkpoint: .*00000007.resume"
    with pytest.raises(UserError, match=said):
        Trainer(CONFIG, label="toy", files=tmp_path / "run", run=EACH).fit(net(), loss, ROWS)
    assert Checkpoints(tmp_path / "run").newest_whole({}) == 7


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory.\n"), RuntimeError("DefaultCPUAllocator: not enough memory")]
)
def test_memory_that_does_not_suffice_is_one_line(error):
    def fails(model, step):
        raise error

    said = refused(Trainer(CONFIG, label="toy").fit, net(), fails, ROWS)
    assert said.startswith("toy does not fit into memory: lower its batch_size") and "\n" not in said


def test_divergence_between_two_looks_is_dated_right():
    watch, values = _Watch(torch.device("cpu")), [1.0, 1.0, math.inf, 1.0, math.nan]
    for number, value in enumerate(values):
        watch.see(number, torch.tensor(value), torch.tensor(1.0))
    assert watch.first() == 2


@pytest.mark.parametrize(
    "name, value",
    [
        *[("iterations", 0), ("batch_size", 0), ("learning_rate", -1), ("ema", 1.0), ("accumulate", 2)],
        *[("lr_schedule", "linear"), ("precision", "fp8"), ("optimizer", "lion")],
        *[("compile", "yes"), ("channels_last", "no"), ("keep", 0), ("log_every", 0)],
    ],
)
def test_impossible_configurations_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value!r}, expected"):
        if hasattr(RunConfig, name):
            RunConfig(**{name: value})
        TrainConfig(**{"iterations": 1, "batch_size": 1, "learning_rate": 1.0, name: value})


# order, rates and the machine


def test_rates():
    config = TrainConfig(100, 1, 2.0, lr_schedule="cosine", warmup=10)
    assert config.learning_rate_at(0) == pytest.approx(0.2)
    assert config.learning_rate_at(50) == pytest.approx(1.0) and config.learning_rate_at(99) < 1e-3
    assert TrainConfig(100, 1, 2.0).learning_rate_at(70) == 2.0


def test_each_epoch_visits_every_row_once():
    epochs = Epochs(10, 4, seed=1)
    rows = torch.cat([epochs.batch(step) for step in range(15)])  # six epochs
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in rows.reshape(6, 10))
    assert not torch.equal(rows[:10], rows[10:20])
    assert torch.equal(Epochs(10, 4, seed=1).batch(7), epochs.batch(7))  # no history needed
    assert sorted(Epochs(3, 7, 0).batch(0)[:6].tolist()) == [0, 0, 1, 1, 2, 2]  # a batch may exceed the data set


def test_streams_differ_and_repeat():
    numbers = [derive_seed(a, b, c) for a in range(5) for b in range(20) for c in range(3)]
    assert len(set(numbers)) == len(numbers) and all(0 <= n < 2**63 for n in numbers)
    assert derive_seed(1, 2) == derive_seed(1, 2) != derive_seed(2, 1)


def test_precision():
    assert chosen_precision("float32", torch.device("cuda")) == torch.float32
    assert chosen_precision("bf16", torch.device("cpu")) == torch.bfloat16
    assert chosen_precision("auto", torch.device("cuda")) == torch.bfloat16


def test_who_is_compiled():
    for switch, done in (("auto", False), ("never", False), ("always", True)):  # on a CPU
        network = compiled(nn.Linear(2, 2), RunConfig(compile=switch))
        assert (network._compiled_call_impl is not None) == done and plain(network)._compiled_call_impl is None
        denoiser = compiled(tiny_denoiser(), RunConfig(compile=switch))  # of which the U-Net alone
        assert (denoiser.network._compiled_call_impl is not None) == done and denoiser._compiled_call_impl is None
        assert plain(denoiser).network._compiled_call_impl is None
    blocks = [part for part in denoiser.modules() if isinstance(part, ResidualBlock)]
    compiled(denoiser, RunConfig(compile="blocks"))
    seen = [part for part in denoiser.modules() if part._compiled_call_impl is not None]
    assert seen == [*blocks, denoiser.network.tail]
    assert compiled(nn.Linear(2, 2), RunConfig(compile="blocks"))._compiled_call_impl is None  # it has no blocks


@pytest.mark.parametrize("precision, allowed", [("float32", False), ("tf32", True), ("bf16", True)])
def test_tf32_is_allowed_inside_and_as_before_outside(precision, allowed):
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    with tf32_context(precision, torch.device("cuda")):
        assert [backend.allow_tf32 for backend in backends] == [allowed] * 2
    assert [backend.allow_tf32 for backend in backends] == before


# what the environment says


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR"),
        ("ACCELERATE_USE_FSDP", "true"),
        ("ONEDNN_DEFAULT_FPMATH_MODE", "BF16"),
        ("NVIDIA_TF32_OVERRIDE", "1"),
    ],
)
def test_a_variable_that_would_change_numbers_behind_the_record_is_refused(name, value, monkeypatch, tmp_path):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name}={value} would change numbers.*: unset it; "):
        Trainer(CONFIG, files=tmp_path / "net").fit(net(), regression, ROWS)
    assert not list(tmp_path.iterdir())


def test_what_accelerate_launch_says_of_itself_changes_nothing(monkeypatch):
    def trained():
        torch.manual_seed(0)
        return weights(Trainer(CONFIG).fit(net(), regression, ROWS))

    plain_run = trained()
    for name, value in (("MIXED_PRECISION", "no"), ("DYNAMO_BACKEND", "NO"), ("GRADIENT_ACCUMULATION_STEPS", "1")):
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    assert torch.equal(trained(), plain_run)


def test_an_accelerator_made_before_with_another_precision_is_refused():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    try:
        Accelerator(cpu=True, mixed_precision="bf16")
        assert "another Accelerator was made in this process" in refused(Trainer(CONFIG).fit, net(), regression, ROWS)
    finally:
        AcceleratorState._reset_state(True)


@pytest.mark.parametrize("load, chosen, words", [(9.0, False, "OMP_NUM_THREADS=2"), (3.0, False, ""), (9.0, True, "")])
def test_a_busy_machine_is_noticed_unless_threads_were_chosen(monkeypatch, capsys, load, chosen, words):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "1") if chosen else monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    say_if_busy()
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == bool(words)
    before, lines = torch.get_num_threads(), []
    with fewer_threads_if_busy(lines.append):
        assert torch.get_num_threads() == (2 if words else before)
    assert torch.get_num_threads() == before and len(lines) == bool(words)


@pytest.mark.parametrize("threads", [0, 3])
def test_a_training_has_its_threads_and_gives_them_back(threads):
    before, seen = torch.get_num_threads(), []

    def loss(model, step):
        seen.append(torch.get_num_threads())
        return regression(model, step)

    Trainer(TrainConfig(2, 8, 1e-2), run=RunConfig(threads=threads)).fit(nn.Linear(4, 1), loss, ROWS)
    assert seen == 2 * [threads or before] and torch.get_num_threads() == before


def test_short_trainings_are_not_compiled():
    """It would take longer than it saves."""
    chosen = lambda iterations, **run: Trainer(TrainConfig(iterations, 4, 1e-3), run=RunConfig(**run)).run.compile  # noqa: E731
    assert (chosen(COMPILE_FROM - 1), chosen(COMPILE_FROM)) == ("never", "auto")
    assert chosen(1, compile="always") == "always"
