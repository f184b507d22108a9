import json
import math
import os

import pytest
import torch
from torch import nn

from rddlib.errors import UserError
from rddlib.training import Epochs, TrainConfig, Trainer, chosen_precision, stream


def regression(model, step):
    x = torch.randn(8, 4, generator=step.generator, device=step.generator.device)
    total = ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()
    return total, {"mse": total}


def net():
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 1))


def weights(model):
    return torch.cat([p.flatten() for p in model.parameters()])


CONFIG = TrainConfig(60, 8, 1e-2, rate="cosine", warmup=5, ema=0.9)


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


@pytest.mark.parametrize("moment", [1, 17, 59])
def test_resumed_equals_uninterrupted_to_the_last_bit(tmp_path, moment):
    model, path = net(), tmp_path / "run"
    whole = Trainer(CONFIG, 3, 100).fit(model, regression)

    def until(model, step):
        if step.number == moment:
            raise Interrupted
        return regression(model, step)

    with pytest.raises(Interrupted):
        Trainer(CONFIG, 3, 100, files=path, save_every=0).fit(model, until)
    assert (tmp_path / "run.resume").exists()
    resumed = Trainer(CONFIG, 3, 100, files=path).fit(model, regression)
    assert torch.equal(weights(resumed), weights(whole)) and os.listdir(tmp_path) == ["run.metrics.jsonl"]


def test_metrics_are_one_json_object_a_line(tmp_path):
    trainer = Trainer(CONFIG, 3, 100, files=tmp_path / "run", log_every=20)
    trainer.fit(net(), regression)
    lines = [json.loads(line) for line in (tmp_path / "run.metrics.jsonl").read_text().splitlines()]
    assert lines == trainer.history and [x["step"] for x in lines] == [0, 20, 40, 59]
    assert set(lines[0]) == {"step", "loss", "gradient", "mse"}


def test_resume_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run"

    def stop(model, step):
        if step.number == 3:
            raise Interrupted
        return regression(model, step)

    with pytest.raises(Interrupted):
        Trainer(CONFIG, 3, 100, files=path, save_every=0).fit(net(), stop)
    with pytest.raises(UserError, match="another run"):
        Trainer(CONFIG, 4, 100, files=path).fit(net(), regression)


def test_companion_parameters_are_trained():
    companion = nn.Linear(1, 1)
    before = weights(companion).clone()

    def loss(model, step):
        x = torch.randn(8, 4, generator=step.generator, device=step.generator.device)
        total = (companion(model(x)) ** 2).mean()
        return total, {}

    Trainer(CONFIG, 0, 100).fit(nn.Linear(4, 1), loss, companion=companion)
    assert not torch.equal(weights(companion), before)


def test_after_step_follows_each_update():
    seen = []
    Trainer(TrainConfig(4, 8, 1e-2), 0, 100).fit(
        nn.Linear(4, 1), regression, after_step=lambda s: seen.append(s.number)
    )
    assert seen == [0, 1, 2, 3]


def test_divergence_names_label_and_step():
    with pytest.raises(UserError, match="toy diverged at iteration 0"):
        Trainer(CONFIG, 0, 100, "toy").fit(nn.Linear(4, 1), lambda m, s: (m(torch.full((1, 4), math.nan)).sum(), {}))


def test_rates():
    config = TrainConfig(100, 1, 2.0, rate="cosine", warmup=10)
    assert config.rate_at(0) == pytest.approx(0.2)
    assert config.rate_at(50) == pytest.approx(1.0) and config.rate_at(99) < 1e-3
    assert TrainConfig(100, 1, 2.0).rate_at(70) == 2.0


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
    numbers = [stream(a, b, c) for a in range(5) for b in range(20) for c in range(3)]
    assert len(set(numbers)) == len(numbers) and stream(1, 2) == stream(1, 2) and stream(1, 2) != stream(2, 1)
    assert all(0 <= n < 2**63 for n in numbers)


def test_precision():
    assert chosen_precision("float32", torch.device("cuda")) == torch.float32
    assert chosen_precision("bf16", torch.device("cpu")) == torch.bfloat16
    assert chosen_precision("auto", torch.device("cuda")) == torch.bfloat16


@pytest.mark.parametrize("change", [
    dict(iterations=0), dict(batch_size=0), dict(learning_rate=-1), dict(ema=1.0), dict(rate="linear"), dict(precision="fp8"),
])  # fmt: skip
def test_impossible_configurations_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        TrainConfig(**{**dict(iterations=1, batch_size=1, learning_rate=1.0), **change})
