"""Scores of images against a reference: features batch by batch, statistics of them, and the metrics that follow."""

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from rddlib.evaluation.features import Shards, extract
from rddlib.evaluation.images import Images, Source, open_images
from rddlib.evaluation.networks import Network, find_network
from rddlib.evaluation.receipt import Protocol, Receipt, Result, find_protocol, read_record, row_of, write_record
from rddlib.evaluation.reference import Reference
from rddlib.evaluation.statistics import SPLITS, frechet_distance, gaussian_of, inception_score
from rddlib.training.hardware import check_environment
from rddlib.utils.checkpoint import digest
from rddlib.utils.distributed import agreed, join, locked, rank, wait
from rddlib.utils.errors import UserError
from rddlib.utils.text import counted, joined

KID_SUBSETS, KID_SUBSET, NEIGHBOURS = 100, 1000, 3  # torch-fidelity's defaults
METRICS = ("fid", "is", "kid", "pr", "pfd", "agree")


class Score(NamedTuple):
    """label: as tables and figures call it; form: how it is written; higher: whether higher is better."""

    label: str
    form: str
    higher: bool = False


SCORES = {  # that the metrics give, without standard deviations
    "fid": Score("FID", ".2f"),
    "is": Score("IS", ".2f", higher=True),
    "pfd": Score("pFD", ".3f"),
    "kid": Score("KID", ".5f"),
    "precision": Score("precision", ".3f", higher=True),
    "recall": Score("recall", ".3f", higher=True),
    "agree": Score("agreement", ".3f", higher=True),  # a share of the images
}
MOST_PIXELS = 4096  # values an image may have for pfd: its covariance has an entry for every pair of them


def evaluate(images: Source, reference: Source, *, protocol: str = "torch-fidelity", **options) -> Result:
    """Score images against a reference under one protocol; the options are those of `evaluate_all`."""
    return evaluate_all(images, reference, protocols=(protocol,), **options)[0]


def evaluate_all(
    images: Source,
    reference: Reference | Source,
    *,
    network: Network | None = None,
    metrics: Sequence[str] = ("fid", "is"),
    protocols: Sequence[str] = ("torch-fidelity",),
    batch_size: int = 500,
    kid_subset: int = KID_SUBSET,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    quiet: bool = True,
) -> list[Result]:
    """Score one set of images against a reference, once under each protocol.

    Args:
        images: a data set, a tensor [M, C, H, W] (uint8, or floats in [-1, 1]), a folder, an .npz with arr_0, or DrawnImages.
        reference: the same, or an .npz with mu and sigma.
        network: default find_network("", shape of the images).
        metrics: of METRICS.
        batch_size: images drawn and scored together.
        folder: keeps finished batches here until all are done, so that a stopped run resumes; default a temporary folder.
        quiet: print no line in a log.

    Under torchrun the processes share the batches, and each gets the results. Memory does not grow with the number of
    images, except for "pr". Raises UserError for images, reference and network that do not fit, too few images, and
    values out of range.
    """
    check_environment()
    began, images, protocols = time.perf_counter(), open_images(images), [find_protocol(name) for name in protocols]
    with contextlib.ExitStack() as stack:
        if not isinstance(reference, Reference):
            reference = stack.enter_context(contextlib.closing(Reference(reference, batch_size, device)))
        join()
        network = network or find_network("", images.shape)
        check_fit(images.name, images.shape, len(images), reference, network, metrics, kid_subset)
        if batch_size < 1 or not protocols:
            raise UserError(f"batch_size {batch_size}, protocols {joined(protocols)}: expected at least 1 of each")
        if "agree" in metrics and images.labels(0, 1) is None:
            raise UserError(f"{images.name}: agree is for images drawn of classes or prompts, leave it out")
        needing = {"features": {"fid", "kid", "pr"}, "logits": {"is", "agree"}, "pixels": {"pfd"}}
        kinds = [kind for kind in needing if needing[kind] & set(metrics)]
        work = [network.name, network.sha256, [protocol.name for protocol in protocols], kinds]
        place = stack.enter_context(_workspace(folder, images, work))
        shards = Shards(place, len(images), batch_size, tuple(kinds))
        extract(images, network, protocols, shards, device, quiet)
        scored = [_values(metrics, shards, images, reference, network, protocol, kid_subset) for protocol in protocols]
        sampling = sum(shards.values("seconds"))
    fixed = {
        "is": f"is: {SPLITS} splits",
        "pr": f"pr: {NEIGHBOURS} neighbours",
        "kid": f"kid: {KID_SUBSETS} subsets of {kid_subset}, polynomial kernel of degree 3",
    }
    settings = "; ".join(fixed[metric] for metric in metrics if metric in fixed)
    seconds, subset = time.perf_counter() - began, kid_subset if "kid" in metrics else 0
    receipts = [
        Receipt.make(network, protocol, reference.described, images, settings, subset, seconds, device)
        for protocol in protocols
    ]
    return [Result(values, receipt, sampling) for values, receipt in zip(scored, receipts, strict=True)]


def which_is_better(names: Iterable[str] = SCORES) -> str:
    """In a sentence, of the scores of these names."""
    lower, higher = ([SCORES[name].label for name in names if SCORES[name].higher == way] for way in (False, True))
    said = [f"{way} is better for {joined(found)}" for way, found in (("Lower", lower), ("Higher", higher)) if found]
    return f"{'. '.join(said)}."


def check_metrics(metrics: Sequence[str]) -> None:
    """Raise UserError for none, or one that is not of METRICS."""
    if not metrics or set(metrics) - set(METRICS):
        unknown = ", ".join(sorted(set(metrics) - set(METRICS))) or "(none given)"
        raise UserError(f"unknown metrics {unknown}: known are {', '.join(METRICS)}")


def check_fit(
    name: str,
    shape: tuple[int, int, int],
    count: int,
    reference: Reference,
    network: Network,
    metrics: Sequence[str],
    kid_subset: int = KID_SUBSET,
) -> None:
    """Raise UserError if `count` images of (C, H, W) cannot be scored like this, before any is drawn; name: of the images."""
    check_metrics(metrics)
    if kid_subset < 2:
        raise UserError(f"a kid subset of {kid_subset}: expected at least 2")
    network.check(name, shape)
    reference.check(name, shape, network, metrics)
    needed = {
        "fid": (network.features + 1, f"fill a covariance of {network.features} features"),
        "is": (SPLITS, f"make {SPLITS} splits"),
        "kid": (kid_subset, f"make subsets of {kid_subset} for kid (--kid-subset)"),
        "pr": (NEIGHBOURS + 1, f"have {NEIGHBOURS} neighbours"),
        "pfd": (2, "have a covariance"),
        "agree": (1, "agree with anything"),
    }
    for metric in metrics:
        least, reason = needed[metric]
        for whose, number in ((name, count), *([reference.counted] if metric not in ("is", "agree") else [])):
            if number < least:
                raise UserError(f"{whose}: {counted(number, 'image')} cannot {reason}: give at least {least}")
    if "pfd" in metrics and (values := shape[0] * shape[1] * shape[2]) > MOST_PIXELS:
        raise UserError(f"pfd of images with {values} values: it is made for at most {MOST_PIXELS}, leave it out")


@contextlib.contextmanager
def _workspace(folder: Path | None, images: Images, work: list) -> Iterator[Path]:
    """A folder for the batches of this work, the same for all processes and removed once the work is done.

    Within `folder` it is named by the images' identity and the work, and stays if the work fails.
    """
    if folder is None:
        place = Path(agreed(tempfile.mkdtemp(prefix="rdd-scores-") if rank() == 0 else ""))
    else:
        place = folder / f"batches-{digest({}, json.dumps([images.identity, work]))[:16]}"
    done = False
    try:
        yield place
        wait()
        done = True
    finally:
        if (done or folder is None) and rank() == 0:
            shutil.rmtree(place, ignore_errors=True)


def _values(
    metrics: Sequence[str],
    shards: Shards,
    images: Images,
    reference: Reference,
    network: Network,
    protocol: Protocol,
    kid_subset: int,
) -> dict[str, float]:
    """The scores of all metrics, computed by the first process for all, most of them by torch-fidelity."""
    kept = bool({"kid", "pr"} & set(metrics))
    distances = {metric: kind for metric, kind in (("fid", "features"), ("pfd", "pixels")) if metric in metrics}
    against = {metric: reference.gaussian(network, protocol, kind, kept) for metric, kind in distances.items()}
    rows = reference.rows(network, protocol, shards.folder / f"{protocol.name}.reference.npy") if kept else None
    values: dict[str, float] = {}
    if rank() == 0:
        for metric, kind in distances.items():
            values[metric] = frechet_distance(gaussian_of(shards.read(protocol, kind)), against[metric])
        if "is" in metrics:
            found = inception_score(shards.read(protocol, "logits"), shards.images, protocol.shuffled)
            values |= dict(zip(("is", "is_std"), found, strict=True))
        if "agree" in metrics:
            values["agree"] = _agreement(shards.read(protocol, "logits"), images)
        if kept:
            own = shards.mapped(protocol, "features", shards.folder / f"{protocol.name}.images.npy")
        if "kid" in metrics:
            options = dict(kid_subset_size=kid_subset, kid_subsets=KID_SUBSETS, verbose=False)
            found = kid_features_to_metric(own, rows, **options)
            values |= {"kid": found[KEY_METRIC_KID_MEAN], "kid_std": found[KEY_METRIC_KID_STD]}
        if "pr" in metrics:
            options = dict(prc_neighborhood=NEIGHBOURS, prc_batch_size=500, save_cpu_ram=True, verbose=False)
            found = prc_features_to_metric(own, rows, **options)
            values |= {"precision": found[KEY_METRIC_PRECISION], "recall": found[KEY_METRIC_RECALL]}
    return agreed(values)


def _agreement(logits: Iterator[tuple[int, Tensor]], images: Images) -> float:
    """The share of images whose largest logit is their label."""
    right = 0
    for start, rows in logits:
        labels = images.labels(start, start + len(rows))
        if int(labels.max()) >= rows.shape[1]:
            raise UserError(
                f"{images.name}: the network knows {counted(rows.shape[1], 'class')}, too few: name one that was taught them"
            )
        right += int((rows.argmax(1) == labels).sum())
    return right / len(images)


def recorded(
    folder: Path,
    name: str,
    columns: dict,
    images: Images,
    reference: Reference,
    network: Network,
    *,
    metrics: Sequence[str],
    protocols: Sequence[str],
    kid_subset: int = KID_SUBSET,
    **options,
) -> list[tuple[Path, dict]]:
    """Score images once under each protocol, or read the scores from `folder` -> [(file, {"row", "receipt"}), ...].

    name: the beginning of the files' names; columns: of the row. The rest is as in `evaluate_all`.
    """
    join()
    facts = [images.identity, len(images), reference.described, network.name, network.sha256, list(metrics), kid_subset]
    key = sha256(json.dumps(facts).encode()).hexdigest()[:12]
    paths = {protocol: folder / f"{name}-{protocol}-{key}.json" for protocol in protocols}
    with locked(folder / f"{name}-{key}"):
        missing = agreed([protocol for protocol, path in paths.items() if not path.exists()])
        if missing:
            options |= dict(network=network, metrics=metrics, protocols=missing, kid_subset=kid_subset)
            results = evaluate_all(images, reference, folder=folder, quiet=False, **options)
            for protocol, result in zip(missing, results, strict=True):
                write_record(paths[protocol], row_of(result, **columns))
    return [(path, read_record(path)) for path in paths.values()]
