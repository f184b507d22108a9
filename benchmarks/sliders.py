"""How soon the notebooks' sliders answer, as a ratio to drawing an empty figure in the same run; for `rdd bench sliders`.

The explorers are set up as the notebooks do on the digits profile, with untrained networks: speed does not depend on the
weights. A click moves the same controls (row and column, row, image) and draws once.
"""

import gc
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from benchmarks.process import in_child, machine, seconds_of
from rddlib.data import load_dataset
from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.gaussian_mixture import GaussianMixture
from rddlib.methods import COMPETING
from rddlib.report.figures import KINDS, scores_view, to_png
from rddlib.report.tables import comparison, panels
from rddlib.study.graph import build_denoiser, new_extractor
from rddlib.study.profiles import digits
from rddlib.study.study import Study
from rddlib.utils.errors import UserError

try:
    from rddlib.report.explorers import explore, paths_view, queue_view, relations_view, same_noise_view
except ModuleNotFoundError as error:
    raise UserError("the sliders need extras: pip install 'rddlib[notebooks]'") from error

Explorer = tuple[Callable[..., Figure], dict[str, Sequence]]  # a figure function, and the values its arguments may take


class Untrained(Study):
    """A study whose models are what they are before training."""

    def denoiser(self, *_) -> Denoiser:
        return build_denoiser(self.profile).eval().requires_grad_(False)


def paths() -> Explorer:
    generator = torch.Generator().manual_seed(0)
    means = torch.tensor([[1.0, 1.0], [-1.0, 0.5]], dtype=torch.float64)
    covariances = 0.05 * torch.eye(2, dtype=torch.float64).repeat(2, 1, 1)
    mixture = GaussianMixture(torch.tensor([0.6, 0.4], dtype=torch.float64), means, covariances)
    starts = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    figure = paths_view(mixture, starts, mixture.sample(1500, generator), 0.008)
    return figure, {"N": (4, 8, 32, 64), "t": (0.0, 0.3, 0.7), "offset": (0.0, 0.008, 0.3)}


def relations() -> Explorer:
    x, _, map_teacher, map_student = _maps(32)
    values = {"i": range(16), "j": range(16), "row": range(4), "column": range(4), "tau": (0.05, 0.1, 1.0)}
    return relations_view(x, map_teacher, map_student), values


def queue() -> Explorer:
    _, labels, maps, _ = _maps(512)
    rows = F.normalize(maps.flatten(2), dim=1).permute(0, 2, 1)[:, :4].flatten(0, 1)  # four unit pixels of each map
    ranks = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    figure = queue_view(rows, labels.repeat_interleave(4), 256, ranks)
    colours, every = ("class", "age", "nearest", "row"), range(len(rows))
    return figure, {"N_q": (512, 2048), "pushes": range(1, 9), "V": (64, 256, 1024), "colour": colours, "row": every}


def same_noise() -> Explorer:
    figure, noises = same_noise_view(Untrained(digits(), Path("nowhere"))), range(48)
    values = {"method": ("ddim", *COMPETING), "steps": (4, 2, 1), "first": noises, "second": noises}
    return figure, values | {"image": range(12)}


def scores() -> Explorer:
    tables = panels(comparison([]))
    values = {"table": [title for title, _, _ in tables], "rows": list(KINDS), "method": ("all methods", "RDD")}
    return scores_view(tables), values


EXPLORERS = {"paths": paths, "relations": relations, "queue": queue, "same-noise": same_noise, "scores": scores}
COLUMNS = (
    ("explorer", "explorer", ""),
    ("control", "control", ""),
    ("moves", "moves", "d"),
    ("median ms", "median_ms", ".0f"),
    ("slowest ms", "slowest_ms", ".0f"),
    ("empty ms", "empty_ms", ".1f"),
    ("ratio", "ratio", ".1f"),
)


def _maps(count: int) -> tuple[torch.Tensor, ...]:
    """Images [count, 1, 8, 8], their labels, and an untrained extractor's maps of them and of noisy ones."""
    profile = digits()
    data, extractor = load_dataset(profile.data), new_extractor(profile, 10).eval().requires_grad_(False)
    x = data.floats(torch.arange(count))
    noisy = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return x, data.labels[:count], extractor(x).map, extractor(noisy).map


def bench_sliders(moves: int = 6, timeout: float = 3600.0) -> dict:
    """Milliseconds until a moved control shows its picture, on one thread: {"rows", ...}, a row for each control.

    A row holds explorer, control, moves, median_ms, slowest_ms, empty_ms (the median of drawing an empty figure of the same
    size as often) and ratio (median_ms over empty_ms). Every move is to a setting that was not drawn before; moves: of
    each control, fewer where it has fewer values. Raises UserError with the reason where nothing was measured.
    """
    if moves < 1:
        raise UserError(f"--moves {moves}: choose at least 1")
    found = in_child(measure, {"moves": moves}, threads=1, timeout=timeout)
    if "note" in found:
        raise UserError(f"the sliders were not measured: {found['note']}")
    return found


def measure(job: dict) -> dict:
    """What the process does."""
    torch.manual_seed(0)
    rows = [{"explorer": name, **row} for name, make in EXPLORERS.items() for row in moved(*make(), job["moves"])]
    return {"rows": rows, **machine("cpu")}


def moved(figure: Callable[..., Figure], values: dict[str, Sequence], moves: int) -> list[dict]:
    """A row for each control of an explorer, moved one after another."""
    drawn = figure()
    size, rows = drawn.get_size_inches(), []
    plt.close(drawn)
    *controls, _ = explore(figure, **values).children
    for control in controls:
        answers, blanks = [], []
        for value in [value for value in control.options if value != control.value][:moves]:
            gc.collect()  # which would else happen now and then
            answers.append(1000 * seconds_of(partial(control.set_trait, "value", value)))
            blanks.append(1000 * seconds_of(lambda: to_png(plt.figure(figsize=size), dpi=100, quick=True)))
        row = {"control": control.description, "moves": len(answers), "median_ms": statistics.median(answers)}
        row |= {"slowest_ms": max(answers), "empty_ms": statistics.median(blanks)}
        rows.append(row | {"ratio": row["median_ms"] / row["empty_ms"]})
    return rows
