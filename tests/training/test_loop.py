import itertools
import json
import math
import os
import types
from dataclasses import replace

import pytest
import torch
from torch import nn

from rddlib.training import Checkpoints, Epochs, RunConfig, TrainConfig, Trainer, chosen_precision, derive_seed
from rddlib.training.hardware import compiled, plain, tf32_context
from rddlib.training.loop import CheckpointTimer, _Watch
from rddlib.utils.errors import UserError


def regression(model, step):
    x = torch.randn(8, 4, generator=step.generator, device=step.generator.device)
    total = ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()
    return total, {"mse": total}


def net():
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 1))


def weights(model):
    return torch.cat([p.flatten() for p in model.parameters()])


CONFIG = TrainConfig(60, 8, 1e-2, lr_schedule="cosine", warmup=5, ema=0.9)
EACH = RunConfig(save_every=0)  # a checkpoint after each iteration


def test_the_loop_learns():
    trainer = Trainer(TrainConfig(300, 8, 1e-2), 0, 100)
    trained = trainer.fit(nn.Linear(4, 1), regression)
    assert trainer.history[-1]["loss"] < 1e-3 < trainer.history[0]["loss"]
    assert not trained.training and not any(p.requires_grad for p in trained.parameters())


def test_the_given_model_stays_as_it_was():
    model = net()
    before = weights(model).clone()
    Trainer(CONFIG, 0, 100).fit(model, regression)
    assert torch.equal(weights(model), before)


def test_same_seed_same_numbers_other_seed_others():
    model = net()
    a, b, c = (weights(Trainer(CONFIG, seed, 100).fit(model, regression)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_the_global_random_stream_is_left_alone():
    model = net()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Trainer(CONFIG, 0, 100).fit(model, regression)
    assert torch.equal(torch.rand(3), expected)


class Interrupted(Exception):
    pass


def until(moment):
    """The regression, cut off at iteration `moment`."""

    def loss(model, step):
        if step.number == moment:
            raise Interrupted
        return regression(model, step)

    return loss


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, optimizer="sgd", ema=0.0, weight_decay=0.1)])
@pytest.mark.parametrize("moment", [1, 17, 59])
def test_resumed_equals_uninterrupted_to_the_last_bit(tmp_path, moment, config):
    model, path = net(), tmp_path / "run"
    whole = Trainer(config, 3, 100).fit(model, regression)
    with pytest.raises(Interrupted):
        Trainer(config, 3, 100, files=path, run=EACH).fit(model, until(moment))
    assert Checkpoints(path).steps()[0] == moment
    resumed = Trainer(config, 3, 100, files=path).fit(model, regression)
    assert torch.equal(weights(resumed), weights(whole))


def test_the_end_is_kept_until_its_owner_clears_it(tmp_path):
    model, path = net(), tmp_path / "run"
    trained = Trainer(CONFIG, 3, 100, files=path).fit(model, regression)

    def never(model, step):
        raise AssertionError("a finished training was run again")

    again = Trainer(CONFIG, 3, 100, files=path).fit(model, never)
    assert torch.equal(weights(again), weights(trained))
    Checkpoints(path).clear()
    assert os.listdir(tmp_path) == ["run.metrics.jsonl"]


def test_the_last_few_checkpoints_are_kept(tmp_path):
    Trainer(CONFIG, 3, 100, files=tmp_path / "run", run=replace(EACH, keep=3)).fit(net(), regression)
    assert Checkpoints(tmp_path / "run").steps() == [60, 59, 58]


def test_saving_takes_a_small_share_of_the_time(monkeypatch):
    clock = itertools.count().__next__
    monkeypatch.setattr("rddlib.training.loop.time", types.SimpleNamespace(monotonic=lambda: float(clock())))
    pace = CheckpointTimer(5.0)
    pace.time(lambda: [clock() for _ in range(9)])  # saving takes 10 s of this clock
    looks = next(k for k in itertools.count(1) if pace.due())
    assert looks == 201


def test_channels_last_changes_the_speed_and_only_the_rounding():
    def loss(model, step):
        x = torch.randn(8, 3, 8, 8, generator=step.generator)
        return (model(x) ** 2).mean(), {}

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 1, 3))
    config = TrainConfig(5, 8, 1e-2, ema=0.5)
    a, b = (Trainer(config, 0, 100, run=RunConfig(channels_last=c)).fit(model, loss) for c in ("never", "always"))
    torch.testing.assert_close(weights(a), weights(b), rtol=1e-4, atol=1e-5)
    assert all(p.is_contiguous() for p in b.parameters())


def test_a_channels_last_training_resumes_to_the_last_bit(tmp_path):
    def loss(model, step):
        if step.number == moment:
            raise Interrupted
        return (model(torch.randn(8, 3, 8, 8, generator=step.generator)) ** 2).mean(), {}

    model, config = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 1, 3)), TrainConfig(9, 8, 1e-2, ema=0.5)
    run, moment = RunConfig(channels_last="always", save_every=0), None
    whole = Trainer(config, 0, 100, run=run).fit(model, loss)
    moment = 5
    with pytest.raises(Interrupted):
        Trainer(config, 0, 100, files=tmp_path / "run", run=run).fit(model, loss)
    moment = None
    assert torch.equal(
        weights(Trainer(config, 0, 100, files=tmp_path / "run", run=run).fit(model, loss)), weights(whole)
    )


def test_accumulated_parts_make_the_same_gradient():
    x = torch.randn(100, 4)

    def loss(model, step):
        return ((model(x[step.rows]) - x[step.rows].sum(1, keepdim=True)) ** 2).mean(), {}

    model, config, seen = nn.Linear(4, 1), TrainConfig(20, 8, 1e-2), []
    a, b = (Trainer(replace(config, accumulate=k), 0, 100) for k in (1, 4))
    whole, parts = a.fit(model, loss), b.fit(model, loss, after_step=lambda step: seen.append(len(step.rows)))
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-5, atol=1e-6)
    assert seen == [2] * 80 and a.history[-1]["loss"] == pytest.approx(b.history[-1]["loss"], rel=1e-4)


def test_metrics_are_one_json_object_a_line(tmp_path):
    trainer = Trainer(CONFIG, 3, 100, files=tmp_path / "run", run=RunConfig(log_every=20))
    trainer.fit(net(), regression)
    lines = [json.loads(line) for line in (tmp_path / "run.metrics.jsonl").read_text().splitlines()]
    assert lines == trainer.history and [x["step"] for x in lines] == [0, 20, 40, 59]
    assert set(lines[1]) == {"step", "loss", "gradient", "mse", "learning_rate", "images_per_second", "memory_mib"}
    assert [x["learning_rate"] for x in lines] == [CONFIG.learning_rate_at(x["step"]) for x in lines]


def test_metrics_of_a_resumed_run_have_each_iteration_once(tmp_path):
    run, path = RunConfig(save_every=0, log_every=1), tmp_path / "run"
    with pytest.raises(Interrupted):
        Trainer(CONFIG, 3, 100, files=path, run=run).fit(net(), until(30))
    with (tmp_path / "run.metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "loss": 1}\n{"step": 3')  # two iterations past the checkpoint, the second cut off
    trainer = Trainer(CONFIG, 3, 100, files=path, run=run)
    trainer.fit(net(), regression)
    lines = [json.loads(line) for line in (tmp_path / "run.metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == list(range(60)) and lines == trainer.history


def test_tensorboard_and_sample_grids(tmp_path):
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunConfig(tensorboard=True, sample_every=25, log_every=10)
    whole = Trainer(CONFIG, 3, 100).fit(model := net(), regression)
    images = torch.linspace(-1, 1, 9 * 16).reshape(9, 1, 4, 4)
    trained = Trainer(CONFIG, 3, 100, files=tmp_path / "run", run=run).fit(
        model, regression, preview=lambda m: images + 0 * torch.rand(1) * m.training
    )
    assert torch.equal(weights(trained), weights(whole))  # looking changes nothing
    grids = sorted((tmp_path / "run.samples").iterdir())
    assert [p.name for p in grids] == ["00000025.png", "00000050.png"] and Image.open(grids[0]).size == (16, 16)
    board = EventAccumulator(str(tmp_path / "run.tensorboard")).Reload()
    assert [e.step for e in board.Scalars("loss")] == [0, 10, 20, 30, 40, 50, 59]


def test_resume_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run"
    with pytest.raises(Interrupted):
        Trainer(CONFIG, 3, 100, files=path, run=EACH).fit(net(), until(3))
    with pytest.raises(UserError, match="another run"):
        Trainer(CONFIG, 4, 100, files=path).fit(net(), regression)
    with pytest.raises(UserError, match="another architecture"):
        Trainer(CONFIG, 3, 100, files=path).fit(nn.Linear(4, 1), regression)
    assert Checkpoints(path).steps() == [3, 2]


def test_companion_parameters_are_trained():
    auxiliary = nn.Linear(1, 1)
    before = weights(auxiliary).clone()

    def loss(model, step):
        x = torch.randn(8, 4, generator=step.generator, device=step.generator.device)
        total = (auxiliary(model(x)) ** 2).mean()
        return total, {}

    Trainer(CONFIG, 0, 100).fit(nn.Linear(4, 1), loss, auxiliary=auxiliary)
    assert not torch.equal(weights(auxiliary), before)


def test_after_step_follows_each_gradient():
    seen = []
    Trainer(TrainConfig(4, 8, 1e-2), 0, 100).fit(
        nn.Linear(4, 1), regression, after_step=lambda s: seen.append(s.number)
    )
    assert seen == [0, 1, 2, 3]


def test_divergence_names_label_and_step():
    with pytest.raises(UserError, match="toy diverged at iteration 0"):
        Trainer(CONFIG, 0, 100, "toy").fit(nn.Linear(4, 1), lambda m, s: (m(torch.full((1, 4), math.nan)).sum(), {}))


def test_divergence_names_the_term_and_the_last_good_checkpoint(tmp_path):
    def loss(model, step):
        total, terms = regression(model, step)
        broken = math.nan if step.number == 7 else 0.0
        return total + broken, {**terms, "m_p2p": total.detach() + broken}

    with pytest.raises(UserError, match=r"iteration 7 \(loss, m_p2p not finite\).*checkpoint: .*00000007.resume"):
        Trainer(CONFIG, 0, 100, "toy", files=tmp_path / "run", run=EACH).fit(net(), loss)
    assert Checkpoints(tmp_path / "run").newest_whole({}) == 7


def test_divergence_between_two_looks_is_dated_right():
    watch, values = _Watch(torch.device("cpu")), [1.0, 1.0, math.inf, 1.0, math.nan]
    for number, value in enumerate(values):
        watch.see(number, torch.tensor(value), torch.tensor(1.0))
    assert watch.first() == 2


def test_rates():
    config = TrainConfig(100, 1, 2.0, lr_schedule="cosine", warmup=10)
    assert config.learning_rate_at(0) == pytest.approx(0.2)
    assert config.learning_rate_at(50) == pytest.approx(1.0) and config.learning_rate_at(99) < 1e-3
    assert TrainConfig(100, 1, 2.0).learning_rate_at(70) == 2.0


def test_gradients_are_clipped_to_the_given_norm():
    def steep(model, step):
        return 1e6 * model(torch.ones(1, 4)).sum(), {}

    norms = []
    model = nn.Linear(4, 1, bias=False)
    original = nn.utils.clip_grad_norm_
    trainer = Trainer(TrainConfig(1, 8, 1e-2, clip=0.5), 0, 100)

    def spy(parameters, limit, *rest):
        parameters = list(parameters)
        total = original(parameters, limit, *rest)
        norms.append(float(torch.cat([p.grad.flatten() for p in parameters]).norm()))
        return total

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.utils, "clip_grad_norm_", spy)
        trainer.fit(model, steep)
    assert norms == [pytest.approx(0.5, rel=1e-4)] and trainer.history[0]["gradient"] == pytest.approx(2e6)


def test_each_epoch_visits_every_row_once():
    epochs = Epochs(10, 4, seed=1)
    rows = torch.cat([epochs.batch(step) for step in range(15)])  # six epochs
    for epoch in rows.reshape(6, 10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert not torch.equal(rows[:10], rows[10:20])
    assert torch.equal(Epochs(10, 4, seed=1).batch(7), epochs.batch(7))  # no history needed


def test_a_batch_may_exceed_the_data_set():
    assert sorted(Epochs(3, 7, 0).batch(0).tolist())[:2] == [0, 0]


def test_streams_differ_and_repeat():
    numbers = [derive_seed(a, b, c) for a in range(5) for b in range(20) for c in range(3)]
    assert (
        len(set(numbers)) == len(numbers)
        and derive_seed(1, 2) == derive_seed(1, 2)
        and derive_seed(1, 2) != derive_seed(2, 1)
    )
    assert all(0 <= n < 2**63 for n in numbers)


def test_precision():
    assert chosen_precision("float32", torch.device("cuda")) == torch.float32
    assert chosen_precision("bf16", torch.device("cpu")) == torch.bfloat16
    assert chosen_precision("auto", torch.device("cuda")) == torch.bfloat16


@pytest.mark.parametrize(
    "change",
    [
        dict(iterations=0),
        dict(batch_size=0),
        dict(learning_rate=-1),
        dict(ema=1.0),
        dict(lr_schedule="linear"),
        dict(precision="fp8"),
        dict(optimizer="lion"),
        dict(accumulate=2),
    ],
)
def test_impossible_configurations_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        TrainConfig(**{**dict(iterations=1, batch_size=1, learning_rate=1.0), **change})


@pytest.mark.parametrize("change", [dict(compile="yes"), dict(channels_last="no"), dict(keep=0), dict(log_every=0)])
def test_impossible_runs_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        RunConfig(**change)


@pytest.mark.parametrize("compile, done", [("auto", False), ("never", False), ("always", True)])
def test_who_is_compiled(compile, done):
    network = compiled(nn.Linear(2, 2), RunConfig(compile=compile))
    assert (network._compiled_call_impl is not None) == done and plain(network)._compiled_call_impl is None


@pytest.mark.parametrize("precision, allowed", [("float32", False), ("tf32", True), ("bf16", True)])
def test_tf32_is_allowed_inside_and_as_before_outside(precision, allowed):
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    with tf32_context(precision, torch.device("cuda")):
        assert [backend.allow_tf32 for backend in backends] == [allowed] * 2
    assert [backend.allow_tf32 for backend in backends] == before
