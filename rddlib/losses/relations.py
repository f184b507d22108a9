"""Losses on relations between pixels: II_P2P, IS_P2P and M_P2P, as the paper writes them.

The `reference` forms follow the equations line by line; `rddlib.losses.chunked` and, on CUDA, `rddlib.losses.fused` compute
the same values without holding the whole relation matrix. Symbols: N images, A = H W pixels, C channels, V embeddings; F
features, R relations within the batch, M within an image, P to the memory; _S student, _T teacher.
"""

from types import ModuleType

import torch
from torch import Tensor

from rddlib.losses import chunked
from rddlib.losses.checks import check_maps, check_same, check_tensor, kl, no_autocast, unit
from rddlib.utils.errors import UserError

IMPLEMENTATIONS = ("auto", "reference", "chunked", "fused")
SMALL = 2**18  # entries of a relation matrix up to which the reference form is as fast and small enough


def pixels(feature_map: Tensor) -> Tensor:
    """The map's pixels as unit vectors: [N, C, H, W] -> [N, A, C]. A pixel that is zero stays zero."""
    return unit(feature_map.flatten(2).mT, dim=2)


def ii_p2p_loss(map_student: Tensor, map_teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """L_II_P2P = 1/A sum_a KL(softmax(M_T[a] / tau) || softmax(M_S[a] / tau)), M = F F^T (Eq. 6, Feng et al. 2024).

    map_student, map_teacher: feature maps [N, C, H, W], normalised here; channel counts may differ. Mean over images.
    Raises TypeError for integer tensors, ValueError for shapes or devices that do not match and for temperature <= 0.
    """
    check_maps(map_student, map_teacher, temperature)
    with no_autocast(map_student):
        F_S, F_T = pixels(map_student), pixels(map_teacher.detach())  # [N, A, C]
        M_S, M_T = F_S @ F_S.mT, F_T @ F_T.mT  # [N, A, A]
        return kl(M_S / temperature, M_T / temperature).mean()


def is_p2p_loss(
    map_student: Tensor, map_teacher: Tensor, temperature: float = 1.0, impl: str = "auto", chunk: int | None = None
) -> Tensor:
    """L_IS_P2P = 1/N^2 sum_ij L_II_P2P(R_T[i,j], R_S[i,j]), R[i,j] = F_i F_j^T (Eq. 7, Feng et al. 2024).

    Each row softmax runs over the A pixels of one image j; the loss is the mean over all N^2 A rows.
    map_student, map_teacher: feature maps [N, C, H, W], normalised here; channel counts may differ.
    impl: "reference" holds all (N A)^2 relations, in float32 or better; "chunked" is as exact, in memory linear in N,
    with products in the maps' own precision and sums in float32 or better; "fused" is the same in Triton, for CUDA, holding no
    block of relations either; "auto" picks one of the first two by size, on every device: whether the third is faster on a
    GPU, `rdd bench losses --device cuda` tells.
    chunk: images per block of the chunked form, None for a size that suits the device; changes memory, not the result.
    All but the reference form have a first derivative only.
    Raises TypeError for integer tensors, ValueError for shapes or devices that do not match, temperature <= 0, an
    unknown impl and chunk < 1, UserError for "fused" without CUDA or without triton.
    """
    check_maps(map_student, map_teacher, temperature)
    N, _, H, W = map_student.shape
    with no_autocast(map_student):
        form = _pick(impl, chunk, entries=(N * H * W) ** 2)
        if form == "reference":
            return _is_p2p_reference(map_student, map_teacher.detach(), temperature)
        if form == "fused":
            return _fused(map_student.device).is_p2p(map_student, map_teacher.detach(), temperature)
        return chunked.is_p2p(map_student, map_teacher.detach(), temperature, chunk)


def m_p2p_loss(
    map_student: Tensor,
    map_teacher: Tensor,
    embeddings: Tensor,
    temperature: float = 0.1,
    impl: str = "auto",
    chunk: int | None = None,
) -> Tensor:
    """L_M_P2P = 1/A sum_a KL(softmax(P_T[a] / tau) || softmax(P_S[a] / tau)), P = F E^T (Eq. 8-9, Feng et al. 2024).

    map_student (after the projection head), map_teacher: feature maps [N, C, H, W], normalised here. embeddings E:
    [V, C], rows drawn from the pixel queue, unit vectors already, used as they are, without gradient. Mean over the
    N A rows. impl and chunk as in `is_p2p_loss`.
    Raises TypeError for integer tensors, ValueError for shapes or devices that do not match, no embeddings,
    temperature <= 0, an unknown impl and chunk < 1, UserError for "fused" without CUDA or without triton.
    """
    check_maps(map_student, map_teacher, temperature, same_channels=True)
    check_tensor("embeddings", embeddings, "[V, C]")
    check_same("embeddings", embeddings, "map_student", map_student, (1,))
    N, _, H, W = map_student.shape
    with no_autocast(map_student):
        form = _pick(impl, chunk, entries=N * H * W * len(embeddings))
        if form == "reference":
            return _m_p2p_reference(map_student, map_teacher.detach(), embeddings.detach(), temperature)
        if form == "fused":
            return _fused(map_student.device).m_p2p(map_student, map_teacher.detach(), embeddings.detach(), temperature)
        return chunked.m_p2p(map_student, map_teacher.detach(), embeddings.detach(), temperature, chunk)


def _is_p2p_reference(map_student: Tensor, map_teacher: Tensor, tau: float) -> Tensor:
    F_S, F_T = pixels(map_student), pixels(map_teacher)  # [N, A, C]
    A = F_S.shape[1]
    F_S, F_T = F_S.flatten(0, 1), F_T.flatten(0, 1)  # [N A, C]
    R_S, R_T = F_S @ F_S.T, F_T @ F_T.T  # [N A, N A]
    R_S, R_T = R_S.unflatten(1, (-1, A)), R_T.unflatten(1, (-1, A))  # [N A, N, A]: rows run over one image's pixels
    return kl(R_S / tau, R_T / tau).mean()


def _m_p2p_reference(map_student: Tensor, map_teacher: Tensor, embeddings: Tensor, tau: float) -> Tensor:
    F_S, F_T = pixels(map_student), pixels(map_teacher)  # [N, A, C]
    E = embeddings.to(F_S.dtype)
    P_S, P_T = F_S @ E.T, F_T.to(F_S.dtype) @ E.T  # [N, A, V]
    return kl(P_S / tau, P_T / tau).mean()


def _pick(impl: str, chunk: int | None, entries: int) -> str:
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl is {impl!r}, expected one of {IMPLEMENTATIONS}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}, expected at least 1 image")
    if impl == "auto":
        return "reference" if entries <= SMALL and chunk is None else "chunked"
    return impl


def check_form(impl: str, device: torch.device) -> None:
    """Raise UserError where this form of the relational losses does not run on this device."""
    if impl != "fused":
        return
    try:
        from rddlib.losses import fused  # triton comes with PyTorch for CUDA, not with every PyTorch
    except ImportError as error:
        raise UserError(f"impl=fused needs the package triton ({error}): install it, or choose auto") from error
    if device.type != "cuda" and not fused.INTERPRETED:
        raise UserError(f"impl=fused runs on CUDA, not on {device}: choose auto")


def _fused(device: torch.device) -> ModuleType:
    check_form("fused", device)
    from rddlib.losses import fused

    return fused
