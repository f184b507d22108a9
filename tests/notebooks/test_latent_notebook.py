"""The notebook of latent models, from the example that makes one: everything at its smallest, nothing left out."""

import json
import runpy
from pathlib import Path

import nbformat
import pytest

from rddlib.cli import main

TOP = Path(__file__).resolve().parents[2]
FEW = {"guidance.train": 2, "progressive.train": 1, "distill.train": 1}


@pytest.mark.ci
def test_the_example_is_distilled_scored_and_drawn_by_the_notebook(tmp_path, monkeypatch, capsys):
    for name in ("diffusers", "transformers"):
        pytest.importorskip(name, reason="prompts need the extra text: pip install 'rddlib[text]'")
    monkeypatch.setenv("RDD_DATA", str(tmp_path / "data"))
    model, out = tmp_path / "model", tmp_path / "out"
    runpy.run_path(str(TOP / "examples/text_guided.py"))["main"](model, 0.003)
    given = {"pretrained.teacher": model / "pipeline", "data.root": model / "images"}
    given |= {"evaluation.network": model / "metric.safetensors", "distill.iterations": "[1,1,1]", "jobs": 1}
    given |= {f"{stage}.{field}": n for stage, k in FEW.items() for field, n in (("iterations", k), ("warmup", 0))}
    given |= {"guidance.stochastic": 1, "guidance.samples": 140, "guidance.at": "[2]", "guidance.steps": 8}
    given |= {"guidance.objectives": "[pd,cfd]"}
    settings = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    main(["study", "--profile", "text", "--only", "09", "--out", str(out), *settings])
    cells = nbformat.read(out / "notebooks/09_latent_and_text_guided.ipynb", as_version=4).cells
    shown = [output for cell in cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert len(shown) >= 6 and not [o for cell in cells for o in cell.get("outputs", []) if o.output_type == "error"]
    receipts = json.loads((out / "guided_receipts.json").read_text())
    assert all("metric network" in receipt["metric"] and receipt["clip"] is False for receipt in receipts.values())
    header = (out / "guided.csv").read_text().splitlines()[0]
    assert header == "method,steps,guidance,sampler,seed,fid,pfd,is,agree"
