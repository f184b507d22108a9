"""IS_P2P and M_P2P block by block: the same values as the reference forms of `relations`, in memory linear in N.

The softmax rows are independent, and the gradient at the logits is p_S - p_T. So each block of relations is computed,
added to the loss and the gradient, and dropped: the gradient is complete after the forward pass, and backward only
scales it.

Precision: products of bf16 maps run in bf16, everything else in float32 (or float64). A bf16 product keeps 8 bits,
often fewer than the difference between student and teacher needs. So in bf16 the student's relations are the teacher's
plus a separately computed difference, with D = U_S - U_T: U_S U_S^T - U_T U_T^T = D U_S^T + U_T D^T. The rounding error
of the teacher's relations is then the same on both sides and nearly cancels in p_S - p_T.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rddlib.losses.checks import at_least_float32, length

PIXELS_PER_BLOCK = {"cpu": 512}  # side of a block of relations: fits a CPU's cache
PIXELS_PER_BLOCK_ELSEWHERE = 4096  # large products keep an accelerator busy


def is_p2p(map_student: Tensor, map_teacher: Tensor, tau: float, chunk: int | None) -> Tensor:
    """L_IS_P2P (Eq. 7, Feng et al. 2024) of checked arguments, which are those of `rddlib.losses.is_p2p_loss`."""
    return with_gradient(_is_p2p, map_student, map_teacher, tau, _images(chunk, map_student))


def m_p2p(map_student: Tensor, map_teacher: Tensor, embeddings: Tensor, tau: float, chunk: int | None) -> Tensor:
    """L_M_P2P (Eq. 8-9, Feng et al. 2024) of checked arguments, which are those of `rddlib.losses.m_p2p_loss`."""
    return with_gradient(_m_p2p, map_student, map_teacher, embeddings, tau, _images(chunk, map_student))


def _images(chunk: int | None, map_S: Tensor) -> int:
    pixels = PIXELS_PER_BLOCK.get(map_S.device.type, PIXELS_PER_BLOCK_ELSEWHERE)
    return chunk or max(1, pixels // (map_S.shape[2] * map_S.shape[3]))


def with_gradient(function, x: Tensor, *arguments) -> Tensor:
    """The loss that function(x, *arguments, wants_gradient) -> (loss, dloss/dx or None) finds, differentiable once, in x."""
    return _WithGradient.apply(x, function, *arguments, torch.is_grad_enabled() and x.requires_grad)


class _WithGradient(torch.autograd.Function):
    """Autograd for `with_gradient`."""

    @staticmethod
    def forward(ctx, x, function, *arguments):
        loss, gradient = function(x, *arguments)
        ctx.save_for_backward(gradient)
        ctx.others, ctx.dtype = 1 + len(arguments), x.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        (gradient,) = ctx.saved_tensors
        # Scale before rounding: in float16 the loss scale keeps small gradients from vanishing, and may exceed float16.
        return (grad_loss.to(gradient.dtype) * gradient).to(ctx.dtype), *[None] * ctx.others


def gradient_like(feature_map: Tensor) -> Tensor:
    """Room for the gradient at a map, wider than float16, whose range a loss scale is yet to be taken into."""
    return torch.empty_like(feature_map, dtype=torch.float32 if feature_map.dtype == torch.float16 else None)


def _is_p2p(map_S: Tensor, map_T: Tensor, tau: float, chunk: int, wants_gradient: bool):
    """IS_P2P and its gradient. R is symmetric, so each pair of blocks I <= J is computed once: R[J, I] = R[I, J]^T.

    With U the unit pixels over sqrt(tau), R / tau = U U^T, and dU = (dR + dR^T) U is one product instead of autograd's
    two. A block of dR + dR^T needs R[I, J] only: the softmax along its rows plus the softmax along its columns.
    """
    N, A = len(map_S), map_S[0, 0].numel()
    U_S, U_T, D, length_S = scaled_pixels(map_S, map_T, tau)
    dU = torch.zeros_like(U_S, dtype=length_S.dtype) if wants_gradient else None
    loss = torch.zeros((), dtype=torch.float64, device=map_S.device)
    blocks = [slice(n * A, min(n + chunk, N) * A) for n in range(0, N, chunk)]
    for i, I in enumerate(blocks):
        for j, J in enumerate(blocks[i:], start=i):
            R_T = (U_T[I] @ U_T[J].T).to(length_S.dtype)  # [b A, b' A], over tau
            R_S = U_S[I] @ U_S[J].T if D is None else R_T + D[I] @ U_S[J].T + U_T[I] @ D[J].T
            kl, G = _rows_and_columns(R_S, R_T, A, tau)
            loss += kl if i != j else kl / 2  # R[I, I] is its own transpose: its rows were counted twice
            if wants_gradient:
                G = G.to(U_S.dtype)
                dU[I] += G @ U_S[J]
                if i != j:
                    dU[J] += G.T @ U_S[I]
    del U_T, D
    rows = N * N * A
    gradient = gradient_like(map_S) if wants_gradient else None
    for I in blocks if wants_gradient else ():
        images = slice(I.start // A, I.stop // A)
        gradient[images] = at_the_map(dU[I] / rows, U_S[I], length_S[I], tau, map_S[images])
    return (loss / rows).to(length_S.dtype), gradient


def _rows_and_columns(R_S: Tensor, R_T: Tensor, A: int, tau: float):
    """KL summed over rows and columns of a block [b A, b' A] of R / tau, and its gradient G = p_S - p_T there."""
    R_S, R_T = _by_image(R_S, A), _by_image(R_T, A)  # [b, A, b', A]
    p_S, log_Z_S = _both_softmaxes(R_S, tau)
    p_T, log_Z_T = _both_softmaxes(R_T, tau)
    kl = (p_T * (R_T - R_S)).sum(dtype=torch.float64) + (log_Z_S - log_Z_T).sum(dtype=torch.float64)
    return kl, (p_S - p_T).flatten(2).flatten(0, 1)


def _by_image(R: Tensor, A: int) -> Tensor:
    return R.unflatten(1, (-1, A)).unflatten(0, (-1, A))


def _both_softmaxes(R: Tensor, tau: float):
    """Softmax over the A pixels of each row plus that of each column of [b, A, b', A], and their log normalisers."""
    if 1 / tau > 0.9 * math.log(torch.finfo(R.dtype).max):  # tau below about 0.012 in float32
        log_Z = R.logsumexp(3).flatten(), R.logsumexp(1).flatten()
        return R.softmax(3) + R.softmax(1), torch.cat(log_Z)
    e = R.exp()  # |R| <= 1 / tau: no shift needed, so that one exp serves rows and columns
    Z_rows, Z_columns = e.sum(3, keepdim=True), e.sum(1, keepdim=True)  # [b, A, b', 1], [b, 1, b', A]
    return e * (1 / Z_rows + 1 / Z_columns), torch.cat([Z_rows.flatten(), Z_columns.flatten()]).log()


def _m_p2p(map_S: Tensor, map_T: Tensor, embeddings: Tensor, tau: float, chunk: int, wants_gradient: bool):
    """M_P2P and its gradient, a few images at a time: P / tau = U E^T, with E the embeddings over sqrt(tau)."""
    N, A = len(map_S), map_S[0, 0].numel()
    loss = torch.zeros((), dtype=torch.float64, device=map_S.device)
    gradient = gradient_like(map_S) if wants_gradient else None
    E = None
    for n in range(0, N, chunk):
        images = slice(n, n + chunk)
        U_S, U_T, D, length_S = scaled_pixels(map_S[images], map_T[images], tau)
        if E is None:
            E = (at_least_float32(embeddings) / math.sqrt(tau)).to(U_S.dtype)  # [V, C]
        P_T = (U_T @ E.T).to(length_S.dtype)  # [b A, V], over tau
        P_S = U_S @ E.T if D is None else P_T + D @ E.T
        log_p_S, log_p_T = P_S.log_softmax(1), P_T.log_softmax(1)
        p_T = log_p_T.exp()
        loss += (p_T * (log_p_T - log_p_S)).sum(dtype=torch.float64)
        if wants_gradient:
            dU = (log_p_S.exp() - p_T).to(E.dtype) @ E
            gradient[images] = at_the_map(dU / (N * A), U_S, length_S, tau, map_S[images])
    return (loss / (N * A)).to(length_S.dtype), gradient


def scaled_pixels(map_S: Tensor, map_T: Tensor, tau: float):
    """U = F / (|F| sqrt(tau)) of all pixels F [N A, C] of both maps, D = U_S - U_T or None, and |F_S| [N A, 1].

    D is used for bf16 products only, and needs maps of equal width.
    """
    wide = torch.promote_types(torch.promote_types(map_S.dtype, map_T.dtype), torch.float32)
    F_S, F_T = (x.to(wide).flatten(2).mT.flatten(0, 1) for x in (map_S, map_T))  # [N A, C]
    length_S, length_T = length(F_S, dim=1), length(F_T, dim=1)
    U_S, U_T = F_S / (length_S * math.sqrt(tau)), F_T / (length_T * math.sqrt(tau))
    if map_S.dtype == map_T.dtype == torch.bfloat16 and map_S.shape == map_T.shape:
        return U_S.bfloat16(), U_T.bfloat16(), (U_S - U_T).bfloat16(), length_S
    return U_S, U_T, None, length_S


def at_the_map(dU: Tensor, U: Tensor, length_F: Tensor, tau: float, feature_map: Tensor) -> Tensor:
    """The gradient at the feature map from that at U: dF = (dU - tau U (U . dU)) / (|F| sqrt(tau))."""
    dU = dU.to(length_F.dtype)
    dF = (dU - tau * U * (U * dU).sum(1, keepdim=True)) / (length_F * math.sqrt(tau))  # [N A, C]
    N, C, H, W = feature_map.shape
    return dF.unflatten(0, (N, H * W)).mT.unflatten(2, (H, W))
