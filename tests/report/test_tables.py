"""Comparison tables and `rdd report`: kinds kept apart, nothing compared that was measured differently."""

import csv
import io
import json
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.text import Text
from PIL import Image

from rddlib.cli import main
from rddlib.evaluation import PROTOCOLS
from rddlib.evaluation.networks import INCEPTION_SHA256
from rddlib.report.figures import NAMES, STYLES, comparison_figure, to_png
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


@pytest.fixture
def rdd(capsys, monkeypatch, tmp_path):
    """Run the command in this process, with no study in the usual place: (exit status, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("rddlib.study.study.default_out", lambda profile: tmp_path / "usual" / profile)

    def run(*arguments):
        capsys.readouterr()
        try:
            main([str(argument) for argument in arguments])
            status = 0
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


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
    values = {
        "method": method,
        "steps": steps,
        "seed": seed,
        "fid": fid,
        "is": 9.0,
        "samples": facts["samples"],
        "seconds": 1.0,
    }
    path = folder / part / f"{name or f'{method}-{steps}-{seed}'}-{facts['protocol']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"row": {**values, **dict(row)}, "receipt": facts}))
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


def test_guided_evaluations_of_one_model_stay_apart_by_weight(tmp_path):
    for w, fid in ((0.0, 4.0), (2.0, 9.0)):
        write(
            tmp_path,
            "pd",
            4,
            0,
            fid,
            "evaluations",
            f"pd-4-w{w:g}",
            guidance=w,
            weights_sha256="same",
            images_sha256="drawn",
        )
    write(tmp_path, "pd", 4, 0, 2.0, guidance="none", weights_sha256="other")
    frame = as_frame(comparison(read_measurements([tmp_path])))
    measured = frame[frame["kind"] == "measured"].set_index("method")["fid"]
    assert dict(measured) == {"PD": 2.0, "PD, w = 0": 4.0, "PD, w = 2": 9.0}


def only(frame, **wanted):
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1, (wanted, len(frame))
    return frame.iloc[0]


def refused(call):
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_digits_rows_are_the_published_summary_in_a_table_of_their_own(digits):
    tables = comparison(read_measurements([digits]))
    assert [table.title for table in tables] == [
        "Table 1: CIFAR-10",
        "Table 2: ImageNet 64x64",
        "Measured here: digits",
    ]
    frame = as_frame(tables)
    measured = frame[frame["kind"] == "measured"]
    assert set(measured["table"]) == {"Measured here: digits"}
    published = pd.read_csv(RESULTS / "digits.csv")
    assert len(measured) == len(published)
    for want in published.itertuples():
        row = only(measured, method=NAMES[want.method], steps=want.steps)
        assert row["fid"] == pytest.approx(want.fid_mean, rel=1e-3) and row["fid_min"] == pytest.approx(
            want.fid_min, rel=1e-3
        )
        assert row["pfd"] == pytest.approx(want.pfd_mean, rel=1e-3)
        assert row["over"].startswith(f"{want.seeds} seed") and len(row["receipt"].split()) == want.seeds
        if want.seeds > 1:
            assert row["fid_spread"] == pytest.approx(want.fid_spread, rel=1e-3)
        else:
            assert pd.isna(row["fid_spread"])
    why = " ".join(tables[2].lines)
    assert "No row of Table 1 or 2" in why and "digits metric network" in why
    assert "protocol torch-fidelity" in why and "IS splits shuffled" in why


def test_a_row_names_the_receipts_of_its_files(cifar):
    row = only(as_frame(comparison(read_measurements([cifar]))), kind="measured", method="RDD")
    paths = [Path(path) for path in row["receipt_path"].split("\n")]
    assert len(paths) == 3 and all(path.exists() for path in paths)
    by_path = {one.path: one for one in read_measurements([cifar])}
    assert row["receipt"].split() == [by_path[path].id for path in paths]
    assert len(set(row["receipt"].split())) == 3 and all(len(name) == 8 for name in row["receipt"].split())


def test_a_receipts_name_changes_with_any_of_its_fields(tmp_path):
    write(tmp_path / "a", "rdd", 1, 0, 8.0)
    write(tmp_path / "b", "rdd", 1, 0, 8.0, git_commit="1" * 40)
    write(tmp_path / "c", "rdd", 1, 0, 9.0)
    a, b, c = (read_measurements([tmp_path / name])[0].id for name in "abc")
    assert a != b and a == c


def test_results_measured_as_the_papers_stand_beside_them(cifar):
    tables = comparison(read_measurements([cifar]))
    assert [table.key for table in tables] == ["cifar10", "imagenet64"] and not tables[0].footnotes
    rows = tables[0].rows
    kinds = [row["kind"] for row in rows]
    assert kinds == sorted(kinds, key=["paper", "peer", "measured"].index) and set(kinds) == {
        "paper",
        "peer",
        "measured",
    }
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
    assert [table.title for table in tables] == [
        "Table 1: CIFAR-10",
        "Table 2: ImageNet 64x64",
        "Measured here: CIFAR-10",
    ]
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
    said = refused(lambda: comparison(found))
    assert f"they differ in {fields})" in said and "--mix" in said and "digits" in said
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
    said = refused(lambda: comparison(read_measurements([digits, tmp_path / "old"])))
    assert "differ in protocol, resize, shuffled)" in said
    why = " ".join(comparison(read_measurements([tmp_path / "old"]))[2].lines)
    assert "protocol not recorded" in why and "IS splits not recorded" in why


def test_folders_are_not_averaged_with_each_other(tmp_path):
    write(tmp_path / "a", "rdd", 1, 0, 8.0)
    write(tmp_path / "b", "rdd", 1, 0, 6.0)
    frame = as_frame(comparison(read_measurements([tmp_path / "a", tmp_path / "b", tmp_path / "a"])))
    measured = frame[frame["kind"] == "measured"]
    assert sorted(measured["fid"]) == [6.0, 8.0] and len(set(measured["folder"])) == 2


def test_of_an_arm_measured_again_the_last_counts(tmp_path):
    write(tmp_path / "a", "rdd", 1, 0, 8.0, name="z", checkpoint_sha256="old", written="2026-01-01T00:00:00Z")
    write(tmp_path / "a", "rdd", 1, 0, 6.0, name="a", checkpoint_sha256="new", written="2026-02-01T00:00:00Z")
    row = only(as_frame(comparison(read_measurements([tmp_path / "a"]))), kind="measured")
    assert row["fid"] == 6.0 and row["over"] == "1 seed"


def test_evaluations_of_several_noises_are_no_seeds(tmp_path):
    write(tmp_path / "a", "rdd", 1, 0, 8.0)
    for noise, fid in ((1234, 8.0), (1, 8.2), (2, 8.4)):  # the first repeats the score
        write(tmp_path / "a", "rdd", 1, noise, fid, part="evaluations", checkpoint_sha256="rdd-1-0", noise_seed=noise)
    frame = as_frame(comparison(read_measurements([tmp_path / "a"])))
    assert only(frame, kind="measured", over="1 seed")["fid"] == 8.0
    assert only(frame, kind="measured", over="2 noises")["fid"] == pytest.approx(8.3)


def test_evaluations_of_the_same_images_are_joined(tmp_path):
    same = dict(part="evaluations", checkpoint_sha256="x", dataset="digits", protocol="torch-fidelity")
    write(tmp_path / "a", "rdd", 1, 5, 8.0, name="fid", **same)
    write(
        tmp_path / "a",
        "rdd",
        1,
        5,
        None,
        name="kid",
        row={"fid": None, "is": None, "kid": 0.0125, "recall": 0.5},
        **same,
    )
    row = only(as_frame(comparison(read_measurements([tmp_path / "a"]))), kind="measured")
    assert (row["fid"], row["kid"], row["recall"]) == (8.0, 0.0125, 0.5) and len(row["receipt"].split()) == 2


def test_a_score_that_not_every_run_has_is_left_out(tmp_path):
    write(tmp_path / "a", "rdd", 1, 0, 8.0, row={"pfd": 0.5})
    write(tmp_path / "a", "rdd", 1, 1, 9.0)
    row = only(as_frame(comparison(read_measurements([tmp_path / "a"]))), kind="measured")
    assert row["fid"] == 8.5 and pd.isna(row["pfd"])


def test_peers_stand_with_network_size_and_conditioning():
    table = comparison([], "1")[0]
    text = as_text([table])
    line = next(line for line in text.splitlines() if " GDD-I " in line)
    assert line.split() == ["1", "GDD-I", "1.54", "NCSN++", "56.4", "unconditional", "yes", "arXiv", "2405.20750"]
    unknown = next(line for line in text.splitlines() if " DMD " in line)
    assert unknown.split() == ["1", "DMD", "3.77", "?", "?", "unconditional", "no", "arXiv", "2410.11081"]


def test_text_fits_100_columns_whatever_it_holds(digits, tmp_path):
    scores = {"pfd": 12.345, "kid": 0.12345, "precision": 0.5, "recall": 0.25}
    for seed in range(3):
        write(
            tmp_path / "wide-folder-of-a-long-name",
            "a-checkpoint-of-a-very-long-name",
            16,
            seed,
            100.0 + 30 * seed,
            row=scores,
        )
        write(tmp_path / "other", "rdd", 2, seed, 12.0 + seed, row=scores)
    found = read_measurements([digits, tmp_path / "wide-folder-of-a-long-name", tmp_path / "other"])
    text = as_text(comparison(found))
    assert max(map(len, text.splitlines())) <= 100
    assert "Further scores" in text and "0.12345 ± 0.00000" in text and "12.345 ± 0.000" in text
    alone = as_text(comparison(read_measurements([tmp_path / "wide-folder-of-a-long-name"]), "1"))
    assert max(map(len, alone.splitlines())) <= 100


def test_markdown_holds_every_row_and_every_receipts_file(digits, cifar):
    tables = comparison(read_measurements([digits, cifar]))
    text = as_markdown(tables)
    frame = as_frame(tables)
    assert list(frame.columns) == COLUMNS
    rows = [
        line
        for line in text.splitlines()
        if line.startswith("| ") and not line.startswith(("| steps", "| ---", "| receipt"))
    ]
    files = [path for paths in frame["receipt_path"].dropna() for path in paths.split("\n")]
    assert len(rows) == len(frame) + len(files) and all(f"`{path}`" in text for path in files)
    columns = [
        {line.count("|") for line in block.splitlines()} for block in text.split("\n\n") if block.startswith("| ")
    ]
    assert all(len(counts) == 1 for counts in columns)


def test_figure_has_a_panel_for_each_table_and_tells_the_kinds_apart(digits, cifar):
    found = panels(comparison(read_measurements([digits, cifar])))
    figure = comparison_figure(found)
    axes = figure.axes
    assert [ax.get_title() for ax in axes] == [title for title, _, _ in found] and len(axes) == 3
    assert all(ax.get_xscale() == ax.get_yscale() == "log" and ax.get_xlabel() == "sampling steps" for ax in axes)
    assert axes[2].get_ylabel().startswith("FID (digits metric network, 5000 samples)")
    dashes = {
        line.get_linestyle() for line in axes[0].lines if len(line.get_xdata()) == 3 and line.get_linestyle() != "None"
    }
    assert dashes == {"-"} and {line.get_linestyle() for line in axes[2].lines} <= {"--", "None"}
    measured = next(line for line in axes[0].lines if line.get_linestyle() == "--" and len(line.get_xdata()) == 1)
    assert list(measured.get_ydata()) == [9.0]
    names = sorted(text.get_text() for text in axes[0].texts)
    assert names == sorted(found[0][2].query("kind == 'peer'")["method"])
    hollow = [
        line for line in axes[0].lines if line.get_markerfacecolor() == "white" and line.get_linestyle() == "None"
    ]
    assert len(hollow) == 1 and len(hollow[0].get_xdata()) == len(names)
    to_png(figure)


def test_peers_names_do_not_cover_each_other(digits):
    figure = comparison_figure(panels(comparison(read_measurements([digits]))))
    figure.draw_without_rendering()
    for ax in figure.axes[:2]:
        boxes = [Text.get_window_extent(text) for text in ax.texts]  # without the line to the point
        frame = ax.get_window_extent()
        assert all(frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1 for box in boxes)
        clashes = [(i, j) for i in range(len(boxes)) for j in range(i) if boxes[i].overlaps(boxes[j])]
        assert not clashes, [(ax.texts[i].get_text(), ax.texts[j].get_text()) for i, j in clashes]
    to_png(figure)


def test_legend_covers_no_panel(cifar):
    figure = comparison_figure(panels(comparison(read_measurements([cifar]))))
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert not any(legend.overlaps(ax.get_tightbbox()) for ax in figure.axes)
    to_png(figure)


def test_every_method_that_a_study_scores_has_a_name_and_a_style():
    from rddlib.study.profiles import METHODS

    for method in (*METHODS, "ddim", "pndm", "dpm-solver"):
        assert method in NAMES and method in STYLES
    looks = [(style["marker"], style["color"]) for style in STYLES.values()]
    assert len(set(looks)) == len(looks) and len({marker for marker, _ in looks}) == len(looks)


# the command


def test_report_without_any_study_prints_papers_and_peers(rdd, tmp_path):
    status, printed, errors = rdd("report", "--table", "1")
    assert status == 0 and not errors and max(map(len, printed.splitlines())) <= 100
    assert "From the papers" in printed and "Peers" in printed and "Table 1: CIFAR-10" in printed
    assert "ImageNet 64x64\n===" not in printed and "nothing is written" in printed
    assert not list(tmp_path.iterdir())


def test_report_writes_what_it_prints(rdd, digits):
    status, printed, _ = rdd("report", digits)
    assert status == 0 and "Measured here: digits" in printed
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


def test_report_takes_the_usual_folder_and_another_out(rdd, digits, tmp_path, monkeypatch):
    monkeypatch.setattr("rddlib.study.study.default_out", lambda profile: tmp_path / profile)
    status, printed, _ = rdd("report", "--out", tmp_path / "there", "--table", "all")
    assert status == 0 and "Measured here: digits" in printed and (tmp_path / "there/comparison.csv").exists()
    assert not (digits / "report").exists()


def test_report_of_one_protocol_of_several(rdd, tmp_path):
    write(tmp_path / "a", "rdd", 1, 0, 8.0)
    write(tmp_path / "a", "rdd", 1, 0, 8.5, protocol="torch-fidelity")
    status, printed, errors = rdd("report", tmp_path / "a")
    assert status == 2 and not printed and errors.count("\n") == 1
    assert "they differ in protocol, resize, rounding, shuffled" in errors and not (tmp_path / "a/report").exists()
    status, printed, _ = rdd("report", tmp_path / "a", "--protocol", "released")
    assert status == 0 and "8.00" in printed and "8.50   8.50" not in printed
    status, printed, _ = rdd("report", tmp_path / "a", "--mix")
    assert (
        status == 0 and "Rows marked [1] were measured differently" in printed.splitlines()[2] and "RDD [1]" in printed
    )
    assert "[1] FID (50000 samples), protocol torch-fidelity" in printed


def test_report_says_what_it_left_out(rdd, cifar):
    write(cifar, "ddim", 8, 1234, 21.0, part="evaluations", checkpoint_sha256="ddim-8-0")
    status, printed, _ = rdd("report", cifar)
    assert status == 0 and "Left out: 1 of the results on file" in printed


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["report", "nowhere"], "there is no folder nowhere"),
        (["report", "empty"], "empty holds no scores"),
        (["report", "cifar", "--table", "3"], "choose 1 (CIFAR-10), 2 (ImageNet 64x64) or all"),
        (["report", "cifar", "--protocol", "clean"], "known are torch-fidelity, released"),
        (["report", "cifar", "--protocol", "torch-fidelity"], "nothing was measured under the protocol torch-fidelity"),
        (["report", "cifar", "--out", "file/below"], "cannot write"),
        (["report", "--tables", "1"], "No such option"),
    ],
)
def test_bad_input_is_one_line_and_status_2(rdd, cifar, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("kept")
    status, _, errors = rdd(*arguments)
    assert status == 2 and words in errors and errors.count("\n") == 1 and errors.startswith("rdd: ")


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "null",
        '{"row": {}}',
        '{"row": {"method": "rdd", "steps": 1, "fid": 3}}',
        '{"row": {"method": "rdd", "steps": "many", "fid": 3}, "receipt": {}}',
        '{"row": {"method": "rdd", "steps": 1, "fid": NaN}, "receipt": {}}',
        '{"row": {"method": "rdd", "steps": 1, "fid": "3"}, "receipt": {}}',
        "\udcff",
    ],
)
def test_a_damaged_result_is_one_line(rdd, cifar, content):
    damaged = cifar / "scores" / "damaged.json"
    damaged.write_text(content, errors="surrogateescape")
    status, printed, errors = rdd("report", cifar)
    assert status == 2 and not printed and errors.count("\n") == 1 and f"{damaged} is damaged: delete it" in errors


def test_report_explains_itself(rdd):
    status, printed, _ = rdd("report", "--help")
    assert status == 0 and "Usage: rdd report" in printed and max(map(len, printed.splitlines())) <= 100
    assert all(option in printed for option in ("--table", "--mix", "--protocol", "--out"))
