"""IS_P2P and M_P2P in Triton: the same values as the reference forms of `relations`, and no matrix of relations at all.

A program holds one tile of relations at a time: it sums both products over the channels, takes the softmaxes over the
columns and keeps their log normalisers and the KL. A second kernel makes the relations anew, now a strip of p_S - p_T as
large as the features, which is multiplied with them: the gradient is complete after the forward pass. So memory is a few
times that of the features, beside one number a row and softmax. In bf16 the student's relations are the teacher's plus a
difference, as in `rddlib.losses.chunked`.

Compiled for CUDA; TRITON_INTERPRET=1, set before this module is loaded, runs the same lines on the CPU, slowly. Tiles are as
large as an H100's registers allow without spilling; nothing has been tuned on a GPU yet.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from rddlib.losses import chunked
from rddlib.losses.checks import at_least_float32

INTERPRETED = triton.knobs.runtime.interpret
ROWS, COLUMNS, CHANNELS, WARPS = 64, 64, 64, 8  # of a tile; powers of 2


def is_p2p(map_student: Tensor, map_teacher: Tensor, tau: float) -> Tensor:
    """L_IS_P2P (Eq. 7, Feng et al. 2024) of checked arguments, which are those of `rddlib.losses.is_p2p_loss`."""
    return chunked.with_gradient(_is_p2p, map_student, map_teacher, tau)


def m_p2p(map_student: Tensor, map_teacher: Tensor, embeddings: Tensor, tau: float) -> Tensor:
    """L_M_P2P (Eq. 8-9, Feng et al. 2024) of checked arguments, which are those of `rddlib.losses.m_p2p_loss`."""
    return chunked.with_gradient(_m_p2p, map_student, map_teacher, embeddings, tau)


def _is_p2p(map_S: Tensor, map_T: Tensor, tau: float, wants_gradient: bool):
    """Columns are the same pixels as rows, and a softmax runs over those of one image."""
    *pixels, length_S = chunked.scaled_pixels(map_S, map_T, tau)
    with torch.cuda.device_of(map_S):  # Triton launches on the current device
        loss, dU = _loss(pixels, pixels, map_S[0, 0].numel(), length_S.dtype, wants_gradient, symmetric=True)
    return loss, _at_the_map(dU, pixels[0], length_S, tau, map_S)


def _m_p2p(map_S: Tensor, map_T: Tensor, embeddings: Tensor, tau: float, wants_gradient: bool):
    """Columns are the embeddings, and a softmax runs over all of them."""
    *pixels, length_S = chunked.scaled_pixels(map_S, map_T, tau)
    E = (at_least_float32(embeddings) / math.sqrt(tau)).to(pixels[0].dtype)  # [V, C]
    with torch.cuda.device_of(map_S):
        loss, dU = _loss(pixels, (E, E, None), len(E), length_S.dtype, wants_gradient, symmetric=False)
    return loss, _at_the_map(dU, pixels[0], length_S, tau, map_S)


def _at_the_map(dU: Tensor | None, U_S: Tensor, length_S: Tensor, tau: float, map_S: Tensor) -> Tensor | None:
    return None if dU is None else chunked.gradient_like(map_S).copy_(chunked.at_the_map(dU, U_S, length_S, tau, map_S))


def _loss(rows, columns, length: int, dtype: torch.dtype, wants_gradient: bool, symmetric: bool):
    """The mean KL of all softmaxes over `length` columns, and its gradient at the student's rows [R, C] or None.

    rows, columns: (student, teacher, their difference or None), [R, C] and [V, C] each; symmetric: they are the same, and the
    gradient is meant to hold what comes by the columns too.
    """
    S, K_S = rows[0], columns[0]
    (R, C_S), C_T, V = S.shape, rows[1].shape[1], len(K_S)
    pointers, groups = [(S if x is None else x).contiguous() for x in (*rows, *columns)], V // length
    if INTERPRETED:
        pointers = [x.to(dtype) for x in pointers]  # the interpreter multiplies bf16 as the integers that hold it
    tile = {"ROWS": ROWS, "CHANNELS": CHANNELS // (dtype.itemsize // 4), "num_warps": WARPS}  # what shared memory holds
    tile |= {"DIFFERENCE": rows[2] is not None, "SYMMETRIC": symmetric}
    tile |= {"PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"}
    wide = min(COLUMNS, triton.next_power_of_2(length))  # columns of one softmax in a tile
    tiles = triton.cdiv(R, ROWS), triton.cdiv(groups, COLUMNS // wide)
    log_Z_S, log_Z_T = (torch.empty(R, groups, dtype=dtype, device=S.device) for _ in "ST")
    kl = torch.empty(tiles, dtype=torch.float64, device=S.device)
    softmaxes = (log_Z_S, log_Z_T, R, groups, length, C_S, C_T)
    _kl_kernel[tiles](*pointers, *softmaxes, kl, GROUPS=COLUMNS // wide, WIDE=wide, **tile)
    loss = (kl.sum() / (R * groups)).to(dtype)
    if not wants_gradient:
        return loss, None
    dU = torch.empty(R, C_S, dtype=dtype, device=S.device)
    strip = min(R, ROWS * triton.cdiv(R * C_S, ROWS * V))  # rows whose relations are no more than the features
    G = torch.empty(strip, V, dtype=S.dtype, device=S.device)  # p_S - p_T
    for first in range(0, R, strip):
        count = min(strip, R - first)
        tiles = triton.cdiv(count, ROWS), triton.cdiv(V, COLUMNS)
        _gradient_kernel[tiles](*pointers, *softmaxes, G, first, COLUMNS=COLUMNS, **tile)
        dU[first : first + count] = G[:count] @ K_S
    return loss, dU / (R * groups)


@triton.jit
def _product(acc, x, rows, R, y, columns, keep, C, CHANNELS: tl.constexpr, PRECISION: tl.constexpr):
    """acc [rows, columns] + x y^T, of the rows below R of x [R, C] and the columns to keep of y [V, C]."""
    for c in range(0, C, CHANNELS):
        channels = c + tl.arange(0, CHANNELS)
        inside = channels < C
        x_c = tl.load(x + rows[:, None] * C + channels[None, :], mask=(rows < R)[:, None] & inside[None, :], other=0.0)
        y_c = tl.load(y + columns[None, :] * C + channels[:, None], mask=keep[None, :] & inside[:, None], other=0.0)
        acc = tl.dot(x_c, y_c, acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc


@triton.jit
def _relations(
    S, T, D, K_S, K_T, K_D, zero, rows, R, columns, keep, C_S, C_T,
    CHANNELS: tl.constexpr, DIFFERENCE: tl.constexpr, SYMMETRIC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The teacher's relations [rows, columns], over tau, and the student's less the teacher's."""
    t = _product(zero, T, rows, R, K_T, columns, keep, C_T, CHANNELS, PRECISION)
    if DIFFERENCE:
        d = _product(zero, D, rows, R, K_S, columns, keep, C_S, CHANNELS, PRECISION)
        if SYMMETRIC:
            d = _product(d, T, rows, R, K_D, columns, keep, C_S, CHANNELS, PRECISION)
    else:
        d = _product(zero, S, rows, R, K_S, columns, keep, C_S, CHANNELS, PRECISION) - t
    return t, d


@triton.jit
def _kl_kernel(
    S, T, D, K_S, K_T, K_D, log_Z_S, log_Z_T, R, groups, length, C_S, C_T, kl,
    GROUPS: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    DIFFERENCE: tl.constexpr, SYMMETRIC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of a tile of rows and GROUPS softmaxes over `length` columns each, WIDE of them at a time: log Z [R, groups] of student
    and teacher, and the sum of KL = sum_v e^(t - m_T) (t - s) / Z_T - log Z_T + log Z_S."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    here = tl.arange(0, GROUPS * WIDE)
    group_of, within = tl.program_id(1) * GROUPS + here // WIDE, here % WIDE
    zero = tl.zeros([ROWS, GROUPS * WIDE], dtype=log_Z_S.dtype.element_ty)
    m_S = tl.full([ROWS, GROUPS], float("-inf"), dtype=zero.dtype)
    m_T = m_S
    Z_S = tl.zeros([ROWS, GROUPS], dtype=zero.dtype)
    Z_T, a = Z_S, Z_S
    for first in range(0, length, WIDE):
        inside = first + within < length
        columns = (group_of * length + first + within).to(tl.int64)
        t, d = _relations(
            S, T, D, K_S, K_T, K_D, zero, rows, R, columns, inside & (group_of < groups), C_S, C_T,
            CHANNELS, DIFFERENCE, SYMMETRIC, PRECISION,
        )  # fmt: skip
        s = tl.reshape(tl.where(inside[None, :], t + d, float("-inf")), [ROWS, GROUPS, WIDE])
        t = tl.reshape(tl.where(inside[None, :], t, float("-inf")), [ROWS, GROUPS, WIDE])
        d = tl.reshape(d, [ROWS, GROUPS, WIDE])  # 0 outside, where nothing was loaded
        new_S, new_T = tl.maximum(m_S, tl.max(s, 2)), tl.maximum(m_T, tl.max(t, 2))
        e_T = tl.exp(t - new_T[:, :, None])
        Z_S = Z_S * tl.exp(m_S - new_S) + tl.sum(tl.exp(s - new_S[:, :, None]), 2)
        Z_T = Z_T * tl.exp(m_T - new_T) + tl.sum(e_T, 2)
        a = a * tl.exp(m_T - new_T) - tl.sum(e_T * d, 2)
        m_S, m_T = new_S, new_T
    log_S, log_T = m_S + tl.log(Z_S), m_T + tl.log(Z_T)
    valid = (rows < R)[:, None] & (group < groups)[None, :]
    at = rows[:, None] * groups + group[None, :]
    tl.store(log_Z_S + at, log_S, mask=valid)
    tl.store(log_Z_T + at, log_T, mask=valid)
    found = tl.where(valid, a / Z_T + (log_S - log_T), 0.0).to(tl.float64)
    tl.store(kl + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), tl.sum(tl.sum(found, 1), 0))


@triton.jit
def _gradient_kernel(
    S, T, D, K_S, K_T, K_D, log_Z_S, log_Z_T, R, groups, length, C_S, C_T, G, start,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    DIFFERENCE: tl.constexpr, SYMMETRIC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """G = p_S - p_T of a tile, from row `start` on; of symmetric relations plus its transpose, by the columns' softmaxes."""
    V = groups * length
    local = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rows = (start + local).to(tl.int64)
    columns = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    valid = (rows < R)[:, None] & (columns < V)[None, :]
    zero = tl.zeros([ROWS, COLUMNS], dtype=log_Z_S.dtype.element_ty)
    t, d = _relations(
        S, T, D, K_S, K_T, K_D, zero, rows, R, columns, columns < V, C_S, C_T,
        CHANNELS, DIFFERENCE, SYMMETRIC, PRECISION,
    )  # fmt: skip
    s = t + d
    at = rows[:, None] * groups + (columns // length)[None, :]
    g = tl.exp(s - tl.load(log_Z_S + at, mask=valid, other=0.0))
    g -= tl.exp(t - tl.load(log_Z_T + at, mask=valid, other=0.0))
    if SYMMETRIC:
        at = columns[None, :] * groups + (rows // length)[:, None]
        g += tl.exp(s - tl.load(log_Z_S + at, mask=valid, other=0.0))
        g -= tl.exp(t - tl.load(log_Z_T + at, mask=valid, other=0.0))
    tl.store(G + local.to(tl.int64)[:, None] * V + columns[None, :], g.to(G.dtype.element_ty), mask=valid)
