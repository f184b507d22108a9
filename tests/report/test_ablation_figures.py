"""Figures of ablations, from made-up tables of every one in the catalogue, and the papers' numbers in them."""

import io
import math
from itertools import chain, combinations, product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from figure_faults import faults
from matplotlib.transforms import Bbox
from tiny import refused

from rddlib.report.ablations import WIDTH, ablation_figure, entropy_figure, paper_series
from rddlib.study.ablations import ABLATIONS, custom
from rddlib.study.profiles import load_profile
from rddlib.study.sweep import COLUMNS
from rddlib.utils.errors import UserError

METRICS = {"digits": "FID (digits metric network, 5000 samples)", "cifar10": "FID (50000 samples)"}
GRIDS = {
    "custom": {"loss.tau_is": "0.1,1"},
    "custom: crowded": {"loss.rcfd_beta": "0,0.001,0.002,0.003,0.004,0.5,0.52,0.54,0.55,0.56,10"},
    "custom: three axes": {"loss.cfd": "0,0.3,1", "loss.tau_m": "0.1,0.2,0.5", "loss.impl": "chunked,reference"},
    "custom: long": {
        "distill.train.learning_rate": "1e-4,3e-4",
        "extractor.train.weight_decay": "0.01,0.1",
        "progressive.train.learning_rate": "1e-4,3e-4",
    },
    "custom: words": {"loss.weights": "fixed,balanced", "loss.alpha": "0.5,1"},
}
FENG, SUN = "Feng et al. 2024", "Sun et al. 2023"
PAPERS = {  # their numbers, of their profile
    "losses": dict(steps=1, fids={"PD": 15.06, "CFD + IS_P2P + M_P2P": 8.16}),
    "rcfd_losses": dict(fids={"entropy": 330.27, "CFD + entropy + diversity": 4.24}),
    "classifier": dict(fids={"resnet18": 4.42, "resnet50": 4.24, "densenet201": 3.80}),
    "tau_is": dict(marks=(0.7, 0.9)),
    "tau_m": dict(marks=(0.4,)),
    "queue_size": dict(marks=(20000,)),
    "queue_draws": dict(marks=(2048,)),
    "alpha": dict(marks=(0.8,)),
    "beta": dict(marks=(0.3,)),
    "cfd_tau": dict(marks=(0.9, 1.0), levels={"PD": 4.83}),
    "cfd_tau_dual": dict(levels={"PD": 4.83, "CFD with ResNet18": 4.42}),
}


def find(name, profile="digits"):
    return custom(GRIDS[name], load_profile(profile)) if name in GRIDS else ABLATIONS[name]


def scores(setting, steps, profile, random):
    """What a run might measure: useless without CFD, several times worse in one step, no pFD of colour images."""
    useless = setting.method == "rcfd" and "CFD" not in setting.name
    fid = (300 if useless else 4) * (4 / steps) ** 0.7 * random.lognormal(0, 0.08)
    memory = 300 + 12 * (setting.x or 0) * (2 if setting.series == "reference" else 1)
    return {"fid": fid, "pfd": 0.1 * fid**1.3 if profile == "digits" else math.nan, "is": 9.0, "peak_mib": memory}


def measured(name, profile="digits", seeds=3, steps=None):
    """A table as a sweep makes it, with random numbers that are the same each time."""
    ablation, random, rows = find(name, profile), np.random.default_rng(0), []
    steps = steps or ((4, 2, 1) if ablation.whole else (4,))
    for s in ablation.settings(load_profile(profile)):
        facts = {"ablation": ablation.name, "setting": s.name, "series": s.series, "x": s.x, "method": s.method}
        own = (8,) if ablation.measures == "entropy" and s.method in ("teacher", "pd") else ()
        for seed, number in product(range(seeds), (*own, *steps)):
            row = facts | {"seed": seed, "steps": number, "samples": 5000}
            if ablation.measures == "entropy":
                times = [(number - k) / number for k in range(number)]
                rows += [row | {"t": t, "entropy": 0.05 + t**2 * random.lognormal(0, 0.1)} for t in times]
            else:
                rows.append(row | scores(s, number, profile, random))
    return pd.DataFrame(rows, columns=COLUMNS)


def drawn(name, profile="digits", table=None):
    table = measured(name, profile) if table is None else table
    return ablation_figure(find(name, profile), table, load_profile(profile), METRICS[profile])


def in_view(axis):
    """Its tick labels that are seen."""
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [tick.label1 for tick in ticks if tick.label1.get_visible()]


def written(text):
    """The box of a text without the empty lines that it begins with."""
    box, lines = text.get_window_extent(), text.get_text().split("\n")
    empty = next(k for k, line in enumerate(lines) if line)
    return Bbox.from_extents(box.x0, box.y0, box.x1, box.y1 - box.height * empty / len(lines)).padded(-1)


def crowding(figure):
    """Texts that are cut off or that touch each other, and texts in a legend or a panel that are not its own."""
    figure.canvas.draw()
    ticks = [in_view(axis) for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
    own = [[ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts] for ax in figure.axes]
    texts = chain(*own, *ticks, figure.texts, *(box.get_texts() for box in figure.legends))
    boxes = [(text.get_text(), written(text)) for text in texts if text.get_text()]
    inside, pairs = figure.bbox.padded(1), combinations(boxes, 2)
    found = [f"{text!r} is cut off" for text, box in boxes if Bbox.intersection(box, inside).bounds != box.bounds]
    found += [f"{text!r} touches {other!r}" for (text, box), (other, its) in pairs if box.overlaps(its)]
    panels = [ax.get_window_extent().padded(-1) for ax in figure.axes]
    return found + [f"{text!r} lies in a panel" for text, box in boxes if any(map(box.overlaps, panels))]


def lines(ax):
    """{label: line} of what a legend names."""
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def rows(ax):
    """{setting: its mean} of a panel with a row for each, first on top, read off the large markers."""
    names = [label.get_text() for label in ax.figure.axes[0].get_yticklabels()]
    means = [line for line in ax.lines if len(line.get_xdata()) == 1 and line.get_marker() != "."]
    return {names[int(line.get_ydata()[0])]: line.get_xdata()[0] for line in means}


@pytest.mark.parametrize(
    "name, profile",
    [*product([*ABLATIONS, *GRIDS], ["digits"]), *product([*PAPERS, *GRIDS], ["cifar10"])],
)
def test_every_ablations_figure_can_be_read(name, profile):
    figure, ablation = drawn(name, profile), find(name, profile)
    assert faults(figure) == [] and crowding(figure) == [] and figure.get_figwidth() <= WIDTH
    words = " ".join(figure.get_suptitle().split())
    assert words.startswith(ablation.title) and profile in words and "3 seeds" in words and "step" in words
    assert ("lower is surer" if name == "entropy" else "lower is better") in words
    assert all(axis.label in words for axis in ablation.axes) or ablation.source
    texts = chain(*([*ax.texts, *in_view(ax.xaxis), *in_view(ax.yaxis)] for ax in figure.axes))
    assert all(text.get_fontsize() >= 9 for text in texts)
    papers = [label for ax in figure.axes for label in lines(ax) if FENG in label or SUN in label]
    assert bool(papers) == (profile == "cifar10" and name in PAPERS)


def test_a_crowded_figure_is_found():
    figure, ax = plt.subplots()
    ax.set_xticks([1, 1.01], ["one", "other"])
    assert any("touches" in fault for fault in crowding(figure))
    figure, ax = plt.subplots()
    ax.text(1.1, 0.5, "far too long to end before the paper does", transform=ax.transAxes)
    assert any("cut off" in fault for fault in crowding(figure))


# along an axis


def test_a_line_is_the_mean_over_seeds_with_the_seeds_around_it():
    table = measured("tau_is", steps=(4, 2))
    figure, table = drawn("tau_is", table=table), table[table["steps"] == 2]  # the fewest steps alone
    for ax, column in zip(figure.axes, ("fid", "pfd"), strict=True):
        by_value = table.dropna(subset="x").groupby("x")[column]
        line = lines(ax)["RDD, beta = 0"]
        assert list(line.get_xdata()) == [0.1, 0.4, 0.7, 0.9, 1.0]
        assert list(line.get_ydata()) == pytest.approx(list(by_value.mean()))
        (band,) = ax.collections
        (path,) = band.get_paths()
        assert path.vertices[:, 1].max() == pytest.approx(by_value.max().max())
        assert path.vertices[:, 1].min() == pytest.approx(by_value.min().min())
        dots = next(line for line in ax.lines if line.get_marker() == ".")
        assert len(dots.get_xdata()) == 15
        cfd = table.loc[table["setting"] == "CFD", column]
        assert set(lines(ax)["CFD"].get_ydata()) == {cfd.mean()}
        (span,) = ax.patches
        assert (span.get_y(), span.get_y() + span.get_height()) == pytest.approx((cfd.min(), cfd.max()))
    assert [label.get_text() for label in in_view(figure.axes[0].xaxis)] == ["0.1", "0.4", "0.7", "0.9", "1"]


def test_values_far_apart_get_a_logarithmic_axis():
    for name, scale in {"alpha": "log", "beta": "log", "tau_is": "linear", "custom: crowded": "symlog"}.items():
        assert {ax.get_xscale() for ax in drawn(name).axes} == {scale}, name


def test_a_line_for_each_series_and_settings_beside_the_axis_level():
    (ax, _) = drawn("cfd_tau_dual").axes
    assert list(lines(ax)) == ["aligned: features", "aligned: predictions", "PD", "CFD"]
    styles = [(line.get_marker(), line.get_linestyle()) for line in lines(ax).values()]
    assert len(set(styles)) == 4 and len({style for _, style in styles}) >= 3


def test_batch_size_stands_beside_memory_and_equal_lines_both_show():
    table = measured("batch")
    table["fid"] = table["x"] / 16 + table["seed"]  # the two forms are one computation
    fid, memory = drawn("batch", table=table).axes
    assert "FID" in fid.get_ylabel() and "memory" in memory.get_ylabel() and "MiB" in memory.get_ylabel()
    first, second = lines(fid).values()
    assert list(first.get_ydata()) == list(second.get_ydata())
    assert first.get_markerfacecolor() != "none" and second.get_markerfacecolor() == "none"
    assert second.get_markersize() > first.get_markersize() and first.get_linestyle() != second.get_linestyle()
    assert list(lines(memory)["form: reference"].get_ydata()) == [300 + 24 * size for size in (16, 32, 64, 128)]


def test_scores_that_were_not_measured_make_room():
    for unmeasured in (math.nan, 0.0, None):  # memory, in old records
        table = measured("batch").assign(peak_mib=unmeasured)
        assert "pFD" in drawn("batch", table=table).axes[1].get_ylabel()
    assert len(drawn("batch", table=table.assign(pfd=None)).axes) == 1
    table = measured("tau_is")
    assert len(drawn("tau_is", table=table.assign(pfd=math.nan)).axes) == 1
    table.loc[table["x"].notna(), "pfd"] = math.nan  # of CFD alone: nothing to draw along the axis
    assert len(drawn("tau_is", table=table).axes) == 1
    assert len(drawn("losses", table=measured("losses").assign(pfd=None)).axes) == 3


def test_an_outlier_does_not_squash_the_rest():
    table = measured("tau_is")
    assert drawn("tau_is", table=table).axes[0].get_yscale() == "linear"
    table.loc[0, "fid"] = 400
    assert drawn("tau_is", table=table).axes[0].get_yscale() == "log"
    assert [ax.get_xscale() for ax in drawn("rcfd_losses").axes] == ["log", "log"]
    assert {ax.get_xscale() for ax in drawn("losses").axes} == {"linear"}


# row by row


def test_rows_show_seeds_mean_and_number_in_the_tables_order():
    table = measured("losses")
    figure = drawn("losses", table=table)
    assert [ax.get_title() for ax in figure.axes] == ["4 steps", "2 steps", "1 step"] * 2
    ax, here = figure.axes[2], table[table["steps"] == 1]
    means = here.groupby("setting", sort=False)["fid"].mean()
    assert rows(ax) == pytest.approx(dict(means)) and list(rows(ax)) == list(means.index)
    low, high = ax.get_ylim()
    assert low > high  # the first row on top
    dots = [sorted(line.get_xdata()) for line in ax.lines if line.get_marker() == "."]
    assert dots == [sorted(here.loc[here["setting"] == name, "fid"]) for name in means.index]
    spread = here.loc[here["setting"] == "CFD", "fid"].std()
    assert ax.texts[1].get_text() == f"{means['CFD']:.2f} ± {spread:.2f}"
    assert set(lines(ax)["mean of PD"].get_xdata()) == {means["PD"]}


def test_what_went_through_several_extractors_shares_a_row_and_far_ones_are_arrows():
    table = measured("evidence")
    table.loc[table["setting"].str.startswith("CFD, low tau"), "fid"] *= 6
    figure = drawn("evidence", table=table)
    assert crowding(figure) == [] and faults(figure) == []
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert "CFD, low tau" in names and not any("extractor" in name for name in names)
    for ax, steps in zip(figure.axes[:3], (4, 2, 1), strict=True):
        arrows = [
            line.get_ydata()[0] for line in ax.lines if "arrow" in str(line.get_marker()) and len(line.get_xdata())
        ]
        assert [round(place) for place in arrows] == [names.index("CFD, low tau")] * 3
        means = table[table["steps"] == steps].groupby("setting")["fid"].mean()
        low, high = sorted(means[[f"CFD, low tau, extractor {k}" for k in range(3)]])[::2]
        assert ax.texts[names.index("CFD, low tau")].get_text() == f"{low:.2f} to {high:.2f}"
        assert ax.get_xlim()[1] < low


@pytest.mark.parametrize(
    "name, baseline", [("released", "CFD"), ("classifier", "PD"), ("budget", "PD, equal iterations")]
)
def test_the_first_baseline_gives_the_line_to_compare_with(name, baseline):
    for ax in drawn(name).axes:
        assert set(lines(ax)[f"mean of {baseline}"].get_xdata()) == {rows(ax)[baseline]}


@pytest.mark.parametrize(
    "fids, text, seeds",
    [((4.234,), "4.23", "1 seed;"), ((300, 302), "301.0 ± 1.4", "2 seeds,"), ((0.5, 0.7), "0.600 ± 0.141", "2 seeds,")],
)
def test_numbers_are_written_to_their_size(fids, text, seeds):
    table = measured("classifier", seeds=len(fids))
    table.loc[table["setting"] == "PD", "fid"] = fids
    figure = drawn("classifier", table=table)
    assert figure.axes[0].texts[0].get_text() == text and seeds in figure.get_suptitle()


# entropies


def test_entropies_are_drawn_by_model_over_time_for_each_number_of_steps():
    table = measured("entropy")
    figure = drawn("entropy", table=table)
    assert [ax.get_title() for ax in figure.axes] == ["teacher", "PD", "CFD", "RCFD"]
    assert [len(lines(ax)) for ax in figure.axes] == [4, 4, 3, 3]
    assert len({ax.get_ylim() for ax in figure.axes}) == 1 and figure.axes[0].get_yscale() == "log"
    line = lines(figure.axes[1])["4 steps"]
    here = table[(table["setting"] == "PD") & (table["steps"] == 4)].groupby("t")["entropy"].mean()
    assert list(line.get_xdata()) == [0.25, 0.5, 0.75, 1] and list(line.get_ydata()) == pytest.approx(list(here))
    assert figure.axes[0].get_xlim()[0] > figure.axes[0].get_xlim()[1]  # noise on the left
    other = lines(figure.axes[2])["4 steps"]
    assert (line.get_marker(), line.get_color()) == (other.get_marker(), other.get_color())


# incomplete tables


@pytest.mark.parametrize("name", ["tau_is", "batch", "losses", "entropy", "custom: three axes"])
def test_a_table_half_done_is_drawn(name):
    table = measured(name)
    some = table[(table["seed"] == 0) | (table["setting"] == table["setting"].iloc[0])]
    some = some[some["setting"].isin(list(dict.fromkeys(some["setting"]))[:2])]
    figure = drawn(name, table=some)
    assert faults(figure) == [] and "1 to 3 seeds" in figure.get_suptitle()
    assert faults(drawn(name, table=table.head(1))) == []


def test_a_setting_without_any_score_is_left_out():
    table = measured("losses")
    table.loc[table["setting"] == "CFD + M_P2P", "fid"] = math.nan
    for ax in drawn("losses", table=table).axes:
        assert "CFD + M_P2P" not in rows(ax) and len(rows(ax)) == 5
    table = measured("tau_is")
    table.loc[(table["setting"] == "CFD") | (table["x"] == 0.7), "fid"] = math.nan
    ax = drawn("tau_is", table=table).axes[0]
    assert list(lines(ax)) == ["RDD, beta = 0"] and 0.7 not in lines(ax)["RDD, beta = 0"].get_xdata()
    table = measured("cfd_tau_dual")  # settings beside an axis alone are drawn row by row
    assert list(rows(drawn("cfd_tau_dual", table=table[table["x"].isna()]).axes[0])) == ["PD", "CFD"]


@pytest.mark.parametrize("name", ["cfd_tau", "losses", "entropy"])
def test_a_table_read_from_its_file_gives_the_same_figure(name):
    table = measured(name)
    again = pd.read_csv(io.StringIO(table.to_csv(index=False)))
    for ax, other in zip(drawn(name, table=table).axes, drawn(name, table=again).axes, strict=True):
        assert list(lines(ax)) == list(lines(other))
        for line, its in zip(ax.lines, other.lines, strict=True):
            np.testing.assert_allclose(line.get_xydata(), its.get_xydata())


@pytest.mark.parametrize("name", ["tau_is", "losses", "entropy"])
def test_nothing_measured_is_refused(name):
    table = measured(name)
    for none in (table.head(0), pd.DataFrame(columns=COLUMNS), table.assign(fid=math.nan, entropy=math.nan)):
        with pytest.raises(UserError, match=f"nothing of ablation {name} .*: run rdd ablate {name} first"):
            drawn(name, table=none)


# the papers' numbers


@pytest.mark.parametrize("name", [*ABLATIONS, "custom"])
def test_the_papers_numbers_are_those_printed_and_only_on_their_profile(name):
    found, printed = paper_series(find(name), load_profile("cifar10")), PAPERS.get(name)
    for other in ("smoke", "digits", "cifar10_small", "imagenet64"):
        assert paper_series(find(name), load_profile(other)) is None
    assert (found is None) == (printed is None)
    if found:
        printed = dict(steps=4, fids={}, marks=(), levels={}) | printed
        assert (found.steps, found.marks, found.levels) == (printed["steps"], printed["marks"], printed["levels"])
        assert printed["fids"].items() <= found.fids.items() and bool(printed["fids"]) == bool(found.fids)
        assert set(found.fids) <= {setting.name for setting in find(name).settings(load_profile("cifar10"))}
        assert found.label.startswith(SUN if find(name).source.endswith(SUN) else FENG)


@pytest.mark.parametrize("name", ["losses", "rcfd_losses", "classifier"])
def test_the_papers_tables_are_hollow_markers_on_their_rows(name):
    paper = paper_series(find(name), load_profile("cifar10"))
    for ax in drawn(name, "cifar10").axes:
        line = lines(ax).get(paper.label)
        if ax.get_title() not in ("", "1 step"):
            assert line is None  # the paper has other steps
            continue
        names = [label.get_text() for label in ax.figure.axes[0].get_yticklabels()]
        assert {names[y]: x for x, y in zip(*line.get_data(), strict=True)} == paper.fids
        assert line.get_markerfacecolor() == "none" and line.get_linestyle() == "None"


@pytest.mark.parametrize("name", ["tau_is", "cfd_tau", "cfd_tau_dual"])
def test_what_the_papers_say_of_their_figures_is_dotted(name):
    paper, (ax,) = paper_series(find(name), load_profile("cifar10")), drawn(name, "cifar10").axes
    dotted = [line for line in ax.lines if line.get_linestyle() == ":"]
    upright = [line.get_xdata()[0] for line in dotted if len(set(line.get_xdata())) == 1]
    level = {line.get_label(): line.get_ydata()[0] for line in dotted if len(set(line.get_ydata())) == 1}
    assert tuple(upright) == paper.marks
    assert level == {f"{method}, {paper.label}": fid for method, fid in paper.levels.items()}
    assert len([label for label in lines(ax) if paper.label in label]) == bool(paper.marks) + len(paper.levels)
    low, high = ax.get_ylim()
    assert all(low < fid < high for fid in paper.levels.values())


def test_levels_count_for_the_scale_and_are_not_drawn_beside_other_steps():
    table = measured("cfd_tau_dual", "cifar10").assign(fid=40.0)
    assert drawn("cfd_tau_dual", "cifar10", table).axes[0].get_yscale() == "log"
    for name in ("tau_is", "rcfd_losses"):
        figure = drawn(name, "cifar10", measured(name, "cifar10", steps=(2, 1)))
        assert not any(FENG in label or SUN in label for ax in figure.axes for label in lines(ax))


# entropies of one model


def runs(scale=1.0):
    return {n: [scale * (2 - k / n) for k in range(n)] for n in (1, 2, 4, 8)}


def test_a_models_entropies_draw_each_run_at_its_times_under_the_log_of_the_classes():
    figure = entropy_figure({n: torch.tensor(values) for n, values in runs().items()}, 10, 4096)
    (ax,) = figure.axes
    *curves, limit = ax.lines
    assert [len(curve.get_xdata()) for curve in curves] == [8, 4, 2, 1]
    assert list(curves[1].get_xdata()) == [1, 0.75, 0.5, 0.25] and list(curves[1].get_ydata()) == runs()[4]
    assert set(limit.get_ydata()) == {math.log(10)} and "log 10 = 2.30" in ax.texts[0].get_text()
    assert "nats" in ax.get_ylabel() and "t" in ax.get_xlabel() and "4,096 images" in ax.get_title()
    assert len({(c.get_marker(), c.get_linestyle()) for c in curves}) == 4
    assert ax.get_xlim()[0] > ax.get_xlim()[1]  # time runs from noise to the image
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["8 steps: 1.12", "4 steps: 1.25", "2 steps: 1.50", "1 step: 2.00"]


@pytest.mark.parametrize("scale, axis", [(0.01, "log"), (1.0, "linear"), (0.0, "linear")])
def test_small_entropies_alone_get_a_logarithmic_axis_and_all_are_seen(scale, axis):
    (ax,) = entropy_figure(runs(scale), 10, 8).axes
    low, high = ax.get_ylim()
    assert ax.get_yscale() == axis and high > math.log(10)
    assert 0 < low < 0.01 if axis == "log" else low == 0


def test_half_an_axis_is_not_left_empty_below_the_log_of_the_classes():
    (ax,) = entropy_figure(runs(0.4), 10, 8).axes
    assert ax.get_ylim()[1] < 1.1 and ax.texts[0].get_text().startswith("beyond the axis: log 10 = 2.30")


def test_figure_refuses_a_run_with_another_number_of_values_and_none_at_all():
    assert "run of 4 steps has 3 entropies: pass one for each step" in refused(entropy_figure, {4: [1, 1, 1]}, 10, 8)
    assert "no run to draw" in refused(entropy_figure, {}, 10, 8)
