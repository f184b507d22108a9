"""Comparison tables and `rdd report`: kinds kept apart, nothing compared that was measured differently."""

import csv
import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.text import Text
from PIL import Image
from tiny import refused

from rddlib.evaluation import PROTOCOLS, SCORES, which_is_better
from rddlib.evaluation.networks import INCEPTION_SHA256
from rddlib.methods import LABELS
from rddlib.report.figures import comparison_figure
from rddlib.report.tables import (
    COLUMNS,
    as_frame,
    as_markdown,
    as_text,
    comparison,
    describe,
    panels,
    read_measurements,
)
from rddlib.utils.errors import UserError

RESULTS = Path(__file__).resolve().parents[2] / "data/results"
PAPERS_ALONE = ["Table 1: CIFAR-10", "Table 2: ImageNet 64x64"]


@pytest.fixture(autouse=True)
def _nothing_in_the_usual_place(monkeypatch, tmp_path):
    monkeypatch.setattr("rddlib.study.folder.default_out", lambda profile: tmp_path / "usual" / profile)


@pytest.fixture
def report(rdd):
    """`rdd report`: what it prints, and nothing else that it says."""

    def printed(*arguments):
        status, printed, errors = rdd("report", *map(str, arguments))
        assert (status, errors) == (0, "")
        return printed

    return printed


def receipt(dataset="cifar10", protocol="released", samples=50_000, **changes):
    """A receipt as they are written now."""
    count = {"cifar10": 50000, "imagenet64": 1281167, "digits": 1797}.get(dataset, 100)
    way, inception = PROTOCOLS[protocol], dataset != "digits"
    made = {
        "metric": f"FID ({'' if inception else 'digits metric network, '}{samples} samples)",
        "protocol": protocol,
        "tool": "torch-fidelity 0.4.0",
        "network": "Inception v3" if inception else "digits metric network",
        "network_sha256": INCEPTION_SHA256 if inception else "d" * 64,
        "resize": way.resize if inception else "none",
        "rounding": way.rounding,
        "shuffled": way.shuffled,
        "reference": f"{dataset}, {count} images",
        "reference_sha256": "a" * 64,
        "samples": samples,
        "sampler": "ddim",
        "clip": True,
        "ema": "none",
        "noise_seed": 1234,
        "git_commit": "0" * 40,
        "written": "2026-01-01T00:00:00Z",
    }
    return made | changes


def write(folder, method, steps, seed, fid, part="scores", name="", row=(), **changes):
    """One result file, for a model of its own for each method, steps and seed."""
    facts = receipt(**{"checkpoint_sha256": f"{method}-{steps}-{seed}", **changes}) | {"steps": steps}
    values = {"method": method, "steps": steps, "seed": seed, "fid": fid, "is": 9.0, "samples": facts["samples"]}
    path = folder / part / f"{name or f'{method}-{steps}-{seed}'}-{facts['protocol']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"row": {**values, "seconds": 1.0, **dict(row)}, "receipt": facts}))
    return path


@pytest.fixture
def digits(tmp_path):
    """A study's folder with the published digits results."""
    folder, receipts = tmp_path / "digits", json.loads((RESULTS / "digits_receipts.json").read_text())
    (folder / "scores").mkdir(parents=True)
    with (RESULTS / "digits_seeds.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            name = f"{row['method']}-{row['steps']}-{row['seed']}"
            numbers = {key: float(value) for key, value in row.items() if key in ("fid", "pfd", "is", "seconds")}
            counts = {key: int(row[key]) for key in ("steps", "seed", "samples")}
            content = {"row": {**row, **numbers, **counts}, "receipt": receipts[name]}
            (folder / "scores" / f"{name}-0123456789ab.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def cifar(tmp_path):
    """A study of CIFAR-10, three seeds, measured as the papers' numbers were."""
    folder = tmp_path / "cifar"
    for seed, fid in enumerate((8.0, 9.0, 10.0)):
        write(folder, "rdd", 1, seed, fid)
    write(folder, "ddim", 8, 0, 21.0)
    return folder


def measured_in(*folders):
    """The measured rows of the tables of these folders."""
    frame = as_frame(comparison(read_measurements(folders)))
    return frame[frame["kind"] == "measured"]


def only(frame, **wanted):
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1, (wanted, len(frame))
    return frame.iloc[0]


def test_digits_rows_are_the_published_summary_in_a_table_of_their_own(digits):
    tables = comparison(read_measurements([digits]))
    assert [table.title for table in tables] == [*PAPERS_ALONE, "Measured here: digits"]
    measured, published = measured_in(digits), pd.read_csv(RESULTS / "digits.csv")
    assert set(measured["table"]) == {"Measured here: digits"} and len(measured) == len(published)
    for want in published.itertuples():
        row = only(measured, method=LABELS[want.method], steps=want.steps)
        spread = {"fid_spread": want.fid_spread} if want.seeds > 1 else {}
        wanted = {"fid": want.fid_mean, "fid_min": want.fid_min, "pfd": want.pfd_mean, **spread}
        assert row[list(wanted)].to_dict() == pytest.approx(wanted, rel=1e-3)
        assert row["over"].startswith(f"{want.seeds} seed") and len(row["receipt"].split()) == want.seeds
        assert want.seeds > 1 or pd.isna(row["fid_spread"])
    why = " ".join(tables[2].lines)
    assert "No row of Table 1 or 2" in why and "digits metric network" in why
    assert "protocol torch-fidelity" in why and "IS splits shuffled" in why


def test_a_row_names_the_receipts_of_its_files(cifar, tmp_path):
    row = only(measured_in(cifar), method="RDD")
    paths = [Path(path) for path in row["receipt_path"].split("\n")]
    by_path = {one.path: one for one in read_measurements([cifar])}
    assert row["receipt"].split() == [by_path[path].id for path in paths] and len(set(paths)) == 3
    write(tmp_path / "a", "rdd", 1, 0, 8.0)
    write(tmp_path / "b", "rdd", 1, 0, 8.0, git_commit="1" * 40)
    write(tmp_path / "c", "rdd", 1, 0, 9.0)
    a, b, c = (read_measurements([tmp_path / name])[0].id for name in "abc")
    assert a != b and a == c and len(a) == 8  # of the receipt's fields, all of them


def test_results_measured_as_the_papers_stand_beside_them(cifar):
    tables = comparison(read_measurements([cifar]))
    assert [table.title for table in tables] == PAPERS_ALONE and not tables[0].footnotes
    kinds = [row["kind"] for row in tables[0].rows]
    assert list(dict.fromkeys(kinds)) == ["paper", "peer", "measured"]
    assert kinds == sorted(kinds, key=["paper", "peer", "measured"].index)
    row = only(as_frame(tables), kind="measured", method="RDD", steps=1)
    assert (row["fid"], row["fid_spread"], row["fid_min"], row["over"]) == (9.0, 1.0, 8.0, "3 seeds")
    assert not any(row["kind"] == "measured" for row in tables[1].rows)


@pytest.mark.parametrize(
    "changes, fields",
    [
        ({"protocol": "torch-fidelity"}, "protocol, resize, rounding, shuffled"),
        ({"samples": 10_000}, "metric, samples"),
        ({"reference": "cifar10, 10000 images"}, "reference_sha256"),
    ],
)
def test_another_way_of_measuring_keeps_rows_out_of_table_1(tmp_path, changes, fields):
    write(tmp_path / "a", "rdd", 1, 0, 8.0, **changes)
    found = read_measurements([tmp_path / "a"])
    tables = comparison(found)
    assert [table.title for table in tables] == [*PAPERS_ALONE, "Measured here: CIFAR-10"]
    assert f"No row of Table 1: its numbers were measured differently ({fields})" in tables[2].lines[0]
    mixed = comparison(found, mix=True)
    assert len(mixed) == 2 and mixed[0].lines[0].startswith("Rows marked [1] were measured differently")
    assert only(as_frame(mixed), kind="measured")["footnote"] == 1
    assert mixed[0].footnotes == [describe(found[0].receipt)]


def test_another_network_is_never_in_table_1(tmp_path):
    write(tmp_path / "a", "rdd", 1, 0, 8.0, network_sha256="e" * 64, metric="FID (extractor, 50000 samples)")
    for mix in (False, True):
        tables = comparison(read_measurements([tmp_path / "a"]), mix=mix)
        assert tables[2].title == "Measured here: CIFAR-10" and "FID (extractor, 50000 samples)" in tables[2].lines[0]
        assert not any(row["kind"] == "measured" for row in tables[0].rows)


@pytest.mark.parametrize(
    "changes, fields",
    [
        ({"protocol": "released"}, "protocol, rounding, shuffled"),
        ({"samples": 1000}, "metric, samples"),
        ({"reference_sha256": "c" * 64}, "reference_sha256"),
        ({"network_sha256": "e" * 64}, "network_sha256"),
    ],
)
def test_differently_measured_results_refuse_to_share_a_table(tmp_path, changes, fields):
    write(tmp_path / "a", "rdd", 1, 0, 4.0, dataset="digits", protocol="torch-fidelity")
    write(tmp_path / "b", "rdd", 1, 0, 5.0, dataset="digits", **{"protocol": "torch-fidelity", **changes})
    found = read_measurements([tmp_path / "a", tmp_path / "b"])
    assert re.search(rf"results for digits .*they differ in {fields}\).*--mix", refused(comparison, found))
    table = comparison(found, mix=True)[2]
    assert table.lines[0].startswith(f"These rows do not compare: they differ in {fields}")
    assert [row["footnote"] for row in table.rows] == [1, 2]
    assert table.footnotes == [describe(one.receipt) for one in found]
    assert sorted(row["fid"] for row in table.rows) == [4.0, 5.0]  # never averaged with each other


def test_an_old_receipt_does_not_pass_for_a_new_one(digits, tmp_path):
    """Receipts once left protocol, resize and the splits' order out: what is not recorded is not alike."""
    new = json.loads((RESULTS / "digits_receipts.json").read_text())["rdd-1-0"]
    old = {name: value for name, value in new.items() if name not in ("protocol", "resize", "shuffled")}
    place = tmp_path / "old" / "scores"
    place.mkdir(parents=True)
    row = {"method": "rdd", "steps": 1, "seed": 0, "fid": 4.0, "is": 9.0, "samples": 5000, "seconds": 1.0}
    (place / "rdd.json").write_text(json.dumps({"row": row, "receipt": old}))
    with pytest.raises(UserError, match=r"differ in protocol, resize, shuffled\)"):
        comparison(read_measurements([digits, tmp_path / "old"]))
    why = " ".join(comparison(read_measurements([tmp_path / "old"]))[2].lines)
    assert "protocol not recorded" in why and "IS splits not recorded" in why


def test_folders_are_not_averaged_with_each_other(tmp_path):
    write(tmp_path / "a", "rdd", 1, 0, 8.0)
    write(tmp_path / "b", "rdd", 1, 0, 6.0)
    measured = measured_in(tmp_path / "a", tmp_path / "b", tmp_path / "a")
    assert sorted(measured["fid"]) == [6.0, 8.0] and len(set(measured["folder"])) == 2


def test_of_an_arm_measured_again_the_last_counts(tmp_path):
    write(tmp_path, "rdd", 1, 0, 8.0, name="z", checkpoint_sha256="old", written="2026-01-01T00:00:00Z")
    write(tmp_path, "rdd", 1, 0, 6.0, name="a", checkpoint_sha256="new", written="2026-02-01T00:00:00Z")
    row = only(measured_in(tmp_path))
    assert row["fid"] == 6.0 and row["over"] == "1 seed"


def test_evaluations_of_several_noises_are_no_seeds(tmp_path):
    write(tmp_path, "rdd", 1, 0, 8.0)
    for noise, fid in ((1234, 8.0), (1, 8.2), (2, 8.4)):  # the first repeats the score
        write(tmp_path, "rdd", 1, noise, fid, part="evaluations", checkpoint_sha256="rdd-1-0", noise_seed=noise)
    assert only(measured_in(tmp_path), over="1 seed")["fid"] == 8.0
    assert only(measured_in(tmp_path), over="2 noises")["fid"] == pytest.approx(8.3)


def test_evaluations_of_the_same_images_are_joined(tmp_path):
    same = dict(part="evaluations", checkpoint_sha256="x", dataset="digits", protocol="torch-fidelity")
    write(tmp_path, "rdd", 1, 5, 8.0, name="fid", **same)
    write(tmp_path, "rdd", 1, 5, None, name="kid", row={"is": None, "kid": 0.0125, "recall": 0.5}, **same)
    row = only(measured_in(tmp_path))
    assert (row["fid"], row["kid"], row["recall"]) == (8.0, 0.0125, 0.5) and len(row["receipt"].split()) == 2


def test_guided_evaluations_of_one_model_stay_apart_by_weight(tmp_path):
    same = dict(part="evaluations", weights_sha256="same", images_sha256="drawn")
    for w, fid in ((0.0, 4.0), (2.0, 9.0)):
        write(tmp_path, "pd", 4, 0, fid, name=f"pd-4-w{w:g}", guidance=w, **same)
    write(tmp_path, "pd", 4, 0, 2.0, guidance="none", weights_sha256="other")
    assert dict(measured_in(tmp_path).set_index("method")["fid"]) == {"PD": 2.0, "PD, w = 0": 4.0, "PD, w = 2": 9.0}


def test_a_score_that_not_every_run_has_is_left_out(tmp_path):
    write(tmp_path, "rdd", 1, 0, 8.0, row={"pfd": 0.5})
    write(tmp_path, "rdd", 1, 1, 9.0)
    row = only(measured_in(tmp_path))
    assert row["fid"] == 8.5 and pd.isna(row["pfd"])


def test_peers_stand_with_network_size_and_conditioning():
    table = comparison([], "1")[0]
    text = as_text([table])
    line = next(line for line in text.splitlines() if " GDD-I " in line)
    assert line.split() == ["1", "GDD-I", "1.54", "NCSN++", "56.4", "unconditional", "yes", "arXiv", "2405.20750"]
    unknown = next(line for line in text.splitlines() if " DMD " in line)
    assert unknown.split() == ["1", "DMD", "3.77", "?", "?", "unconditional", "no", "arXiv", "2410.11081"]


def test_text_fits_100_columns_whatever_it_holds(digits, tmp_path):
    scores, wide = (
        {"pfd": 12.345, "kid": 0.12345, "precision": 0.5, "recall": 0.25},
        tmp_path / "wide-folder-of-a-long-name",
    )
    for seed in range(3):
        write(wide, "a-checkpoint-of-a-very-long-name", 16, seed, 100.0 + 30 * seed, row=scores)
        write(tmp_path / "other", "rdd", 2, seed, 12.0 + seed, row=scores)
    text = as_text(comparison(read_measurements([digits, wide, tmp_path / "other"])))
    assert "Further scores" in text and "0.12345 ± 0.00000" in text and "12.345 ± 0.000" in text
    alone = as_text(comparison(read_measurements([wide]), "1"))
    assert max(map(len, (text + alone).splitlines())) <= 100


def test_markdown_holds_every_row_and_every_receipts_file(digits, cifar):
    tables = comparison(read_measurements([digits, cifar]))
    text, frame = as_markdown(tables), as_frame(tables)
    assert list(frame.columns) == COLUMNS
    heads = ("| steps", "| ---", "| receipt")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(heads)]
    files = [path for paths in frame["receipt_path"].dropna() for path in paths.split("\n")]
    assert len(rows) == len(frame) + len(files) and all(f"`{path}`" in text for path in files)
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("| ")]
    assert all(len({line.count("|") for line in block}) == 1 for block in blocks)


def test_figure_has_a_panel_for_each_table_and_tells_the_kinds_apart(digits, cifar):
    found = panels(comparison(read_measurements([digits, cifar])))
    axes = comparison_figure(found).axes
    assert [ax.get_title() for ax in axes] == [title for title, _, _ in found] and len(axes) == 3
    assert all(
        ax.get_xscale() == ax.get_yscale() == "log" and ax.get_xlabel().startswith("sampling steps") for ax in axes
    )
    assert axes[0].get_xlabel().endswith("(beyond the axis: DDIM 3.78 at 1,024)") and axes[0].get_xlim()[1] < 32
    assert axes[2].get_ylabel().startswith("FID (digits metric network, 5000 samples)")
    drawn = [(line.get_linestyle(), len(line.get_xdata()), line) for line in axes[0].lines]
    assert {dash for dash, count, _ in drawn if count == 3 and dash != "None"} == {"-"}
    assert {line.get_linestyle() for line in axes[2].lines} <= {"--", "None"}
    assert list(next(line for dash, count, line in drawn if dash == "--" and count == 1).get_ydata()) == [9.0]
    names = sorted(text.get_text() for text in axes[0].texts)
    assert names == sorted(found[0][2].query("kind == 'peer'")["method"])
    (hollow,) = [count for dash, count, line in drawn if dash == "None" and line.get_markerfacecolor() == "white"]
    assert hollow == len(names)


def test_names_and_legend_cover_nothing(digits):
    figure = comparison_figure(panels(comparison(read_measurements([digits]))))
    figure.draw_without_rendering()
    for ax in figure.axes[:2]:
        boxes, frame = [Text.get_window_extent(text) for text in ax.texts], ax.get_window_extent()
        assert all(frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1 for box in boxes)
        clashes = [(i, j) for i in range(len(boxes)) for j in range(i) if boxes[i].overlaps(boxes[j])]
        assert not clashes, [(ax.texts[i].get_text(), ax.texts[j].get_text()) for i, j in clashes]
    legend = figure.legends[0].get_window_extent()
    assert not any(legend.overlaps(ax.get_tightbbox()) for ax in figure.axes)


# the command


def test_report_without_any_study_prints_papers_and_peers(report, tmp_path):
    printed = report("--table", "1")
    assert max(map(len, printed.splitlines())) <= 100
    assert "From the papers" in printed and "Peers" in printed and "Table 1: CIFAR-10" in printed
    assert "ImageNet 64x64\n===" not in printed and "nothing is written" in printed
    assert not list(tmp_path.iterdir())


def test_report_writes_what_it_prints(report, digits):
    printed = report(digits)
    assert "Measured here: digits" in printed
    place = digits / "report"
    assert sorted(path.name for path in place.iterdir()) == ["comparison.csv", "comparison.md", "fid_against_steps.png"]
    frame = pd.read_csv(place / "comparison.csv")
    assert set(frame["kind"]) == {"paper", "peer", "measured"}
    row = only(frame, kind="measured", method="RDD", steps=1)
    (published,) = pd.read_csv(RESULTS / "digits.csv").query("method == 'rdd' and steps == 1").itertuples()
    assert row["fid"] == pytest.approx(published.fid_mean, rel=1e-5) and row["over"] == "3 seeds"
    assert all(Path(path).exists() for path in row["receipt_path"].split("\n"))
    shown = f"{published.fid_mean:.2f} ± {published.fid_spread:.2f}"
    assert shown in (place / "comparison.md").read_text() and shown in printed
    with Image.open(io.BytesIO((place / "fid_against_steps.png").read_bytes())) as image:
        assert image.width > 800 and image.height > 800


def test_report_takes_the_usual_folder_and_another_out(report, digits, tmp_path, monkeypatch):
    monkeypatch.setattr("rddlib.study.folder.default_out", lambda profile: tmp_path / profile)
    printed = report("--out", tmp_path / "there", "--table", "all")
    assert "Measured here: digits" in printed and (tmp_path / "there/comparison.csv").exists()
    assert not (digits / "report").exists()


def test_report_says_what_it_left_out(report, cifar):
    write(cifar, "ddim", 8, 1234, 21.0, part="evaluations", checkpoint_sha256="ddim-8-0")
    assert "Left out: 1 of the results on file" in report(cifar)


def test_report_of_one_protocol_of_several(report, refusal, tmp_path):
    write(tmp_path / "a", "rdd", 1, 0, 8.0)
    write(tmp_path / "a", "rdd", 1, 0, 8.5, protocol="torch-fidelity")
    assert "they differ in protocol, resize, rounding, shuffled" in refusal("report", tmp_path / "a")
    assert not (tmp_path / "a/report").exists()
    printed = report(tmp_path / "a", "--protocol", "released")
    assert "8.00" in printed and "8.50   8.50" not in printed
    printed = report(tmp_path / "a", "--mix")
    assert "Rows marked [1] were measured differently" in printed.splitlines()[2]
    assert "RDD [1]" in printed and "[1] FID (50000 samples), protocol torch-fidelity" in printed


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nowhere"], "there is no folder nowhere"),
        (["empty"], "empty holds no scores"),
        (["cifar", "--table", "3"], "choose 1 (CIFAR-10), 2 (ImageNet 64x64) or all"),
        (["cifar", "--protocol", "torch-fidelity"], "nothing was measured under the protocol torch-fidelity"),
        (["cifar", "--out", "file/below"], "cannot write"),
    ],
)
def test_bad_input_is_refused(refusal, cifar, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("kept")
    assert words in refusal("report", *arguments, begun=words == "cannot write")


@pytest.mark.parametrize(
    "content",
    [
        "{",
        '{"row": {"method": "rdd", "steps": 1, "fid": 3}}',
        '{"row": {"method": "rdd", "steps": "many", "fid": 3}, "receipt": {}}',
        '{"row": {"method": "rdd", "steps": 1, "fid": NaN}, "receipt": {}}',
        '{"row": {"method": "rdd", "steps": 1, "fid": "3"}, "receipt": {}}',
        "\udcff",
    ],
)
def test_a_damaged_result_is_named(cifar, content):
    damaged = cifar / "scores" / "damaged.json"
    damaged.write_text(content, errors="surrogateescape")
    assert re.search(f"{damaged} is damaged: delete it", refused(read_measurements, [cifar]))


def test_every_score_has_its_place(tmp_path):
    row = {name: 0.25 for name in SCORES if name != "fid"}
    write(tmp_path / "run", "rdd", 1, 0, 3.0, row=row, dataset="digits")
    for said in (as_text(tables := comparison(read_measurements([tmp_path / "run"]))), as_markdown(tables)):
        assert all(score.label in said for score in SCORES.values())
    assert which_is_better(["fid", "agree"]) == "Lower is better for FID. Higher is better for agreement."
    assert which_is_better(["is"]) == "Higher is better for IS."
