"""Explorers: controls start at the function's defaults and redraw through the function itself."""

import io
import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ipywidgets import Dropdown, SelectionSlider
from matplotlib.figure import Figure
from PIL import Image

from rddlib.data import load_dataset
from rddlib.diffusion.denoiser import as_denoiser
from rddlib.diffusion.gaussian_mixture import GaussianMixture
from rddlib.diffusion.sampling import ddim_sample
from rddlib.diffusion.schedule import CosineSchedule
from rddlib.distillation.pixel_queue import PixelQueue
from rddlib.methods import COMPETING
from rddlib.report import explorers
from rddlib.report import figures as plots
from rddlib.report.explorers import explore
from rddlib.report.tables import comparison, panels
from rddlib.study.graph import build_denoiser, new_extractor
from rddlib.study.profiles import digits
from rddlib.study.study import Study


def counted():
    """A figure function and the list of arguments it was called with."""
    calls = []

    def bars(height=2, colour="gray"):
        calls.append((height, colour))
        figure = Figure(figsize=(1, 1))
        figure.subplots().bar([0], [height], color=colour)
        return figure

    return bars, calls


def test_a_moved_control_redraws_through_the_function_and_going_back_draws_nothing():
    bars, calls = counted()
    *controls, picture = explore(bars, height=range(1, 5), colour=("gray", "black")).children
    assert [type(control) for control in controls] == [SelectionSlider, Dropdown]
    first = picture.value
    assert calls == [(2, "gray")] and bytes(first).startswith(b"\x89PNG")
    controls[0].value = 4
    controls[1].value = "black"
    assert calls == [(2, "gray"), (4, "gray"), (4, "black")] and picture.value != first
    controls[0].value, controls[1].value = 2, "gray"
    assert picture.value == first and len(calls) == 4  # (2, "black") on the way
    assert plt.get_fignums() == []


@pytest.mark.parametrize("controls", [{"width": (1, 2)}, {"height": (5, 6)}])
def test_an_argument_without_a_fitting_default_is_refused(controls):
    with pytest.raises(ValueError, match="needs a default among"):
        explore(counted()[0], **controls)


def test_a_program_gets_a_line_of_text(monkeypatch):
    class Shell:
        class kernel:
            _allow_stdin = False

    monkeypatch.setattr(explorers, "get_ipython", Shell)
    bars, calls = counted()
    assert "height" in explore(bars, height=(2, 3)).data
    assert calls == []


def test_what_a_notebook_saves_has_a_line_for_the_time_when_the_widget_is_gone(monkeypatch):
    saved = []
    monkeypatch.setattr(explorers, "display", lambda shown, **_: saved.append(shown))
    explore(counted()[0], height=(2, 3))._ipython_display_()
    line, view = saved  # in this order: the line's style hides the output that follows it
    assert "Run this cell for sliders (height)" in line.data and "display: none" in line.data
    assert "application/vnd.jupyter.widget-view+json" in view and view["text/plain"] == ""
    json.dumps(view)


class Untrained(Study):
    """A digits-sized study whose models are what they are before training."""

    def denoiser(self, method, steps, seed=None, sampler=""):
        return build_denoiser(self.profile).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Untrained(digits(), tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def mixture():
    means = torch.tensor([[1.0, 1.0], [-1.0, 0.5]], dtype=torch.float64)
    weights = torch.tensor([0.6, 0.4], dtype=torch.float64)
    return GaussianMixture(weights, means, 0.05 * torch.eye(2).repeat(2, 1, 1).double())


@pytest.fixture(scope="module")
def maps(study):
    """Images [512, 1, 8, 8], their labels and an untrained extractor's maps [512, C, 4, 4] of them and of noisy ones."""
    data, extractor = load_dataset(study.profile.data), new_extractor(study.profile, 10).eval().requires_grad_(False)
    x = data.floats(torch.arange(512))
    noisy = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return x, data.labels[:512], extractor(x).map, extractor(noisy).map


def rows_of(maps):
    """Four unit pixels of each map, image by image: [4 N, C]."""
    return F.normalize(maps.flatten(2), dim=1).permute(0, 2, 1)[:, :4].flatten(0, 1)


@pytest.fixture(scope="module")
def set_up(study, mixture, maps):
    """(figure function, its controls) of each explorer, as the notebooks set them up on the digits profile."""
    generator = torch.Generator().manual_seed(0)
    starts = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    x, labels, map_T, map_S = maps
    ranks = torch.randperm(2048, generator=generator)
    tables, noise = panels(comparison([])), torch.randn(3, 8, 1, 8, 8, generator=generator)
    return {
        "paths": (
            explorers.paths_view(mixture, starts, mixture.sample(1500, generator), 0.008),
            dict(N=(4, 8, 32, 64), t=(0.0, 0.3, 0.7), offset=(0.0, 0.008, 0.3)),
        ),
        "relations": (
            explorers.relations_view(x[:32], map_T[:32], map_S[:32]),
            dict(i=range(16), j=range(16), row=range(4), column=range(4), tau=(0.05, 0.1, 1.0)),
        ),
        "gradients": (
            explorers.gradients_view(x[:8], noise[0], {1.0: noise[1], 0.1: noise[2]}),
            dict(share=(1.0, 0.1, 3.0), tau=(0.1, 1.0)),
        ),
        "queue": (
            explorers.queue_view(rows_of(map_T), labels.repeat_interleave(4), 256, ranks),
            dict(
                N_q=(512, 2048),
                pushes=range(1, 9),
                V=(64, 256, 1024),
                colour=("class", "age", "nearest", "row"),
                row=range(2048),
            ),
        ),
        "same noise": (
            explorers.same_noise_view(study),
            dict(method=("ddim", *COMPETING), steps=(4, 2, 1), first=range(48), second=range(48), image=range(12)),
        ),
        "scores": (
            plots.scores_view(tables),
            dict(table=[title for title, _, _ in tables], rows=list(plots.KINDS), method=("all methods", "RDD")),
        ),
    }


@pytest.mark.parametrize("name", ["paths", "relations", "gradients", "queue", "same noise", "scores"])
def test_every_move_of_a_slider_draws_a_new_picture(set_up, name):
    figure, controls = set_up[name]
    *moved, picture = explore(figure, **controls).children
    for control in moved:
        for value in [value for value in list(control.options)[:2] if value != control.value]:
            before = picture.value
            control.value = value
            assert picture.value is not before
    assert plt.get_fignums() == []


def click(explored, axes, x, y):
    """Click on the place of these data coordinates in the picture; what the controls are set to."""
    *controls, picture = explored.children
    axes.figure.draw_without_rendering()
    place = axes.figure.transFigure.inverted().transform(axes.transData.transform((x, y)))
    picture._handle_custom_msg(dict(zip("xy", place.tolist(), strict=True)), [])
    return {control.description: control.value for control in controls}


def test_a_click_on_a_pixel_chooses_it_and_one_on_the_other_image_asks_from_there():
    images = 2 * torch.rand(10, 3, 12, 20, generator=torch.Generator().manual_seed(0)) - 1  # neither square nor digits
    maps = torch.randn(2, 10, 16, 3, 5, generator=torch.Generator().manual_seed(1))
    figure = explorers.relations_view(images, *maps)
    axes = figure(i=1, j=2).axes
    plt.close("all")
    explored = explore(figure, i=range(10), j=range(10), row=range(3), column=range(5))
    explored.children[0].value, explored.children[1].value = 1, 2
    picture = explored.children[-1]
    before = picture.value
    assert click(explored, axes[0], 4.4, 1.6) == dict(i=1, j=2, row=2, column=4) and picture.value != before
    assert click(explored, axes[1], 0.3, 0.2) == dict(i=2, j=1, row=0, column=0)
    assert click(explored, axes[3], 2.9, 2.2) == dict(i=1, j=2, row=2, column=3)
    assert click(explored, axes[0], -2, 1) == dict(i=1, j=2, row=2, column=3)  # beside it: nothing


def test_a_click_on_a_row_or_its_slot_frames_it(set_up):
    figure, controls = set_up["queue"]
    plane, slots = figure(N_q=512, pushes=3).axes[:2]
    plt.close("all")
    explored = explore(figure, **controls)
    explored.children[0].value, explored.children[1].value = 512, 3
    assert click(explored, slots, 100, 0)["row"] == 612  # of the 768 pushed the last 512 are held, 512 to 767 first
    assert "row 612:" in figure(N_q=512, pushes=3, row=612).get_suptitle()
    x, y = plane.lines[0].get_xydata()[700]
    assert click(explored, plane, x, y)["row"] == 700
    x, y = plane.lines[0].get_xydata()[10]  # overwritten: the nearest that is held
    assert click(explored, plane, x, y)["row"] in range(256, 768)


def test_a_click_on_an_image_shows_it_large(set_up):
    figure, controls = set_up["same noise"]
    drawn = figure(image=7)
    explored = explore(figure, **controls)
    assert click(explored, drawn.axes[1], 7 * 9 + 3, 5)["image"] == 7
    large = drawn.axes[-1].images[0].get_array()
    plt.close("all")
    assert np.array_equal(large, drawn.axes[2].images[0].get_array()[:, 63:71])


def test_a_share_is_a_share_of_cfds_gradient():
    x, cfd, relation = torch.randn(3, 8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    title = explorers.gradients_view(x, cfd, {0.1: cfd + relation})(share=0.5).get_suptitle()
    weight = 0.5 * cfd.norm() / (cfd + relation).norm()
    cosine = torch.cosine_similarity(cfd.flatten(), (cfd + relation).flatten(), dim=0)
    assert title == f"tau_IS = 0.1: a share of 0.5 is a weight of {weight:.3g}; cosine of the two pulls {cosine:+.2f}"


MOVES = {
    "paths": [dict(N=4), dict(N=8, t=0.3), dict(N=8, t=0.0), dict(N=64, t=0.7, offset=0.3), dict(N=4, t=0.3)],
    "relations": [dict(i=1, j=2, row=3), dict(i=1, j=1, tau=1.0), dict(i=3, j=2, row=0, column=3, tau=0.01)],
    "large relations": [dict(i=1, j=2, row=7), dict(i=3, j=2, row=0, column=7, tau=0.01)],  # no numbers in the maps
    "same noise": [dict(), dict(image=7), dict(method="ddim", steps=4), dict(first=5, second=5), dict(image=2)],
    "queue": [
        dict(N_q=2048, pushes=3),
        dict(N_q=512, pushes=8, colour="age"),
        dict(N_q=512, pushes=1, colour="row", row=40, V=256),
        dict(N_q=2048, pushes=8, colour="nearest", row=1),
        dict(N_q=512, pushes=8),
    ],
}


@pytest.mark.parametrize("name", MOVES)
def test_explorers_look_after_moves_as_drawn_afresh(set_up, name):
    if name == "large relations":
        maps = torch.randn(2, 8, 16, 8, 8, generator=torch.Generator().manual_seed(0))
        figure = explorers.relations_view(torch.zeros(8, 3, 8, 8), *maps)
    else:
        figure, _ = set_up[name]
    into = plots.Kept()
    for move in MOVES[name]:
        pngs = plots.live(figure(**move, into=into), explorers.DPI)[0], plots.live(figure(**move), explorers.DPI)[0]
        kept, fresh = (np.asarray(Image.open(io.BytesIO(png))) for png in pngs)
        assert np.array_equal(kept, fresh), move


def test_paths_pass_through_the_samplers_stops_and_end_at_its_sample(mixture):
    starts = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    paths = explorers.paths_view(mixture, starts, starts, 0.008)
    schedule = CosineSchedule(0.008)
    visited = []
    denoiser = as_denoiser(lambda z, t: mixture.denoise(z, t, schedule), schedule)
    end = ddim_sample(denoiser, starts, 4, clip=False, callback=lambda k, t, z, x: visited.append(z))
    figures = [paths(N=4, t=t) for t in (1.0, 0.75, 0.6, 0.5, 0.0)]
    drawn = [torch.tensor(np.array(one.axes[1].collections[0].get_segments())).transpose(0, 1) for one in figures]
    assert [len(walked) for walked in drawn] == [2, 3, 3, 4, 5]  # noise, stops passed, and where it is now
    assert torch.equal(drawn[0][-1], starts) and torch.allclose(drawn[4][-1], end)
    assert torch.allclose(drawn[1][-1], visited[1]) and torch.allclose(drawn[3][-1], visited[2])


def test_relations_are_the_softmax_of_the_cosines(maps, monkeypatch):
    drawn = []
    show = explorers._RelationFigure.show
    monkeypatch.setattr(explorers._RelationFigure, "show", lambda self, *a: drawn.append(a) or show(self, *a))
    x, _, map_T, map_S = maps
    explorers.relations_view(x, map_T, map_S)(i=2, j=7, row=1, column=3, tau=0.2)
    images, pixel, teacher, student, title = drawn[0]
    assert torch.equal(images, x[[2, 7]]) and pixel == (1, 3)
    cosines = F.cosine_similarity(map_S[2, :, 1, 3, None, None].double(), map_S[7].double(), dim=0)
    assert torch.allclose(student, (cosines / 0.2).flatten().softmax(0).reshape(4, 4))
    assert f"{(teacher * (teacher / student).log()).sum():.2e} nats" in title


def test_the_queue_shown_is_the_librarys_queue(maps):
    rows = rows_of(maps[2][:64])  # [256, C]
    ranks = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    shown = explorers.queue_view(rows, torch.arange(256), 32, ranks)  # "classes": each row's own number
    for size, pushes in ((96, 2), (96, 3), (80, 7), (256, 8)):
        queue = PixelQueue(size, rows.shape[1])
        for k in range(pushes):
            queue.push(rows[32 * k : 32 * (k + 1), :, None, None], 1)
        figure = shown(N_q=size, pushes=pushes, V=10, colour="age")
        plane, below = figure.axes[:2]
        every, ringed, _ = (line.get_xydata() for line in plane.lines)
        held, drawn = (
            torch.tensor([(every == at).all(1).argmax() for at in places])
            for places in (plane.collections[0].get_offsets(), ringed)
        )
        slots = torch.full((size,), -1)
        slots[held % size] = held
        assert len(held) == len(queue) and len(drawn) == 10 and set(drawn.tolist()) <= set(held.tolist())
        assert torch.allclose(rows[slots[slots >= 0]], queue.rows[slots >= 0], atol=1e-6)
        ages = below.images[0].get_array()[0].filled(math.nan)
        assert ages[slots >= 0].tolist() == (pushes - 1 - slots[slots >= 0] // 32).tolist()
        assert np.isnan(ages[slots < 0]).all()
        nearest = (rows[held] @ rows[drawn].T).max(1).values.mean()
        assert f"{nearest:.3f}" in figure.get_suptitle()


def test_noise_on_the_way_from_one_to_another_is_standard_normal():
    first, second = torch.randn(2, 3, 100, 100, generator=torch.Generator().manual_seed(0))
    way = explorers.between(first, second, 7)
    assert torch.equal(way[0], first) and torch.allclose(way[-1], second, atol=1e-6)
    assert torch.allclose(way.flatten(1).std(dim=1), torch.ones(7), atol=0.02)
    assert way.flatten(1).mean(dim=1).abs().max() < 0.02


def test_same_noise_rows_are_the_studys_images(study, monkeypatch):
    drawn = []
    torch.manual_seed(0)
    model = build_denoiser(study.profile).eval().requires_grad_(False)
    monkeypatch.setattr(study, "denoiser", lambda *_: model)
    monkeypatch.setattr(plots, "image_rows", lambda rows, title, look, into: drawn.append(list(rows.values())))
    explorers.same_noise_view(study, count=5)(method="pd", steps=2, first=3, second=6)
    noise, teacher, student = drawn[0]
    ends = study.noise(48)[[3, 6]]
    assert torch.allclose(3 * noise[[0, -1]], ends, atol=1e-5)
    assert torch.allclose(student[[0, -1]], study.images("pd", 2, ends), atol=1e-4)
    steps = study.profile.progressive.teacher_steps
    assert torch.allclose(teacher[[0, -1]], study.images("pd", steps, ends), atol=1e-4)
    explorers.same_noise_view(study, count=3)(method="pd", steps=2, first=3, second=3)
    assert torch.equal(drawn[1][0], drawn[1][0][:1].expand(3, -1, -1, -1))


def test_scores_show_the_rows_asked_for():
    found = panels(comparison([]))
    scores, title = plots.scores_view(found), found[0][0]
    rows = found[0][2]
    peers = rows[rows["kind"] == "peer"]
    everything, papers, few, none = (
        scores(table=title, **options).axes[0]
        for options in ({}, {"rows": "papers"}, {"method": "PD"}, {"rows": "measured here"})
    )
    assert sorted(text.get_text() for text in everything.texts) == sorted(peers["method"])
    assert not papers.texts and len(papers.lines) < len(everything.lines) + 1
    assert {text.get_text() for text in few.texts} == {"PD"}
    assert "no rows here" in none.texts[0].get_text()
