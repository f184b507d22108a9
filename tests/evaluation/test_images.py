"""Where images come from: drawn by a model, with classes and guidance, or read from folders and archives."""

import math
import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import gray_images, refused

from rddlib.diffusion.denoiser import Denoiser, as_denoiser
from rddlib.diffusion.schedule import CosineSchedule
from rddlib.diffusion.unet import NO_CLASS
from rddlib.evaluation import DrawnImages, common_noise, draw_to_file, evaluate, fresh_noise, open_images, write_pngs
from rddlib.evaluation.drawing import common_labels
from rddlib.utils.errors import GuidanceWarning

# drawn


def test_noise_is_the_same_for_every_batch_and_another_for_every_step_and_seed():
    draws = {"common": lambda *rows, seed: common_noise((1, 2, 2), *rows, seed=seed)}
    draws |= {k: lambda *rows, seed, k=k: fresh_noise((1, 2, 2), *rows, seed=seed, step=k) for k in range(3)}
    rows = [draw(0, 250, seed=seed) for draw in draws.values() for seed in (4, 5)]
    for draw, whole in zip(draws.values(), rows[::2], strict=True):
        assert torch.equal(whole, torch.cat([draw(k, min(k + 33, 250), seed=4) for k in range(0, 250, 33)]))
    assert len(torch.cat(rows).flatten(1).unique(dim=0)) == len(rows) * 250
    assert abs(float(common_noise((1, 8, 8), 0, 2000, seed=0).std()) - 1) < 0.01


def pulled_to_classes(asked=None, scale=1.0):
    """Images tell which noise and classes they were drawn with: a quarter of z, and a gray level of 0.2, 0.4 or 0.6."""

    def network(z, t, y):
        if asked is not None:
            asked.append(y)
        return scale * (z / 4 + 0.2 * (y - NO_CLASS)[:, None, None, None])  # no class: 0

    return as_denoiser(network, CosineSchedule(), num_classes=3)


def weighing():
    """A network that takes its weight itself: x = w/4 on every pixel."""
    network = lambda z, t, y, w: (w.to(z.dtype) / 4)[:, None, None, None].expand_as(z)  # noqa: E731
    return Denoiser(network, CosineSchedule(), num_classes=3, guidance=(0.0, 4.0))


def drawn(denoiser, count, steps, **options):
    return DrawnImages(denoiser, count, steps, seed=5, shape=(1, 8, 8), **options)


@pytest.mark.parametrize(
    "options", [{}, {"sampler": "stochastic"}, {"sampler": "stochastic", "guidance": 0.7, "classes": (2, 0)}], ids=str
)
def test_drawn_images_do_not_depend_on_their_batches(options):
    torch.manual_seed(1)
    images = drawn(pulled_to_classes(scale=0.3), 230, 3, **options)
    whole = images.batch(0, 230)
    torch.manual_seed(2)  # nothing comes from the global generator
    found = torch.cat([images.batch(k, min(k + 37, 230)) for k in range(0, 230, 37)])
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-6)
    assert len(whole.flatten(1).unique(dim=0)) == 230


def test_the_stochastic_sampler_adds_noise_to_what_ddim_draws():
    ddim, stochastic = (drawn(pulled_to_classes(), 20, 3, sampler=name).batch(0, 20) for name in ("ddim", "stochastic"))
    assert (ddim - stochastic).abs().amax((1, 2, 3)).min() > 0.05


def test_chosen_classes_are_drawn_in_turn(unet):
    asked = []
    images = drawn(pulled_to_classes(asked), 8, 2, classes=(2, 0, 1))
    assert images.labels(0, 8).tolist() == [2, 0, 1, 2, 0, 1, 2, 0] and images.labels(4, 7).tolist() == [0, 1, 2]
    images.batch(4, 7)
    assert [y.tolist() for y in asked] == [[0, 1, 2]] * 2
    free = drawn(pulled_to_classes(), 8, 2)
    assert torch.equal(free.labels(2, 8), common_labels(3, 2, 8, seed=5))
    assert drawn(unet(), 8, 2).labels(0, 8) is None


def test_drawn_images_follow_the_weight():
    plain, same, without, guided = (
        drawn(pulled_to_classes(scale=0.1), 50, 2, classes=(1,), guidance=w).batch(0, 50)
        for w in (None, 0.0, -1.0, 0.5)
    )
    assert torch.equal(same, plain) and (plain - without).min() > 0.01 and guided.abs().max() < 1
    # this network is linear in what it knows of the class, so the images are linear in the weight
    torch.testing.assert_close(guided - without, 1.5 * (plain - without), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sampler", ["ddim", "stochastic"])
def test_provenance_says_guidance_labels_and_what_they_cost(sampler):
    asked = []
    denoiser = pulled_to_classes(asked)

    def provenance(denoiser, **options):
        images = drawn(denoiser, 5, 4, sampler=sampler, **options)
        asked.clear()
        images.batch(0, 5)
        return [images.provenance[name] for name in ("guidance", "labels", "evaluations")]

    assert provenance(denoiser) == ["none", "drawn at random, all classes alike", 4] and len(asked) == 4
    assert provenance(denoiser, guidance=1.5, classes=(2, 0)) == [1.5, "2, 0 in turn", 8] and len(asked) == 8
    assert provenance(weighing(), guidance=1.5) == [1.5, "drawn at random, all classes alike", 4]
    assert provenance(as_denoiser(lambda z, t: z, CosineSchedule())) == ["none", "none", 4]


def test_identities_tell_guided_images_from_others(unet):
    denoiser = unet(10, label_dropout=0.1)
    options = [{}, *({"guidance": w} for w in (0.0, 1.0)), *({"classes": c} for c in ((1,), (1, 2)))]
    options += [{"sampler": "stochastic"}]
    assert len({DrawnImages(denoiser, 9, 2, seed=0, **chosen).identity for chosen in options}) == len(options)


@pytest.mark.parametrize(
    "denoiser, options, words",
    [
        ("classes", dict(classes=(0, NO_CLASS, 7)), "unknown classes -1, 7: choose from 0 to 2"),
        ("unet", dict(classes=(0,)), "unconditional and draws no chosen classes: leave the classes out"),
        ("unet", dict(guidance=1.0), "unconditional and cannot be guided"),
        ("labelled unet", dict(guidance=1.0), "without label dropout and cannot be guided"),
        ("weighing", {}, "takes a guidance weight: give one of 0 to 4"),
        ("weighing", dict(guidance=math.inf), "guidance inf: expected a number"),
        ("weighing", dict(guidance=math.nan), "guidance nan: expected a number"),
    ],
)
def test_what_a_model_cannot_draw_is_refused_at_once(unet, denoiser, options, words):
    made = {"classes": pulled_to_classes, "unet": unet, "labelled unet": lambda: unet(10), "weighing": weighing}
    assert words in refused(drawn, made[denoiser](), 10, 2, **options)


def test_guidance_beyond_the_range_is_warned_of_and_drawn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn(weighing(), 3, 2, guidance=4.0).batch(0, 3)
    with pytest.warns(GuidanceWarning, match="guidance 8 is outside .*, 0 to 4"):
        assert (drawn(weighing(), 3, 2, guidance=8.0).batch(0, 3) == 1).all()


def test_drawing_to_a_file_goes_on_where_it_was_stopped(tmp_path, unet):
    class Stopping(DrawnImages):
        calls, limit = 0, 99

        def batch(self, start, stop):
            self.calls += 1
            if self.calls == self.limit:
                raise KeyboardInterrupt
            return super().batch(start, stop)

    def images():
        return Stopping(unet(10), 25, 2, seed=3)

    draw_to_file(images(), tmp_path / "whole.npz", batch_size=10)
    stopped = images()
    stopped.limit = 3
    with pytest.raises(KeyboardInterrupt):
        draw_to_file(stopped, tmp_path / "again.npz", batch_size=10)
    assert len(list((tmp_path / "again.parts").iterdir())) == 2 and not (tmp_path / "again.npz").exists()
    resumed = images()
    picture = draw_to_file(resumed, tmp_path / "again.npz", batch_size=10)
    assert resumed.calls == 1 and picture.read_bytes()[:4] == b"\x89PNG" and not (tmp_path / "again.parts").exists()
    draw_to_file(resumed, tmp_path / "again.npz")
    assert resumed.calls == 1  # what is there is kept
    a, b = (np.load(tmp_path / f"{name}.npz") for name in ("whole", "again"))
    assert a["arr_0"].shape == (25, 8, 8, 1) and a["arr_0"].dtype == np.uint8 and set(a["arr_1"]) <= set(range(10))
    assert (a["arr_0"] == b["arr_0"]).all() and (a["arr_1"] == b["arr_1"]).all()


# given


def test_all_sources_give_the_same_scores(few, noisy, tmp_path):
    write_pngs(open_images(noisy), tmp_path / "pngs")
    np.savez(tmp_path / "stored.npz", arr_0=noisy.permute(0, 2, 3, 1).numpy())
    np.savez_compressed(tmp_path / "packed.npz", arr_0=noisy.permute(0, 2, 3, 1).numpy())
    expected = evaluate(noisy, few, batch_size=300)
    for source in ("pngs", "stored.npz", "packed.npz"):
        found = evaluate(tmp_path / source, few, batch_size=300)
        assert found.values == expected.values and found.receipt.images_sha256 == expected.receipt.images_sha256
        assert found.receipt.images != expected.receipt.images and found.receipt.sampler == "none: given images"
    floats = evaluate(noisy.float() / 127.5 - 1, few, batch_size=300)
    assert floats.values == expected.values


def test_a_tensor_in_training_is_scored(few, noisy):
    halves = (noisy.float() / 127.5 - 1).bfloat16()
    found, expected = (evaluate(x, few, metrics=("fid",)).values for x in (halves.requires_grad_(), halves.float()))
    assert found == expected


def test_of_a_folder_with_parts_train_is_scored(few, tmp_path, capsys):
    for part, pixels in (("train", few.images[:5]), ("test", few.images[5:8])):
        write_pngs(open_images(pixels), tmp_path / part)
    images = open_images(tmp_path)
    assert torch.equal(images.batch(0, len(images)), few.images[:5])
    assert "only the images of train/ are scored" in capsys.readouterr().err
    (tmp_path / "bus").mkdir()
    assert "holds train/ beside other folders (bus)" in refused(open_images, tmp_path)
    assert "read as parts" in refused(open_images, gray_images(tmp_path / "bus/Testing", 1, 0).parent)


def test_an_npz_is_read_a_batch_at_a_time(noisy, tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", arr_0=noisy.permute(0, 2, 3, 1).numpy(), arr_1=np.arange(len(noisy)))
    images = open_images(tmp_path / "a.npz")
    monkeypatch.setattr(np, "load", None)  # which would read all of it
    assert len(images) == 700 and images.shape == (1, 8, 8)
    for start, stop in ((300, 450), (0, 10), (690, 700)):  # forwards and back again
        assert torch.equal(images.batch(start, stop), noisy[start:stop])


@pytest.mark.parametrize(
    "name, arrays, words",
    [
        ("a.npz", dict(arr_0=np.zeros((100, 8, 8, 1), np.float32)), r"float32: expected \[N, H, W, C\] uint8"),
        ("a.npz", dict(arr_0=np.zeros((100, 3, 8, 8), np.uint8)), "expected .N, H, W, C. uint8"),
        ("a.npz", dict(samples=np.zeros(3)), "cannot be read as an .npz with arr_0"),
        ("nowhere", None, "does not exist"),
        ("", None, "holds no images"),
    ],
)
def test_what_holds_no_images_is_refused(tmp_path, name, arrays, words):
    if arrays:
        np.savez(tmp_path / name, **arrays)
    assert re.search(words, refused(open_images, tmp_path / name))


def test_a_damaged_npz_is_refused(few, tmp_path):
    path = tmp_path / "a.npz"
    for content in (b"", b"no archive", b"PK\x03\x04 half an archive"):
        path.write_bytes(content)
        for arguments in ((path, few), (few, path)):
            assert re.search("a.npz cannot be read", refused(evaluate, *arguments))
    np.savez(path, arr_0=np.zeros((900, 8, 8, 1), np.uint8))
    images = open_images(path)
    path.write_bytes(path.read_bytes()[:2000])
    assert re.search("a.npz is damaged", refused(images.batch, 800, 900))


def test_mixed_folders_are_refused(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    assert re.search("b.png is RGB, 8x8, the first image L, 8x8", refused(open_images(tmp_path).batch, 0, 2))
    (tmp_path / "b.png").write_bytes(b"no image")
    assert re.search("b.png cannot be read", refused(open_images(tmp_path).batch, 0, 2))
