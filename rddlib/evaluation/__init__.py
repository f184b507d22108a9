"""Scores that can be compared: FID, IS, KID, precision and recall by torch-fidelity, each with a receipt of how it was made.

On digits the features are those of this project's metric network, so a score is called "FID (digits metric network, n
samples)", never plain FID; beside it stands pFD, the Fréchet distance on raw pixels, which depends on no network.
"""

# ruff: noqa: F401 (the names that other packages use)
from rddlib.evaluation.drawing import (
    DrawnImages,
    check_classes,
    check_guidance,
    check_weight,
    common_noise,
    draw_to_file,
    fresh_noise,
)
from rddlib.evaluation.entropy import entropy_by_step
from rddlib.evaluation.evaluate import (
    METRICS,
    SCORES,
    check_fit,
    check_metrics,
    evaluate,
    evaluate_all,
    recorded,
    which_is_better,
)
from rddlib.evaluation.images import Images, NpzImages, open_images, write_pngs
from rddlib.evaluation.networks import (
    Network,
    find_network,
    inception_network,
    load_metric_network,
    network_of_checkpoint,
    shipped_network,
    shipped_network_file,
)
from rddlib.evaluation.receipt import (
    PROTOCOL_FIELDS,
    PROTOCOLS,
    Protocol,
    Receipt,
    Result,
    differing_protocols,
    find_protocol,
    read_record,
    row_of,
    summarise,
    write_record,
)
from rddlib.evaluation.reference import Reference
from rddlib.evaluation.statistics import frechet_distance
