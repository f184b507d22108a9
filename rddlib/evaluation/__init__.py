"""Scores that can be compared: FID, IS, KID, precision and recall on torch-fidelity, each with a receipt that says how.

On digits the features are those of this project's metric network, so a score is called "FID (digits metric network, n
samples)", never plain FID; beside it stands pFD, the Fréchet distance on raw pixels, which no network can flatter.
"""

from rddlib.evaluation.drawing import draw_to_file, write_pngs
from rddlib.evaluation.evaluate import METRICS, VALUES, Result, check_fit, evaluate, evaluate_all
from rddlib.evaluation.images import (
    DrawnImages,
    FolderImages,
    GivenImages,
    Images,
    NpzImages,
    check_classes,
    check_conditions,
    check_weight,
    common_noise,
    fresh_noise,
    open_images,
)
from rddlib.evaluation.networks import (
    DIGITS_NETWORK,
    Network,
    digits_network,
    find_network,
    inception_network,
    inception_weights,
    load_metric_network,
    network_of_checkpoint,
)
from rddlib.evaluation.protocols import PROTOCOLS, Protocol, find_protocol
from rddlib.evaluation.receipt import PROTOCOL_FIELDS, Receipt, differing_protocols
from rddlib.evaluation.records import read_record, recorded, row_of, summarise, write_record
from rddlib.evaluation.reference import Reference
from rddlib.evaluation.statistics import (
    Gaussian,
    InceptionScore,
    Moments,
    frechet_distance,
    read_statistics,
    write_statistics,
)

__all__ = [
    "DIGITS_NETWORK",
    "DrawnImages",
    "FolderImages",
    "Gaussian",
    "GivenImages",
    "Images",
    "InceptionScore",
    "METRICS",
    "Moments",
    "Network",
    "NpzImages",
    "PROTOCOLS",
    "PROTOCOL_FIELDS",
    "Protocol",
    "Receipt",
    "Reference",
    "Result",
    "VALUES",
    "check_classes",
    "check_conditions",
    "check_fit",
    "check_weight",
    "common_noise",
    "differing_protocols",
    "digits_network",
    "draw_to_file",
    "evaluate",
    "evaluate_all",
    "find_network",
    "find_protocol",
    "frechet_distance",
    "fresh_noise",
    "inception_network",
    "inception_weights",
    "load_metric_network",
    "network_of_checkpoint",
    "open_images",
    "read_record",
    "read_statistics",
    "recorded",
    "row_of",
    "summarise",
    "write_pngs",
    "write_record",
    "write_statistics",
]
