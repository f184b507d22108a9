"""Every loss of the papers as a pure function of images, features or logits.

| function | equation |
|---|---|
| `pd_loss` | Eq. 2, Feng et al. 2024 |
| `cfd_loss` | Eq. 4, Feng et al. 2024; with `dual=True` Eq. 8, Sun et al. 2023 |
| `entropy_loss`, `diversity_loss` | Eq. 5 and 6, Sun et al. 2023 |
| `ii_p2p_loss` | Eq. 6, Feng et al. 2024 |
| `is_p2p_loss` | Eq. 7, Feng et al. 2024 |
| `m_p2p_loss` | Eq. 8-9, Feng et al. 2024 |
| `perceptual_loss` | LPIPS, Zhang et al. 2018 |
| `frechet_loss` | Eq. 6, Heusel et al. 2017, as a loss (arXiv 2604.28190) |
| `kernel_loss` | maximum mean discrepancy, as in arXiv 2503.07565 |
| `stage_perceptual_loss` | the form of LPIPS on the stages of any extractor (not LPIPS) |

All return a scalar tensor, float64 for float64 inputs and float32 otherwise. Only the student's argument gets a
gradient. All check their arguments: TypeError for integer tensors, ValueError for shapes, devices and temperatures,
and within `finite_checks()` NonFiniteError for NaN or infinite inputs.
"""

from rddlib.losses.checks import NonFiniteError, finite_checks
from rddlib.losses.distributions import frechet_loss, kernel_loss
from rddlib.losses.perceptual import load_lpips, perceptual_loss, stage_perceptual_loss
from rddlib.losses.pointwise import (
    LOSS_WEIGHTS,
    cfd_loss,
    diversity_loss,
    entropy_loss,
    loss_weight,
    pd_loss,
    truncated_snr_weight,
)
from rddlib.losses.relations import IMPLEMENTATIONS, ii_p2p_loss, is_p2p_loss, m_p2p_loss

__all__ = [
    "IMPLEMENTATIONS",
    "NonFiniteError",
    "cfd_loss",
    "diversity_loss",
    "entropy_loss",
    "finite_checks",
    "frechet_loss",
    "ii_p2p_loss",
    "is_p2p_loss",
    "kernel_loss",
    "load_lpips",
    "m_p2p_loss",
    "pd_loss",
    "perceptual_loss",
    "stage_perceptual_loss",
    "LOSS_WEIGHTS",
    "loss_weight",
    "truncated_snr_weight",
]
