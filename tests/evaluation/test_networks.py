"""The networks that score: Inception under both protocols, its weights, and classifiers from checkpoints."""

import io
import json
import re
import subprocess
import sys
from hashlib import sha256

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import Bomb, refused
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from rddlib.data import to_uint8
from rddlib.diffusion.denoiser import as_denoiser
from rddlib.diffusion.schedule import CosineSchedule
from rddlib.distillation.extractor import build_extractor
from rddlib.evaluation import (
    PROTOCOLS,
    DrawnImages,
    draw_to_file,
    evaluate,
    find_network,
    inception_network,
    load_metric_network,
    open_images,
    write_pngs,
)
from rddlib.evaluation.networks import inception_weights
from rddlib.utils.checkpoint import save_checkpoint
from rddlib.utils.errors import UserError


@pytest.fixture(scope="module")
def untrained_inception(tmp_path_factory):
    """A file of Inception weights as torch-fidelity reads it, random: the published ones cannot be had in tests."""
    path = tmp_path_factory.mktemp("weights") / "random.pth"

    class Blank(FeatureExtractorInceptionV3):
        def load_state_dict(self, state, **_):
            pass

    with torch.random.fork_rng():
        torch.manual_seed(1)
        empty = io.BytesIO()
        torch.save({}, empty)
        empty.seek(0)
        module = Blank("blank", ["2048"], feature_extractor_weights_path=empty)
        for layer in module.modules():
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(layer.weight)  # so that something arrives at the end
    torch.save(module.state_dict(), path)
    return path


def smooth_images(count, seed, shift=0.0):
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 5, 5, generator=g) * 0.4 + shift
    return to_uint8(F.interpolate(coarse, size=(32, 32), mode="bicubic"))


@pytest.mark.slow
def test_torch_fidelity_s_command_line_gives_the_same_fid_on_exported_pngs(tmp_path, untrained_inception):
    """Images drawn by a model: streamed here, and read from the PNG files that were exported, by the other program."""

    def coarse(z, t):
        return F.interpolate(z[:, :, ::8, ::8], size=(32, 32), mode="bilinear").clamp(-1, 1)

    drawn = DrawnImages(as_denoiser(coarse, CosineSchedule()), 90, 1, seed=1, shape=(3, 32, 32))
    others = smooth_images(80, 2, 0.2)
    draw_to_file(drawn, tmp_path / "a.npz")
    for name, images in (("a", tmp_path / "a.npz"), ("b", others)):
        write_pngs(open_images(images), tmp_path / name)
    words = (
        f"-m torch_fidelity.fidelity --cpu --fid --json --silent --no-cache --save-cpu-ram --input1 {tmp_path / 'a'} "
    )
    words += (
        f"--input2 {tmp_path / 'b'} --batch-size 16 --feature-extractor inception-v3-compat --feature-layer-fid 64 "
    )
    words += f"--feature-extractor-weights-path {untrained_inception}"
    said = subprocess.run([sys.executable, *words.split()], capture_output=True, text=True, check=True).stdout
    theirs = json.loads(said)["frechet_inception_distance"]
    network = inception_network(untrained_inception, layer="64", logits=False)
    streamed = evaluate(drawn, others, network=network, metrics=("fid",), batch_size=25).values["fid"]
    folders = evaluate(tmp_path / "a", tmp_path / "b", network=network, metrics=("fid",)).values["fid"]
    assert streamed == pytest.approx(theirs, rel=1e-3) and folders == pytest.approx(streamed, rel=1e-6)
    with pytest.raises(UserError, match="released has no layer 64"):
        evaluate(drawn, others, network=network, metrics=("fid",), protocol="released")


def test_inception_under_both_protocols(untrained_inception):
    """uint8: torch-fidelity's own forward pass; floats: half-pixel resize, written out here a second time."""
    network = inception_network(untrained_inception)
    images, whole = smooth_images(3, 4), PROTOCOLS["torch-fidelity"]
    features, logits = network.module(whole.levels(images))
    assert features.shape == (3, 2048) and logits.shape == (3, 1008)
    with torch.no_grad():
        x = F.interpolate(images / 255.0, size=(299, 299), mode="bilinear", align_corners=False) * 2 - 1
        trunk = [layer for name, layer in network.module.named_children() if name != "fc"]
        theirs = torch.nn.Sequential(*trunk)(x).flatten(1)
        found = network.module(PROTOCOLS["released"].levels(images.float() / 127.5 - 1))
    assert torch.allclose(found[0], theirs, rtol=1e-3, atol=1e-4)
    assert torch.allclose(found[1], theirs @ network.module.fc.weight.T, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found[0], features, rtol=1e-3)  # the resize differs, so the numbers do
    assert network.name == "Inception v3, other weights than FID's" and "other weights" in network.metric(10)


@pytest.mark.parametrize("name, channels", [("small_resnet", 1), ("resnet18", 3)])
def test_a_profile_s_own_extractor_can_score(tmp_path, name, channels):
    extractor = build_extractor(name, channels, 7).eval()
    info = {"kind": "extractor", "facts": {"extractor": {"name": name}}, "test_accuracy": 0.5}
    save_checkpoint(tmp_path / name, extractor.state_dict(), info)
    network = find_network(str(tmp_path / name), (channels, 32, 32))
    images = to_uint8(torch.rand(2, channels, 32, 32))
    features, logits = network.module(images)
    expected = extractor(images.float() / 127.5 - 1)
    torch.testing.assert_close(features, expected.pooled, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits, expected.logits, rtol=0, atol=1e-4)
    assert network.features == extractor.channels and network.name == f"extractor {name}, 50.0% right"


def test_grayscale_where_colour_is_needed(tmp_path, untrained_inception):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="grayscale images, but the Inception v3.* takes colour"):
        evaluate(tmp_path, tmp_path, network=inception_network(untrained_inception))
    assert "grayscale images cannot be scored by Inception" in refused(find_network, "inception", (1, 8, 8))


def test_missing_inception_weights_end_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("RDD_DATA", str(tmp_path / "data"))
    said = refused(inception_weights, download=False)
    assert (
        re.search("missing: put .* at .*, or score with the profile's own network", said) and "--metric-network" in said
    )

    def unreachable(address, timeout):
        assert timeout == 30
        raise TimeoutError("timed out")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(UserError, match="cannot download .*timed out.*by hand, or score with the profile's own"):
        inception_weights()
    monkeypatch.setattr("urllib.request.urlopen", lambda address, timeout: io.BytesIO(b"something else"))
    assert "is damaged" in refused(inception_weights)
    assert not list((tmp_path / "checkpoints").glob("*"))  # nothing half is left


def test_inception_weights_are_found_in_both_names_and_places_or_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("RDD_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("rddlib.evaluation.networks.INCEPTION_SHA256", sha256(b"weights").hexdigest())
    for place in (
        "hub/checkpoints/pt_inception-2015-12-05-6726825d.pth",
        "data/weights-inception-2015-12-05-6726825d.pth",
    ):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")
        assert inception_weights(download=False) == path
        path.write_bytes(b"other")
        assert "is damaged" in refused(inception_weights, download=False)
        path.unlink()
    monkeypatch.setattr("urllib.request.urlopen", lambda address, timeout: io.BytesIO(b"weights"))
    assert inception_weights().read_bytes() == b"weights"


def test_a_pickle_with_code_is_no_inception(tmp_path):
    for content in (Bomb(tmp_path / "sprung"), torch.zeros(1)):
        torch.save({"a": content}, tmp_path / "w.pth")
        assert "holds no Inception" in refused(inception_network, tmp_path / "w.pth")
    assert not (tmp_path / "sprung").exists()


def test_other_checkpoints_are_no_metric_network(tmp_path):
    save_checkpoint(tmp_path / "x", {}, {"kind": "base"})
    assert "no metric network" in refused(load_metric_network, tmp_path / "x")
    assert "no network that scores" in refused(find_network, str(tmp_path / "x"), (1, 8, 8))
    latents = {"kind": "extractor", "facts": {"extractor": {"name": "small_resnet"}}, "space": {}}
    save_checkpoint(tmp_path / "x", build_extractor("small_resnet", 3, 7).state_dict(), latents)
    assert "classifier of latents" in refused(find_network, str(tmp_path / "x"), (3, 8, 8))
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-10])
    said = refused(find_network, str(tmp_path / "x"), (3, 8, 8))
    assert "x is damaged" in said and said.endswith("name another --metric-network")
    assert "no such file; known are digits, photos, inception" in refused(find_network, "nowhere", (1, 8, 8))
