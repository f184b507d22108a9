"""What a study leaves for people: results.csv, the same-noise grid, the figure and index.html that ties them together.

And a first picture without a study: what the models that come with the package draw from one noise.
"""

import base64
import html
import json
import os
import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from rddlib.diffusion.model_file import load_denoiser
from rddlib.diffusion.sampling import ddim_sample
from rddlib.evaluation import SCORES, summarise, which_is_better
from rddlib.methods import LABELS, METHODS
from rddlib.report.figures import same_noise_blocks, same_noise_figure, scores_figure, to_png
from rddlib.report.guidance import weights_figure
from rddlib.study.folder import show_figures
from rddlib.study.guidance import guided_done, guided_results, guided_studies
from rddlib.study.profiles import Profile, load_profile
from rddlib.study.stage import MODELS
from rddlib.study.study import Study, csv_of, guided_study
from rddlib.utils.checkpoint import write_atomically
from rddlib.utils.errors import UserError
from rddlib.utils.installation import shipped
from rddlib.utils.text import counted

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem;color:#222;background:#fff}
h1{line-height:1.2}img{width:100%;min-width:40rem;height:auto}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #ddd}
th:first-child,td:first-child{text-align:left}pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.85rem}
a{color:#0050a0}nav{line-height:2}
"""


# nbconvert's own page, but for code, which a click shows: prose, pictures and numbers are read first
FOLDED = """{% extends 'lab/index.html.j2' %}
{% block html_head_css %}{{ super() }}<style>
.rdd-code > summary { color: #666; cursor: pointer; font-size: 0.8rem } .jp-OutputPrompt { font-size: 0 }
math[display=block] { margin: 0.6em 0 } :not(pre) > code { white-space: normal !important; overflow-wrap: anywhere }
.jp-OutputArea-output pre { word-break: normal !important }
</style>{% endblock html_head_css %}
{% block input_group %}<details class="rdd-code"><summary>Code</summary>{{ super() }}</details>{% endblock input_group %}
"""


def same_noise_grid(study: Study, trained: bool = True, count: int = 6) -> Figure:
    """Images drawn from the same noise by the teacher and by each method's students at 4, 2 and 1 steps, side by side.

    trained: whether students that are missing are trained first; else they are left out.
    """
    draw, profile = partial(study.images, noise=study.noise(count)), study.profile
    steps = profile.student_steps
    methods = [name for name in profile.methods if trained or all(study.at_hand(name, n) for n in steps)]
    return same_noise_blocks(draw, profile.progressive.teacher_steps, ["ddim", *methods], steps)


def demo_view(name: str = "photos", count: int = 12) -> Callable[..., Figure]:
    """Rows of images by the models of a profile that come with the package.

    Returns demo(noise, steps): the teacher's, the undistilled base model's in so many steps (several: a row for each), and
    each student's in one, all from the noise of that seed. Raises UserError where no model of this profile comes with the
    package.
    """
    show_figures()
    profile, models = load_profile(name), {}
    study, teacher = Study(profile, Path()), profile.progressive.teacher_steps
    for method, steps in (("pd", teacher), *((method, 1) for method in METHODS)):
        kind = "base" if method == "ddim" else f"{method}-{steps}"
        for path in shipped(MODELS).glob(f"{kind}-*.safetensors"):
            denoiser, _ = load_denoiser(path)
            if denoiser.network.config == profile.unet:  # files of several profiles lie there
                models[method, steps] = denoiser
    if ("pd", teacher) not in models:
        raise UserError(f"no teacher of the profile {name} comes with rddlib: rdd study --profile {name} trains one")

    @lru_cache(maxsize=512)
    def drawn(method: str, steps: int, noise: int) -> Tensor:
        denoiser = models[method, 1 if method == "ddim" else steps].to(study.device)
        return ddim_sample(denoiser, study.noise(count, noise), steps, clip=profile.evaluation.clip).cpu()

    def demo(noise: int = 1, steps: int | Sequence[int] = 1) -> Figure:
        counts = (steps,) if isinstance(steps, int) else steps
        arms = [(method, n) for method, one in models if one == 1 for n in (counts if method == "ddim" else (1,))]
        title = "A column is one noise; at the right the RMS distance from the teacher (0: equal, range 2)"
        draw = partial(drawn, noise=noise)
        return same_noise_figure(draw, teacher, arms, title, distances=True)

    return demo


def _table(frame: pd.DataFrame) -> str:
    shown = frame.dropna(axis=1, how="all").copy()
    forms = {"seconds": ".1f", **{name: score.form for name, score in SCORES.items()}}
    for column in shown.columns.intersection(list(forms)):
        shown[column] = shown[column].map(f"{{:{forms[column]}}}".format)
    shown["method"] = shown["method"].map(LABELS)
    names = {"seconds": "sampling, s"}
    names |= {name: score.label + "*" * (name != "pfd") for name, score in SCORES.items()}  # *: by the network
    return f'<div class="scroll">{shown.rename(columns=names).to_html(index=False, border=0, na_rep="")}</div>'


def _picture(path: Path, words: str) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<div class="scroll"><img alt="{html.escape(words)}" src="data:image/png;base64,{content}"></div>'


def take_formulas(text: str, formulas: list[str]) -> str:
    """Markdown with each LaTeX formula ($...$, $$...$$) replaced by a word; `put_formulas` brings them back as MathML."""

    def taken(match: re.Match) -> str:
        code, block, inline = match.groups()
        if code:
            return code
        formulas.append(f"$${block}$$" if block else f"${inline}$")
        return f"formula{len(formulas) - 1}end"

    return re.sub(r"(```.*?```|`[^`\n]*`)|\$\$(.+?)\$\$|\$([^$\n]+?)\$", taken, text, flags=re.S)


def put_formulas(page: str, formulas: list[str]) -> str:
    """HTML with the words of `take_formulas` replaced by MathML, which browsers draw without any script."""
    from latex2mathml.converter import convert

    def put(match: re.Match) -> str:
        formula = formulas[int(match[1])]
        display = "block" if formula.startswith("$$") else "inline"
        plain = re.sub(r"(\\[bB]ig)?\\(\||Vert)", "\u2016", formula.strip("$"))  # the converter knows no \big\|
        return convert(plain, display=display)

    return re.sub(r"formula(\d+)end", put, page)


def notebook_page(executed: Path) -> Path:
    """An executed notebook as one HTML file beside it: pictures inside, code folded, formulas as MathML, no script, nothing
    fetched."""
    import nbformat
    from nbconvert import HTMLExporter

    notebook, formulas = nbformat.read(executed, as_version=4), []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = take_formulas(cell.source, formulas)
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                output.data["text/markdown"] = take_formulas(output.data["text/markdown"], formulas)
    body, _ = HTMLExporter(raw_template=FOLDED).from_notebook_node(notebook)
    page = executed.with_suffix(".html")
    write_atomically(page, put_formulas(re.sub(r"<script\b.*?</script>", "", body, flags=re.S), formulas))
    return page


def _stages(study: Study) -> str:
    """Seconds each stage took and their sum, from the checkpoints that this study and its guided ones use."""
    guided = {stage.path: ("guided: ", stage) for one in guided_studies(study) for stage in one.lineage()}
    plain = {stage.path: ("", stage) for stage in study.lineage()}
    rows, whole = [], 0.0
    for prefix, stage in (plain | {path: found for path, found in guided.items() if path not in plain}).values():
        if stage.done:
            record, seeded = stage.recorded(), prefix or stage.student  # all others have the study's seed
            took = "comes with rddlib" if record.get("shipped") else f"{record['seconds']:.0f}"
            rows.append((prefix + stage.label, stage.facts().get("seed", "") if seeded else "", took))
            whole += record["seconds"]
    rows.append(("all training", "", f"{whole:.0f}"))
    lines = "".join(f"<tr><td>{name}</td><td>{seed}</td><td>{took}</td></tr>" for name, seed, took in rows)
    head = "<tr><th>stage</th><th>seed</th><th>seconds</th></tr>"
    return f'<div class="scroll"><table>{head}{lines}</table></div>'


def _title(notebook: Path) -> str:
    """The notebook's first heading."""
    import nbformat

    lines = "\n".join(cell.source for cell in nbformat.read(notebook, as_version=4).cells).splitlines()
    return next((line[2:] for line in lines if line.startswith("# ")), notebook.stem)


def _notebooks(executed, out: Path) -> str:
    if not executed:
        return ""
    lines = []
    for notebook in executed:
        page = notebook_page(notebook.path)
        lines.append(
            f'<li><a href="{os.path.relpath(page, out)}">{html.escape(_title(notebook.path))}</a> '
            f'(<a href="{os.path.relpath(notebook.path, out)}">notebook</a>, {notebook.seconds:.0f} s)</li>'
        )
    total = sum(notebook.seconds for notebook in executed)
    return f"""<h2 id="notebooks">Notebooks</h2><ul>{"".join(lines)}</ul>
<p>All together {total:.0f} s ({total / 60:.1f} minutes), each as it last ran, with what was trained in it.</p>"""


def lowest(results: pd.DataFrame, profile: Profile) -> str:
    """Which student has the lowest mean FID at each number of steps, and what comes next, in a sentence."""
    students, told = results[results["method"].isin(profile.methods)], []
    for steps in profile.student_steps:
        ranked = students[students["steps"] == steps].groupby("method")["fid"].mean().sort_values()
        names = [f"{LABELS[method]} ({fid:.2f})" for method, fid in ranked.items()]
        told.append(f"at {counted(steps)} {', then '.join(names[:2])}")
    caution = " One seed decides nothing close." if len(profile.seeds) == 1 else ""
    return f"Lowest FID* with {counted(len(profile.seeds), 'seed')}: {'; '.join(told)}.{caution}"


def _results(study: Study) -> str:
    """Samples, scores, times and receipts, once every arm is measured; their files are written along the way."""
    out, comparable = study.out, study.metric_network.published
    results = study.results()
    receipts = {arm.name: study.measured(arm)["receipt"] for arm in study.arms()}
    first, receipt = next(iter(receipts.items()))
    scores = [name for name in results.columns if name in SCORES]
    write_atomically(out / "summary.csv", csv_of(summarise(results, scores)))
    write_atomically(out / "receipts.json", json.dumps(receipts, indent=1) + "\n")
    write_atomically(out / "grid.png", to_png(same_noise_grid(study)))
    write_atomically(out / "scores.png", to_png(scores_figure(results, study.metric)))
    scores = [name for name in scores if results[name].notna().any()]
    pixels = " pFD: Fréchet distance on raw pixels in [-1, 1]." if "pfd" in scores else ""
    return f"""<h2 id="samples">Samples</h2>{_picture(out / "grid.png", "Images drawn from the same noise by every method")}
<p>Go down a column: a row that differs from the one on top has lost what the teacher drew; DDIM is the base model, not
distilled. Feature losses need not keep the teacher's pixels.</p>
<h2 id="scores">Scores</h2>{_picture(out / "scores.png", "FID and pFD against sampling steps")}
<p>{html.escape(lowest(results, study.profile))}</p>
{_table(results)}
<p>* {html.escape(study.metric)}, against all {len(study.dataset)} images of {html.escape(study.dataset.name)}, protocol
{study.profile.evaluation.protocol}.{"" if comparable else " Not comparable with Inception FIDs."}{pixels}
{which_is_better(scores)} Tables: <a href="results.csv">results.csv</a>, <a href="summary.csv">summary.csv</a> (mean, spread
and minimum over seeds).</p>
<h2 id="times">Times</h2><p>Seconds that training took, without what each stage builds on, and their sum; at
most {counted(study.profile.at_once, "method")} trained at a time.</p>
{_stages(study)}
<h2 id="receipts">Receipts</h2>
<p>How each of the {len(receipts)} rows was measured: <a href="receipts.json">receipts.json</a>.</p>
<details><summary>The first of them, {first}</summary><pre>{html.escape(json.dumps(receipt, indent=1))}</pre></details>
"""


def _guidance(study: Study) -> str:
    """Scores against the guidance weight, once every arm is measured."""
    if not guided_done(study):
        return ""
    figure = weights_figure(guided_results(study), guided_study(study).metric)
    write_atomically(study.out / "guided.png", to_png(figure))
    return f"""<h2 id="guidance">Guidance</h2>
<p>A class-conditional model with classifier-free guidance (two evaluations a step), distilled into one network that takes the
weight w, and its steps then halved: <a href="guided.csv">guided.csv</a>, <a href="guided_receipts.json">receipts</a>.</p>
{_picture(study.out / "guided.png", "FID and IS against the guidance weight for each number of steps")}
"""


def write_report(study: Study, executed) -> Path:
    """Write index.html with the notebooks' pages and, once every arm is scored, all results; returns its path."""
    profile, whole = study.profile, len(study.scored()) == len(study.arms())
    sections = f"""{_results(study) if whole else "<p>Samples and scores appear here once notebook 06 has run.</p>"}
{_guidance(study)}
{_notebooks(executed, study.out)}
"""
    links = [f'<a href="#{name}">{title}</a>' for name, title in re.findall(r'<h2 id="(\w+)">(.*?)</h2>', sections)]
    body = f"""<h1>Relational Diffusion Distillation: the {html.escape(profile.name)} study</h1>
<p>A diffusion model on {html.escape(study.dataset.name)} ({len(study.dataset)} real images), distilled from
{profile.base.steps} sampling steps to {profile.progressive.teacher_steps} and on to 1 by {len(profile.methods)} methods at
equal budgets.</p>
<nav>Contents: {" · ".join(links)}</nav>
{sections}"""
    page, title = study.out / "index.html", html.escape(f"RDD: {profile.name} study")
    head = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style></head>'
    )
    write_atomically(page, f"{head}<body>{body}</body></html>\n")
    return page
