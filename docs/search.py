"""The search for sums of terms on digits, with extractors and a seed that no evidence uses.

python docs/search.py FOLDER        # trains and scores what FOLDER lacks, then writes data/results/digits_search.csv

Sums and temperatures were chosen from these rows, and from those of `rdd ablate balance`; TRIED is in the order of trying.
"""

import json
import sys
from pathlib import Path

import pandas as pd

from rddlib.study.profiles import load_profile
from rddlib.study.study import Arm, Study, csv_of
from rddlib.utils.checkpoint import write_atomically

RESULTS = Path(__file__).resolve().parents[1] / "data/results"
SEED = 100  # of the last halvings
TRIED: dict[int, list[str]] = {  # sums, by the seed of the extractor
    9: [
        "cfd + pd(share=0.1/0.1/0.3)",
        "cfd + pd(share=0.1/0.1/1)",
        "cfd(tau=0.9/1/0.75) + pd(share=0.1/0.1/0.5)",
        "cfd(tau=0.8/0.9/0.75) + pd(share=0.1/0.1/0.5)",
        "cfd(tau=0.9/1/0.65) + pd(share=0.1/0.1/0.5)",
        "cfd + is_p2p(share=1 tau=0.1) + pd(share=0.1/0.1/0.5)",
        "cfd(tau=0.9/1/0.65) + pd(share=0.1/0.1/1)",
        "cfd(tau=0.9/1/0.6) + pd(share=0.1/0.1/2)",
        "cfd(tau=0.85/0.95/0.7) + pd(share=0.3/0.3/1)",
        "cfd(tau=0.9/1/0.65) + is_p2p(share=1 tau=0.1) + pd(share=0.1/0.1/1)",
        "cfd(tau=0.8/0.9/0.65) + pd(share=0.3/0.5/1)",
        "cfd(tau=0.8/0.9/0.65) + pd(share=1/1/2)",
        "cfd(tau=0.8/0.85/0.6) + pd(share=0.5/0.5/1)",
        "cfd(tau=0.75/0.85/0.55) + pd(share=1/1/2)",
        "cfd(tau=0.8/0.9/0.65) + is_p2p(share=1 tau=0.1) + pd(share=0.3/0.5/1)",
        "cfd(tau=0.7/0.8/0.5) + pd(share=1/1/2)",
        "cfd(tau=0.6/0.7/0.45) + pd(share=1/1/2)",
        "cfd(tau=0.75/0.85/0.55) + is_p2p(share=1 tau=0.1) + pd(share=1/1/2)",
        "cfd(tau=0.5/0.6/0.4) + pd(share=1.5/1.5/3)",
        "cfd(tau=0.5/0.6/0.4) + pd(share=1/1/2)",
        "cfd(tau=0.6/0.7/0.45) + pd(share=1/1/3)",
        "cfd(tau=0.5/0.6/0.4) + pd(share=1/1/3)",
        "cfd(tau=0.8/0.9/0.65) + pd(share=0.3/0.7/2)",
        "cfd(tau=0.5/0.6/0.4) + is_p2p(share=1 tau=0.1) + pd(share=1/1/3)",
        "cfd(tau=0.5/0.6/0.4) + is_p2p(share=1 tau=0.1)",
    ],
    10: [
        "cfd(tau=0.8/0.9/0.65) + pd(share=1/1/2)",
        "cfd(tau=0.8/0.9/0.65) + is_p2p(share=1 tau=0.1) + pd(share=0.3/0.5/1)",
        "cfd(tau=0.8/0.9/0.65) + pd(share=0.3/0.5/1)",
        "cfd(tau=0.5/0.6/0.4) + is_p2p(share=1 tau=0.1) + pd(share=1/1/3)",
        "cfd(tau=0.8/0.9/0.65) + pd(share=0.3/0.7/2)",
        "cfd",
        "cfd(tau=0.5/0.6/0.4) + pd(share=1/1/3)",
    ],
    11: [
        "cfd(tau=0.8/0.9/0.65) + pd(share=1/1/2)",
        "cfd(tau=0.8/0.9/0.65) + is_p2p(share=1 tau=0.1) + pd(share=0.3/0.5/1)",
        "cfd(tau=0.8/0.9/0.65) + pd(share=0.3/0.5/1)",
        "cfd(tau=0.8/0.9/0.65) + pd(share=0.3/0.7/2)",
        "cfd(tau=0.5/0.6/0.4) + is_p2p(share=1 tau=0.1) + pd(share=1/1/3)",
        "cfd",
        "cfd(tau=0.5/0.6/0.4) + pd(share=1/1/3)",
    ],
}


def rows_of(folder: Path, extractor: int, terms: str) -> tuple[list[dict], dict[str, dict]]:
    """(a row for each number of steps, their receipts by name)."""
    changes = {"sums": f'["x = {terms}"]', "extractor.seed": str(extractor), "seeds": f"[{SEED}]"}
    study = Study(load_profile("digits", changes), folder, scores="xscores")
    rows, receipts = [], {}
    for arm in (Arm("x", steps, SEED) for steps in study.profile.student_steps):
        found, record = study.measured(arm), study.score_path(arm).stem
        facts = {"terms": terms, "extractor": extractor, "seed": SEED, "steps": arm.steps}
        rows.append(facts | {name: found["row"][name] for name in ("fid", "pfd", "is", "samples")} | {"record": record})
        receipts[record] = found["receipt"]
    return rows, receipts


def main() -> None:
    rows, receipts = [], {}
    for extractor, sums in TRIED.items():
        for terms in sums:
            more, with_receipts = rows_of(Path(sys.argv[1]), extractor, terms)
            rows, receipts = rows + more, receipts | with_receipts
    write_atomically(RESULTS / "digits_search.csv", csv_of(pd.DataFrame(rows)))
    write_atomically(RESULTS / "digits_search_receipts.json", json.dumps(receipts, indent=1) + "\n")


if __name__ == "__main__":
    main()
