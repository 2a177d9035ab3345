"""The information bottleneck of a known joint distribution: the best encoders, by their self-consistent equations
(Tishby, Pereira & Bialek 1999).

    q(t|x) = q(t) exp(-beta KL[p(y|x) || q(y|t)]) / Z
    q(t) = sum_x p(x) q(t|x),  q(y|t) = sum_x p(y|x) q(t|x) p(x) / q(t)

beta is the price of I(T;Y) in I(X;T): the least I(X;T) - beta I(T;Y) is sought.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from locallearn.errors import UserError

Array = NDArray[np.float64]
STOP, STEPS = 1e-12, 10_000
"""The search ends when the encoder changes by less, or after this many steps: near a critical beta it is slow."""
GONE = 1e-12
"""A code of less probability is dropped."""
SMALL, TINY = 1e-9, 1e-300


class BottleneckPoint(NamedTuple):
    """Of the best encoder at a beta: I(X;T) and I(T;Y) in bits."""

    beta: float
    i_x_t: float
    i_t_y: float


def bottleneck_curve(joint: Any, betas: Iterable[float]) -> list[BottleneckPoint]:
    """The best encoders of a joint distribution, from the largest beta down. At each the search begins at the encoder
    before (at first T = X), and at a blurred one; the better is kept. Where p(y|x) of two x are equal they are one x,
    which changes nothing.

    Args:
        joint: p(x, y) [X, Y] or counts, not negative.
        betas: Of Tishby's Lagrangian, above 0; below 1 nothing is worth its price.

    Raises:
        UserError: If `joint` is not a distribution, or a beta is not above 0.
    """
    p = np.asarray(joint, dtype=np.float64)
    if p.ndim != 2 or (p < 0).any() or not np.isfinite(p).all() or not p.sum() > 0:
        raise UserError("joint: must be p(x, y) or counts [X, Y], numbers of at least 0 that are not all 0")
    p_x, p_y_x = _merged(p / p.sum())
    encoder = np.eye(len(p_x))
    points = []
    for beta in sorted(betas, reverse=True):
        if not 0 < beta < np.inf:
            raise UserError(f"beta={beta}: must be a number above 0")
        starts = (encoder, 0.5 * encoder + 0.5 / encoder.shape[1])
        found = [_settled(p_x, p_y_x, beta, start) for start in starts]
        values = [y - x / beta for x, y in (_bits(p_x, p_y_x, each) for each in found)]
        encoder = found[int(np.argmax(values))]
        if max(values) < SMALL:  # the equations also hold where T says nothing
            encoder = np.ones((len(p_x), 1))
        points.append(BottleneckPoint(beta, *_bits(p_x, p_y_x, encoder)))
    return points


def _merged(p: Array) -> tuple[Array, Array]:
    """p(x) [X] and p(y|x) [X, Y], with x of one p(y|x) as one."""
    p = p[p.sum(1) > 0]
    kinds, which = np.unique(np.round(p / p.sum(1, keepdims=True), 12), axis=0, return_inverse=True)
    merged = np.zeros_like(kinds)
    np.add.at(merged, which.ravel(), p)
    p_x = merged.sum(1)
    return p_x, merged / p_x[:, None]


def _settled(p_x: Array, p_y_x: Array, beta: float, encoder: Array) -> Array:
    for _ in range(STEPS):
        q_t = p_x @ encoder
        encoder, q_t = encoder[:, q_t > GONE], q_t[q_t > GONE]
        q_y_t = (encoder * p_x[:, None]).T @ p_y_x / q_t[:, None]  # [T, Y]
        exponent = np.log(q_t) + beta * p_y_x @ np.log(np.maximum(q_y_t, TINY)).T  # but for H(Y|x), which Z takes up
        after = np.exp(exponent - exponent.max(1, keepdims=True))
        after /= after.sum(1, keepdims=True)
        change = np.abs(after - encoder).max()
        encoder = after
        if change < STOP:
            break
    return encoder


def _bits(p_x: Array, p_y_x: Array, encoder: Array) -> tuple[float, float]:
    q_t = p_x @ encoder
    q_y_t = (encoder * p_x[:, None]).T @ p_y_x / q_t[:, None]
    return _divergence(p_x, encoder, q_t), _divergence(q_t, q_y_t, p_x @ p_y_x)


def _divergence(weights: Array, rows: Array, mean: Array) -> float:
    """sum_i w_i KL(row_i || mean) in bits."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(rows > 0, rows * np.log2(rows / mean), 0.0)
    return max(0.0, float(weights @ terms.sum(1)))
