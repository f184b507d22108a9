"""Scores of images against a reference: features batch by batch, sums of them, and the metrics that follow."""

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from rddlib.data import ImageDataset
from rddlib.evaluation.features import Shards, check_ranges, extract
from rddlib.evaluation.images import Images, open_images
from rddlib.evaluation.networks import Network, find_network
from rddlib.evaluation.protocols import Protocol, find_protocol
from rddlib.evaluation.receipt import Receipt
from rddlib.evaluation.reference import Reference
from rddlib.evaluation.statistics import SPLITS, InceptionScore, frechet_distance, gaussian_of
from rddlib.utils.checkpoint import digest
from rddlib.utils.distributed import agreed, join, rank, wait, world_size
from rddlib.utils.errors import UserError

KID_SUBSETS, KID_SUBSET, NEIGHBOURS = 100, 1000, 3  # torch-fidelity's defaults
METRICS = {
    "fid": "Fréchet distance between the network's features; lower is better",
    "is": f"inception score, mean over {SPLITS} splits; higher is better",
    "kid": f"kernel distance, {KID_SUBSETS} subsets, polynomial kernel of degree 3; lower is better",
    "pr": f"precision and recall, {NEIGHBOURS} nearest neighbours; higher is better",
    "pfd": "Fréchet distance between raw pixels in [-1, 1]; lower is better",
}
VALUES = ("fid", "is", "kid", "precision", "recall", "pfd")  # what the metrics measure, besides spreads
MOST_PIXELS = 4096  # values an image may have for pfd: the covariance is of all pairs of them


@dataclass(frozen=True)
class Result:
    """values: the scores asked for, by name: fid, is, is_std, kid, kid_std, precision, recall, pfd; receipt: how they
    were measured; sampling_seconds: spent drawing, summed over processes."""

    values: dict[str, float]
    receipt: Receipt
    sampling_seconds: float = 0.0


def evaluate(
    images: Images | ImageDataset | Tensor | str | Path,
    reference: Images | ImageDataset | Tensor | str | Path,
    *,
    protocol: str = "torch-fidelity",
    **options,
) -> Result:
    """Score images against a reference under one protocol; the options are those of `evaluate_all`."""
    return evaluate_all(images, reference, protocols=(protocol,), **options)[0]


def evaluate_all(
    images: Images | ImageDataset | Tensor | str | Path,
    reference: Reference | Images | ImageDataset | Tensor | str | Path,
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

    images: a data set, a tensor [M, C, H, W] (uint8, or floats in [-1, 1]), a folder, an .npz with arr_0, or DrawnImages;
    reference: the same, or an .npz with mu and sigma. network: default find_network("", shape). metrics: of METRICS.
    batch_size: images drawn and looked at together. folder: in it finished batches are kept until all are there, so that a
    stopped run goes on; default a temporary one. quiet: no line in a log.
    Under torchrun the batches are shared out; every process gets the results.
    Memory does not grow with the number of images, but for the distances of "pr".

    Raises UserError for images, reference and network that do not fit each other, too few images, and wrong ranges.
    """
    if not isinstance(reference, Reference):
        with contextlib.closing(Reference(reference, batch_size, device)) as reference:
            return evaluate_all(
                images,
                reference,
                network=network,
                metrics=metrics,
                protocols=protocols,
                kid_subset=kid_subset,
                batch_size=batch_size,
                folder=folder,
                device=device,
                quiet=quiet,
            )
    began, images, protocols = time.perf_counter(), open_images(images), [find_protocol(name) for name in protocols]
    join()
    network = network or find_network("", images.shape)
    check_fit(images.name, images.shape, len(images), reference, network, metrics, kid_subset)
    if batch_size < 1 or not protocols:
        raise UserError(f"batch_size {batch_size}, protocols {list(protocols)}: expected at least 1 of each")
    kinds = [
        kind
        for kind, needing in {"features": {"fid", "kid", "pr"}, "logits": {"is"}, "pixels": {"pfd"}}.items()
        if needing & set(metrics)
    ]
    work = [network.name, network.sha256, [protocol.name for protocol in protocols], kinds]
    with _workspace(folder, images, work) as place:
        shards = Shards(place, len(images), batch_size, tuple(kinds))
        extract(images, network, protocols, shards, device, quiet)
        check_ranges(images, shards)
        scored = [_values(metrics, shards, reference, network, protocol, kid_subset) for protocol in protocols]
        sampling = sum(shards.values("seconds"))
    fixed = {
        "is": f"is: {SPLITS} splits",
        "pr": f"pr: {NEIGHBOURS} neighbours",
        "kid": f"kid: {KID_SUBSETS} subsets of {kid_subset}, polynomial kernel of degree 3",
    }
    settings = "; ".join(fixed[metric] for metric in metrics if metric in fixed)
    seconds, subset = time.perf_counter() - began, kid_subset if "kid" in metrics else 0
    receipts = [
        Receipt.make(network, protocol, reference.described, images, settings, subset, seconds, world_size(), device)
        for protocol in protocols
    ]
    return [Result(values, receipt, sampling) for values, receipt in zip(scored, receipts, strict=True)]


def check_fit(
    name: str,
    shape: tuple[int, int, int],
    count: int,
    reference: Reference,
    network: Network,
    metrics: Sequence[str],
    kid_subset: int = KID_SUBSET,
) -> None:
    """UserError where `count` images of (C, H, W), called name, cannot be scored like this: before any is drawn."""
    if not metrics or set(metrics) - METRICS.keys():
        unknown = ", ".join(sorted(set(metrics) - METRICS.keys())) or "(none given)"
        raise UserError(f"unknown metrics {unknown}: known are {', '.join(METRICS)}")
    if kid_subset < 2:
        raise UserError(f"a kid subset of {kid_subset}: expected at least 2")
    network.check(name, shape)
    reference.check(name, shape, network, metrics)
    least = {"fid": network.features + 1, "is": SPLITS, "kid": kid_subset, "pr": NEIGHBOURS + 1, "pfd": 2}
    reasons = {
        "fid": f"fill a covariance of {network.features} features",
        "is": f"make {SPLITS} splits",
        "kid": f"make subsets of {kid_subset} for kid (--kid-subset)",
        "pr": f"have {NEIGHBOURS} neighbours",
        "pfd": "have a covariance",
    }
    for metric in metrics:
        for whose, number in ((name, count), *([reference.counted] if metric != "is" else [])):
            if number < least[metric]:
                raise UserError(f"{whose}: {number} images cannot {reasons[metric]}: give at least {least[metric]}")
    if "pfd" in metrics and (values := shape[0] * shape[1] * shape[2]) > MOST_PIXELS:
        raise UserError(f"pfd of images with {values} values: it is made for at most {MOST_PIXELS}, leave it out")


@contextlib.contextmanager
def _workspace(folder: Path | None, images: Images, work: list) -> Iterator[Path]:
    """A folder for the batches of this work alone, the same for all processes, gone once it is done.

    One within `folder` is named by the images' identity and the work, and stays where the work does not come to its end.
    """
    if folder is None:
        place = Path(agreed(tempfile.mkdtemp(prefix="rdd-scores-") if rank() == 0 else ""))
    else:
        place = folder / f"batches-{digest({}, json.dumps([images.identity, work]))[:16]}"
    try:
        yield place
    except BaseException:
        if folder is None and rank() == 0:
            shutil.rmtree(place, ignore_errors=True)
        raise
    wait()
    if rank() == 0:
        shutil.rmtree(place, ignore_errors=True)


def _values(
    metrics: Sequence[str], shards: Shards, reference: Reference, network: Network, protocol: Protocol, kid_subset: int
) -> dict[str, float]:
    """Every metric's numbers, computed by the first process for all."""
    kept = bool({"kid", "pr"} & set(metrics))
    against = {
        kind: reference.gaussian(network, protocol, kind, kept)
        for kind, metric in (("features", "fid"), ("pixels", "pfd"))
        if metric in metrics
    }
    rows = reference.rows(network, protocol, shards.folder / f"{protocol.name}.reference.npy") if kept else None
    values: dict[str, float] = {}
    if rank() == 0:
        for metric, kind in (("fid", "features"), ("pfd", "pixels")):
            if metric in metrics:
                values[metric] = frechet_distance(gaussian_of(shards.read(protocol, kind)), against[kind])
        if "is" in metrics:
            values["is"], values["is_std"] = _inception_score(shards, protocol)
        if kept:
            own = shards.mapped(protocol, "features", shards.folder / f"{protocol.name}.images.npy")
            values |= _of_rows(metrics, own, rows, kid_subset)
    return agreed(values)


def _inception_score(shards: Shards, protocol: Protocol) -> tuple[float, float]:
    score = InceptionScore(shards.images, protocol.shuffled)
    for start, logits in shards.read(protocol, "logits"):
        score.add(start, logits)
    return score.score()


def _of_rows(metrics: Sequence[str], images: Tensor, reference: Tensor, kid_subset: int) -> dict[str, float]:
    """Metrics that look at single rows: torch-fidelity's own."""
    values = {}
    if "kid" in metrics:
        found = kid_features_to_metric(
            images, reference, kid_subset_size=kid_subset, kid_subsets=KID_SUBSETS, verbose=False
        )
        values |= {"kid": found[KEY_METRIC_KID_MEAN], "kid_std": found[KEY_METRIC_KID_STD]}
    if "pr" in metrics:
        found = prc_features_to_metric(
            images, reference, prc_neighborhood=NEIGHBOURS, prc_batch_size=500, save_cpu_ram=True, verbose=False
        )
        values |= {"precision": found[KEY_METRIC_PRECISION], "recall": found[KEY_METRIC_RECALL]}
    return values
