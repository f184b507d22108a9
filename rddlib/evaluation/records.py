"""Results on file: measured once, found again, summed up over seeds."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import pandas as pd

from rddlib.evaluation.evaluate import KID_SUBSET, Result, evaluate_all
from rddlib.evaluation.images import Images
from rddlib.evaluation.networks import Network
from rddlib.evaluation.reference import Reference
from rddlib.utils.checkpoint import write_atomically
from rddlib.utils.distributed import agreed, join, locked, rank, wait
from rddlib.utils.errors import UserError


def row_of(result: Result, **columns) -> dict:
    """{"row", "receipt"} as a results file holds it: columns (method, steps, seed), scores, samples, seconds of drawing."""
    row = {**columns, **result.values, "samples": result.receipt.samples, "seconds": round(result.sampling_seconds, 3)}
    return {"row": row, "receipt": asdict(result.receipt)}


def write_record(path: Path, record: dict) -> None:
    """By the first process, for all."""
    if rank() == 0:
        write_atomically(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    wait()


def read_record(path: Path) -> dict:
    """{"row", "receipt"} from a results file; UserError where it is damaged."""
    try:
        found = json.loads(path.read_text())
        return {"row": dict(found["row"]), "receipt": dict(found["receipt"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: delete it, the next run measures it again") from error


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
    batch_size: int = 500,
    kid_subset: int = KID_SUBSET,
    device="cpu",
) -> list[tuple[Path, dict]]:
    """(file, {"row", "receipt"}) of the images under each protocol: measured now, or found in `folder`.

    name: how the files begin; columns: of the row. The rest is `evaluate_all`'s.
    """
    join()
    facts = [images.identity, len(images), reference.described, network.name, network.sha256, list(metrics), kid_subset]
    key = sha256(json.dumps(facts).encode()).hexdigest()[:12]
    paths = {protocol: folder / f"{name}-{protocol}-{key}.json" for protocol in protocols}
    with locked(folder / f"{name}-{key}"):
        missing = agreed([protocol for protocol, path in paths.items() if not path.exists()])
        if missing:
            results = evaluate_all(
                images,
                reference,
                network=network,
                metrics=metrics,
                protocols=missing,
                batch_size=batch_size,
                kid_subset=kid_subset,
                folder=folder,
                device=device,
                quiet=False,
            )
            for protocol, result in zip(missing, results, strict=True):
                write_record(paths[protocol], row_of(result, **columns))
    return [(path, read_record(path)) for path in paths.values()]


def summarise(table: pd.DataFrame, scores: Sequence[str] = ("fid", "pfd", "is")) -> pd.DataFrame:
    """Mean, spread (standard deviation) and minimum over seeds of the scores, by method and steps."""
    grouped = table.groupby(["method", "steps"], sort=False)[list(scores)]
    summary = grouped.agg(["mean", "std", "min"])
    summary.columns = [f"{score}_{'spread' if how == 'std' else how}" for score, how in summary.columns]
    summary.insert(0, "seeds", grouped.size())
    return summary.reset_index()
