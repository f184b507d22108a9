"""Bad input ends with one line on stderr and exit status 2, and nothing is written: one case for each kind of fault."""

import json
import os

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image


def refused(result, words):
    status, printed, errors = result
    assert status == 2 and not printed, errors
    assert errors.startswith("rdd: ") and errors.count("\n") == 1 and words in errors, errors


@pytest.mark.parametrize(
    "command, words",
    [
        ("stduy", "No such command"),
        ("study --profil digits", "No such option"),
        ("study --seed one", "valid integer"),
        ("study --profile digts", "did you mean 'digits'"),
        ("study --set loss.alpha", "section.field=value"),
        ("train --set loss.alpa=1", "did you mean 'alpha'"),
        ("train --set base.train.learning_rate=.nan", "learning_rate"),
        ("train --set unet.num_classes=7", "has 10: set it to 10 or 0"),  # fits no images
        ("train --profile cifar10", "no CIFAR-10 in"),
        ("distill --profile smoke --teacher no/such", "hub's cache lacks a model of that name"),
        ("distill --profile smoke --extractor torchvision:resnet5", "did you mean 'resnet50'"),
        ("distill --profile smoke --extractor teacher --set extractor.level=9", "no map of 0x0 pixels"),
        ("study --set loss.per_image=17", "the extractor's map offers 16 pixels"),
        ("study --set methods=[pdd]", "methods has 'pdd' (did you mean 'pd'?)"),
        ("study --set evaluation.samples=10", "10 images cannot fill a covariance of 64"),  # could not be scored
        ("study --set guidance.samples=20", "guidance.samples=20: 20 images cannot fill a covariance"),
        pytest.param(
            *("study --set loss.impl=fused", "impl=fused"),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="runs where there is CUDA"),
        ),
        ("study --only 03 --from 02", "exclude each other"),
        ("study --only 17", "no notebook 17"),
        ("study --jobs 0", "--jobs 0: give at least 1"),
        ("distill --objective rdf", "unknown --objective 'rdf' (did you mean 'rdd'?)"),
        ("distill --from 64 --to 1", "--from is 8, or more with --to 8 --objective pd"),
        ("distill --stochastic", "--stochastic is for guided models: add --guided"),
        ("guide --results --set guidance.samples=20", "20 images cannot fill a covariance"),
        ("sample --checkpoint nowhere", "no model at nowhere"),
        ("sample --sampler pndm", "--sampler pndm is for a --checkpoint or --guidance"),
        ("sample --guidance nan", "guidance nan: expected a number"),
        ("sample --guidance 1 --classes three", "digits has no class 'three': its names are 0, 1, 2"),
        ("sample --classes 3", "this model is unconditional and draws no chosen classes"),
        ("evaluate --metrics fid,kit", "unknown metrics kit"),
        ("evaluate --protocol ,", "--protocol names nothing"),
        ("evaluate --images a --samples 100", "--images are given as they are"),
        ("evaluate --reference nowhere", "nowhere does not exist"),
        ("ablate", "which ablation?"),
        ("ablate all tau_si", "did you mean 'tau_is'"),
        ("ablate custom losses", "custom stands alone"),
        ("ablate alpha beta --axis loss.alpha=1", "give it with one"),
        ("ablate alpha --axis loss.alpha", "section.field=value,value"),
        ("ablate alpha --axis loss.alpha=1 --axis loss.alpha=2", "is given twice"),
        ("ablate alpha --seeds 0", "--seeds 0: give at least 1"),
        ("ablate alpha --shard 3/2", "write it as 1/4"),
        ("ablate alpha --set evaluation.samples=20", "20 images cannot fill a covariance of 64"),
    ],
)
def test_bad_words_are_one_line_and_leave_nothing(rdd, tmp_path, command, words):
    out = [] if command == "stduy" else ["--out", str(tmp_path / "out")]
    refused(rdd(*command.split(), *out), words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["train", "study", "ablate alpha", "sample"])
def test_a_folder_of_something_else_and_a_damaged_record(rdd, tmp_path, command):
    (tmp_path / "letter.txt").write_text("dear")
    arguments = [*command.split(), "--profile", "smoke", "--out", str(tmp_path)]
    refused(rdd(*arguments), "is not empty and no study made it")
    (tmp_path / "study.json").write_text("{")
    refused(rdd(*arguments), "study.json is damaged")
    assert sorted(os.listdir(tmp_path)) == ["letter.txt", "study.json"]


def test_a_folder_that_cannot_be_written(rdd, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("kept")
    refused(rdd("study", "--profile", "smoke", "--out", str(tmp_path / "file" / "out")), "cannot write")
    assert (tmp_path / "file").read_text() == "kept"

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(tmp_path / ".running"))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    refused(rdd("study", "--profile", "smoke", "--out", str(tmp_path / "a")), "Permission denied")


def test_the_metric_network_is_never_overwritten(rdd, tmp_path):
    (tmp_path / "net").write_text("old")
    refused(rdd("metric-network", "--out", str(tmp_path / "net")), "exists")
    assert (tmp_path / "net").read_text() == "old"


def test_another_version_s_sweep_and_a_damaged_record_of_it(rdd, tmp_path):
    record = tmp_path / "study/ablations/sweep.json"
    record.parent.mkdir(parents=True)
    for text, words in (
        (json.dumps({"version": "0.0.1"}), "holds ablations of rddlib 0.0.1, this is"),
        ("{", "damaged"),
    ):
        record.write_text(text)
        refused(rdd("ablate", "alpha", "--profile", "smoke", "--out", str(tmp_path / "study")), words)
        assert sorted(path.name for path in (tmp_path / "study").rglob("*")) == ["ablations", "sweep.json"]


def test_a_damaged_model(rdd, tiny, tmp_path):
    path = tiny.stages.student("rdd", 1, 0).path
    path.write_bytes(path.read_bytes()[:-10])
    refused(rdd("sample", "--checkpoint", str(path), "--out", str(tmp_path / "new")), f"{path.name} is damaged")
    refused(rdd("sample", "--profile", "smoke", "--out", str(tiny.out)), f"{path.name} is damaged")
    assert not (tmp_path / "new").exists()


def test_guidance_that_a_model_or_its_images_do_not_know(rdd, tiny, tmp_path):
    new, photos = ["--out", str(tmp_path / "new")], tmp_path / "photos"
    base = str(tiny.stages.base.path)
    refused(rdd("sample", "--checkpoint", base, "--guidance", "1", *new), "unconditional and cannot be guided")
    photos.mkdir()
    for number in range(3):
        Image.fromarray(np.full((8, 8), 80 * number, np.uint8)).save(photos / f"{number}.png")
    settings = ["--set", "data.name=folder", "--set", f"data.root={photos}", "--profile", "smoke"]
    status, _, errors = rdd("guide", *settings, *new)  # which says that it decoded the images
    refused((status, "", errors), "sort them into a folder for each class")
    assert not (tmp_path / "new").exists()


def test_relations_need_classes_to_learn_or_an_extractor_that_needs_none(rdd, tmp_path):
    """An unlabelled folder, and one with a single class, whose classifier would always be right."""
    options = ["--profile", "smoke", "--out", str(tmp_path / "new"), "--set", "data.name=folder", "--set"]
    for name, folder in (("none", ""), ("one", "a")):
        (tmp_path / name / folder).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(np.full((8, 8), 20 * number, np.uint8)).save(tmp_path / name / folder / f"{number}.png")
    for command in (["extractor"], ["distill", "--objective", "cfd"]):
        for name, words in (("none", "has no classes for an extractor"), ("one", "has one class for an extractor")):
            status, _, errors = rdd(*command, *options, f"data.root={tmp_path / name}")
            refused((status, "", errors.split("images in ")[-1].partition("\n")[2] or errors), words)
    assert not (tmp_path / "new").exists()
    unlabelled = [*options, f"data.root={tmp_path / 'none'}", "--extractor", "teacher"]
    status, _, errors = rdd("distill", "--objective", "rcfd", *unlabelled)
    refused((status, "", errors), "no class predictions: use CFD or RDD")
    small = [f"--set={name}" for name in ("base.train.iterations=2", "progressive.train.iterations=1")]
    status, printed, errors = rdd("distill", *unlabelled, *small, "--set=distill.iterations=[1,1,1]")
    assert status == 0, errors
    assert len(list((tmp_path / "new/checkpoints").glob("rdd-1-*.safetensors"))) == 1 and "rdd-1-" in printed
    status, _, errors = rdd("distill", *unlabelled, "--set", "extractor.seed=3")
    refused((status, "", errors), "--set extractor.seed changes nothing, since extractor.name=teacher brings its own")
