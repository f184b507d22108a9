"""Bad input ends with one line on stderr and exit status 2, and nothing is written: one case for each kind of fault."""

import json
import os

import numpy as np
import pytest
import torch
from filelock import FileLock
from tiny import gray_images, settings

from rddlib.distillation.extractor import build_extractor
from rddlib.utils.checkpoint import save_checkpoint


@pytest.mark.parametrize(
    "command, words",
    [
        ("stduy", "No such command"),
        ("study --profil digits", "No such option"),
        ("study --seed one", "valid integer"),
        ("study --profile digts", "did you mean 'digits'"),
        ("study --set loss.alpha", "section.field=value"),
        ("train --set unet.num_classes=7", "has 10: set it to 10 or 0"),  # fits no images
        ("train --profile cifar10", "no CIFAR-10 in"),
        ("distill --profile smoke --teacher no/such", "hub's cache lacks a model of that name"),
        ("distill --profile smoke --extractor torchvision:resnet5", "did you mean 'resnet50'"),
        ("distill --profile smoke --extractor teacher --set extractor.level=9", "no map of 0x0 pixels"),
        ("study --set loss.per_image=17", "the extractor's map offers 16 pixels"),
        ("study --set evaluation.samples=10", "10 images cannot fill a covariance of 64"),  # could not be scored
        ("study --only 08 --set guidance.samples=20", "guidance.samples=20: 20 images cannot fill a covariance"),
        ("study --set evaluation.metrics=[fid,is,agree]", "agree is for images drawn of classes or prompts"),
        ("study --set evaluation.metrics=[fid,is,foo] --set evaluation.network=extractor", "unknown metrics foo"),
        pytest.param(
            *("study --set loss.impl=fused", "impl=fused"),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="runs where there is CUDA"),
        ),
        ("study --only 03 --from 02", "exclude each other"),
        ("study --only 17", "no notebook 17"),
        ("study --from 08", "shows other models than the study's, choose it with --only 08"),
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
        ("ablate alpha --profile smoke --jobs 0", "--jobs 0: give at least 1"),
        ("ablate alpha --shard 3/2", "write it as 1/4"),
        ("ablate alpha --set evaluation.samples=20", "20 images cannot fill a covariance of 64"),
    ],
)
def test_bad_words_are_one_line_and_leave_nothing(refusal, tmp_path, command, words):
    out = [] if command == "stduy" else ["--out", str(tmp_path / "out")]
    assert words in refusal(*command.split(), *out)
    assert not list(tmp_path.iterdir())


def test_images_of_another_shape_than_the_profile_s_want_a_reference(refusal, tmp_path):
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((80, 8, 8, 3), np.uint8))
    record = {"kind": "extractor", "facts": {"extractor": {"name": "small_resnet"}}}
    save_checkpoint(tmp_path / "judge", build_extractor("small_resnet", 3, 7).state_dict(), record)
    given = ["--images", tmp_path / "images.npz", "--metric-network", tmp_path / "judge", "--out", tmp_path / "new"]
    assert "say with --reference" in refusal("evaluate", *given)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["train", "study", "ablate alpha", "sample"])
def test_a_folder_of_something_else_and_a_damaged_record(refusal, tmp_path, command):
    (tmp_path / "letter.txt").write_text("dear")
    arguments = [*command.split(), "--profile", "smoke", "--out", str(tmp_path)]
    assert "is not empty and no study made it" in refusal(*arguments)
    (tmp_path / "study.json").write_text("{")
    assert "study.json is damaged" in refusal(*arguments)
    assert sorted(os.listdir(tmp_path)) == ["letter.txt", "study.json"]


def test_a_folder_that_cannot_be_written(refusal, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("kept")
    assert "cannot write" in refusal("study", "--profile", "smoke", "--out", tmp_path / "file" / "out")
    assert "is a file" in refusal("study", "--profile", "smoke", "--out", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(tmp_path / ".running"))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert "Permission denied" in refusal("study", "--profile", "smoke", "--out", tmp_path / "a")


def test_the_metric_network_is_never_overwritten(refusal, tmp_path, monkeypatch):
    (tmp_path / "net").write_text("old")
    assert "exists" in refusal("metric-network", "--out", tmp_path / "net")
    assert (tmp_path / "net").read_text() == "old"
    monkeypatch.chdir(tmp_path)
    assert "data/digits_metric_network" in refusal("metric-network", "digits")  # where it lies, wherever one stands
    assert not (tmp_path / "data").exists()


def test_another_version_s_sweep_and_a_damaged_record_of_it(refusal, tmp_path):
    record = tmp_path / "study/ablations/sweep.json"
    record.parent.mkdir(parents=True)
    for text, words in (
        (json.dumps({"version": "0.0.1"}), "holds ablations of rddlib 0.0.1, this is"),
        ("{", "damaged"),
    ):
        record.write_text(text)
        assert words in refusal("ablate", "alpha", "--profile", "smoke", "--out", tmp_path / "study")
        assert sorted(path.name for path in (tmp_path / "study").rglob("*")) == ["ablations", "sweep.json"]


def test_a_damaged_model(refusal, tiny, tmp_path):
    path = tiny.stages.student("rdd", 1, 0).path
    path.write_bytes(path.read_bytes()[:-10])
    for words in (("--checkpoint", path, "--out", tmp_path / "new"), ("--profile", "smoke", "--out", tiny.out)):
        assert f"{path.name} is damaged" in refusal("sample", *words)
    assert not (tmp_path / "new").exists()


def test_guidance_that_a_model_or_its_images_do_not_know(refusal, tiny, tmp_path):
    new, base = ["--out", tmp_path / "new"], tiny.stages.base.path
    assert "unconditional and cannot be guided" in refusal("sample", "--checkpoint", base, "--guidance", "1", *new)
    photos = settings({"data.name": "folder", "data.root": gray_images(tmp_path / "photos", 3, 80)})
    assert "sort them into a folder for each class" in refusal("guide", *photos, "--profile", "smoke", *new, begun=True)
    assert not (tmp_path / "new").exists()


def test_relations_need_classes_to_learn_or_an_extractor_that_needs_none(done, refusal, tmp_path):
    """An unlabelled folder, and one with a single class, whose classifier would always be right."""
    options = ["--profile", "smoke", "--out", str(tmp_path / "new"), "--set", "data.name=folder", "--set"]
    gray_images(tmp_path / "none", 12, 20)
    gray_images(tmp_path / "one" / "a", 12, 20)
    for command in (["extractor"], ["distill", "--objective", "cfd"]):
        for name, words in (("none", "has no classes for an extractor"), ("one", "has one class for an extractor")):
            assert words in refusal(*command, *options, f"data.root={tmp_path / name}", begun=True)
    assert not (tmp_path / "new").exists()
    unlabelled = [*options, f"data.root={tmp_path / 'none'}", "--extractor", "teacher"]
    assert "no class predictions: use CFD or RDD" in refusal("distill", "--objective", "rcfd", *unlabelled, begun=True)
    small = ["base.train.iterations=2", "progressive.train.iterations=1", "distill.iterations=[1,1,1]"]
    printed = done("distill", *unlabelled, *(f"--set={setting}" for setting in small))
    assert len(list((tmp_path / "new/checkpoints").glob("rdd-1-*.safetensors"))) == 1 and "rdd-1-" in printed
    said = refusal("distill", *unlabelled, "--set", "extractor.seed=3", begun=True)
    assert "--set extractor.seed changes nothing, since extractor.name=teacher brings its own" in said
