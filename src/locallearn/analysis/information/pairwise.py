"""Pairwise-distance bounds on the entropy of a Gaussian mixture (Kolchinsky and Tracey 2017), block by block.

A layer h with noise, T = h + N(0, s2 I), is a mixture with one Gaussian at the activation of each of the N samples, so

    I(X;T) <= -1/N sum_i log2 1/N sum_j exp(-|h_i - h_j|^2 / (2 s2))      (Kullback-Leibler divergences)
    I(X;T) >= the same with 4 s2 in place of s2                           (Bhattacharyya distances)

and I(T;Y) is taken as that minus its average over the classes (Saxe et al. 2018, appendix B): a difference of two
bounds on entropies is not a bound itself. On thousands of small mixtures the truth lay outside of the pair by
0.0004 bits at most; `y_range`, which is certain and wide, pairs the upper bound on one with the lower on the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from locallearn.analysis.information.result import Array, Information, Samples, checked, positive, samples

ROWS = 1024
"""Samples on each side of a block: 8 MB in float64. Half is a third faster on one core, but on busy ones the threads
wait for each other at every block."""
COLUMNS = 2048
"""Activations of a sample that are multiplied at once."""
COPIED = 2**24
"""Up to this many activations are held in float64 (128 MB)."""
SHARE, DIVISOR = 0.9, 1000.0
SAMPLES = 1000
"""Evenly spaced among those given: half a million pairs, whose 90th percentile is stable to about a percent."""


def bounds(t: Array, y: Array | None = None, noise_variance: float = 0.1) -> tuple[Information, Information]:
    """The lower (Bhattacharyya) and the upper (Kullback-Leibler) estimate, from the same distances.

    N^2 D operations in float64, a few blocks of 1024 x 1024 at a time. The ranges of both results hold for the exact
    information of the mixture, whose inputs are these N samples, equally likely.

    Args:
        t: activations [N, D...].
        y: labels [N], for I(T;Y).
        noise_variance: of the Gaussian noise on each activation.
    """
    variance = positive("noise_variance", noise_variance)
    data = samples(t, y)
    lower, upper, own_lower, own_upper = kernel_sums(data, variance)
    x_lower, x_upper = (_bits(s, len(data.t)) for s in (lower, upper))
    values: list[tuple[float, float | None]] = [(x_lower, None), (x_upper, None)]
    y_range = None
    if data.y is not None and (h_y := data.h_y) is not None:
        within_lower, within_upper = (_bits(s, data.counts[data.y]) for s in (own_lower, own_upper))
        values = [(x_lower, max(0.0, x_lower - within_lower)), (x_upper, max(0.0, x_upper - within_upper))]
        highest = max(0.0, min(h_y, x_upper, x_upper - within_lower))
        y_range = (min(max(0.0, x_lower - within_upper), highest), highest)
    return tuple(  # type: ignore[return-value]  # of two
        checked(data, name, x, of_y, noise_variance=variance, x_range=(x_lower, x_upper), y_range=y_range)
        for name, (x, of_y) in zip(("kde_lower", "kde_upper"), values, strict=True)
    )


def kernel_sums(data: Samples, variance: float) -> Tensor:
    """sum_j exp(-|h_i - h_j|^2 / (2 v)) of each sample [4, N], each pair visited once: for v = 4 `variance` (lower) and
    v = `variance` (upper) over all samples, then the same over those of the sample's own class (0 without labels).

    A sum has the sample itself in it and is at least 1: it cannot underflow.
    """
    n, y = len(data.t), data.y
    order = torch.arange(n, device=data.t.device) if y is None else torch.argsort(y, stable=True)
    sums = torch.zeros(4, n, dtype=torch.float64, device=data.t.device)  # in `order`
    classes = None if y is None else y[order]
    for rows, columns, kernel in _blocks(data.t, order, 1 / (8 * variance)):
        kernel = kernel.exp_()
        mask = None if classes is None else _same(classes[rows], classes[columns])
        for which in (0, 1):
            if which:
                kernel = kernel.square_().square_()  # exp(-d / 8v)^4 = exp(-d / 2v)
            _add(sums[which], kernel, rows, columns)
            if mask is not None:
                _add(sums[2 + which], kernel if mask is True else kernel * mask, rows, columns)
    return torch.empty_like(sums).index_copy_(1, order, sums)


def _same(rows: Tensor, columns: Tensor) -> Tensor | bool | None:
    """Which pairs have one class, of classes in ascending order: True for all, None for none, else a mask."""
    if int(rows[-1]) < int(columns[0]):
        return None
    if int(rows[0]) == int(columns[-1]):
        return True
    return (rows[:, None] == columns[None]).double()


def _add(sums: Tensor, kernel: Tensor, rows: slice, columns: slice) -> None:
    """Add a block of a symmetric matrix, which stands for its mirror image too, to the sums of its rows."""
    sums[rows] += kernel @ kernel.new_ones(kernel.shape[1])
    if rows != columns:
        sums[columns] += kernel.new_ones(kernel.shape[0]) @ kernel


Reader: TypeAlias = Callable[[slice, slice], Tensor]
"""Activations of some samples (rows) and some columns, in float64, with the mean taken off."""


def _blocks(t: Tensor, order: Tensor, scale: float) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, columns (of `order`, on or above the diagonal) and -|t_i - t_j|^2 `scale` of each block, in float64.

    As 2 t_i t_j - |t_i|^2 - |t_j|^2, with the mean taken off first so that little cancels.
    """
    read, wide = _reader(t, order), [slice(i, i + COLUMNS) for i in range(0, t.shape[1], COLUMNS)]
    parts = [slice(i, min(i + ROWS, len(order))) for i in range(0, len(order), ROWS)]
    norms = torch.cat([sum((read(part, w).square().sum(1) for w in wide), t.new_zeros(())) for part in parts]) * -scale
    for i, rows in enumerate(parts):
        for columns in parts[i:]:
            block = norms[rows, None] + norms[None, columns]
            for w in wide:
                block.addmm_(read(rows, w), read(columns, w).T, alpha=2 * scale)
            if rows == columns:
                block.fill_diagonal_(0.0)
            yield rows, columns, block.clamp_(max=0.0)


def _reader(t: Tensor, order: Tensor) -> Reader:
    """Reads t [N, D] in `order`: from one copy of it in float64 if that is small, else converts what is read."""
    mean = t.mean(0, dtype=torch.float64)
    if t.numel() <= COPIED:
        copy = t.index_select(0, order).double().sub_(mean)
        return lambda rows, columns: copy[rows, columns]
    return lambda rows, columns: t[:, columns].index_select(0, order[rows]).double().sub_(mean[columns])


def distances(t: Tensor) -> Tensor:
    """|t_i - t_j|^2 [N, N] in float64, of few enough samples."""
    squared = torch.empty(len(t), len(t), dtype=torch.float64, device=t.device)
    for rows, columns, block in _blocks(t, torch.arange(len(t), device=t.device), 1.0):
        squared[rows, columns] = block.neg_()
        squared[columns, rows] = block.T
    return squared


def _bits(sums: Tensor, count: int | Tensor) -> float:
    """-1/N sum_i log2(sums_i / count_i), at least 0."""
    return max(0.0, float(-(sums / count).log2().mean()))


class Distances(NamedTuple):
    """The distribution of the squared distances between activations, as a histogram: counts [64], edges [65]."""

    noise_variance: float
    percentile: float
    counts: Tensor
    edges: Tensor


def noise_from_distances(t: Array, share: float = SHARE, divisor: float = DIVISOR) -> Distances:
    """The 90th percentile (or another `share`) of the squared distances between activations t [N, D...], divided by
    1000 (or another `divisor`).

    Squared, as in the code of Saxe et al., so that a layer that is scaled keeps its information. Where more pairs than
    that share are equal, the largest distance stands in; a constant layer gets variance 1 (it carries nothing).
    """
    data = samples(t).t
    few = data[torch.linspace(0, len(data) - 1, min(SAMPLES, len(data)), device=data.device).round().long()]
    upper = torch.triu_indices(len(few), len(few), 1, device=data.device)
    squared = distances(few)[upper[0], upper[1]]
    largest = float(squared.max())
    percentile = float(squared.kthvalue(max(1, round(share * len(squared)))).values) or largest
    edges = torch.linspace(0.0, largest or 1.0, 65, dtype=torch.float64)
    counts = torch.histc(squared.cpu(), 64, 0.0, largest or 1.0)
    return Distances(percentile / divisor if percentile else 1.0, percentile, counts.long(), edges)


def with_noise(t: Tensor, variance: float | None) -> Tensor:
    """t [N, D] plus Gaussian noise, the same for the same shape; t itself without a variance. Raises UserError."""
    if variance is None:
        return t
    deviation = math.sqrt(positive("noise_variance", variance))
    drawn = torch.randn(t.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return t + deviation * drawn.to(t.device)
