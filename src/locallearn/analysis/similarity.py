"""Centred kernel alignment: how alike two layers represent the same samples."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from locallearn.errors import UserError


def cka(a: Tensor, b: Tensor, unbiased: bool = True) -> float:
    """Linear CKA of activations [N, ...] and [N, ...] of the same N samples (Kornblith et al. 2019), 1 for equal ones.

    It does not change when either side is shifted, scaled or rotated. `unbiased` takes HSIC_1 (Song et al. 2012; as
    Nguyen et al. 2021), which is 0 on average, and can be a little below it, for independent activations; the published
    estimator of 2019 (`unbiased=False`) is between 0 and 1 but grows with the width: 0.9 for independent noise of 5000
    features and 500 samples. NaN where a side is constant over the samples or has a NaN.
    """
    return float(cka_matrix([a], [b], unbiased)[0, 0])


def cka_matrix(a: Iterable[Tensor], b: Iterable[Tensor] | None = None, unbiased: bool = True) -> Tensor:
    """`cka` of every layer of `a` with every layer of `b` [len(a), len(b)], float64 on the CPU; without `b` of those of
    `a` with each other. Of iterators one layer at a time is held, and N x min(N, D) numbers of each."""
    left = [_compact(x, unbiased) for x in a]
    right = left if b is None else [_compact(x, unbiased) for x in b]
    sizes = {len(x) for x, _ in (*left, *right)}
    if len(sizes) > 1:
        counts = " and ".join(map(str, sorted(sizes)))
        raise UserError(f"CKA compares layers on the same samples, but these have {counts}: give as many of each")
    matrix = torch.empty(len(left), len(right), dtype=torch.float64)
    for i, one in enumerate(left):
        for j, other in enumerate(right):
            if right is left and j < i:
                matrix[i, j] = matrix[j, i]
            else:
                matrix[i, j] = _inner(one, other)
    return matrix


def _compact(x: Tensor, unbiased: bool) -> tuple[Tensor, bool]:
    """The centred features [N, D] or their Gram matrix [N, N] (and whether it is that), whichever is smaller, so scaled
    that its inner product with itself is 1; NaN for constant features."""
    samples = len(x) if x.dim() else 0
    if samples < (4 if unbiased else 2):
        raise UserError(f"CKA of {samples} samples: give at least {4 if unbiased else 2}")
    x = x.detach().reshape(samples, -1)
    x = x.double() if x.dtype == torch.float64 or not x.is_floating_point() else x.float()
    largest = x.abs().max()
    x = x - x.mean(dim=0)
    spread = x.abs().max()
    # what rounding leaves of constants is no signal
    x = x / torch.where(spread <= 8 * torch.finfo(x.dtype).eps * largest, torch.nan, spread)
    is_gram = unbiased or x.shape[1] > samples
    if is_gram:
        x = x @ x.T
        x = _u_centred(x) if unbiased else x
        return x / _norm(x), True
    return x / _norm(x.T @ x).sqrt(), False


def _u_centred(gram: Tensor) -> Tensor:
    """The matrix whose inner products are n (n - 3) HSIC_1 (Székely & Rizzo 2014): the diagonal is left out."""
    n = len(gram)
    gram = gram.clone().fill_diagonal_(0)
    rows = gram.sum(dim=1)
    gram = gram - (rows[:, None] + rows[None, :]) / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
    return gram.fill_diagonal_(0)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dtype=torch.float64)


def _inner(one: tuple[Tensor, bool], other: tuple[Tensor, bool]) -> float:
    """The inner product of two Gram matrices, of each of which either it or the features are known."""
    (a, a_is_gram), (b, b_is_gram) = one, other
    b = b.to(a.device, a.dtype)
    if a_is_gram and b_is_gram:
        return float((a * b).sum(dtype=torch.float64))
    if a_is_gram:
        return float(((a @ b) * b).sum(dtype=torch.float64))
    if b_is_gram:
        return float(((b @ a) * a).sum(dtype=torch.float64))
    return float((a.T @ b).double().square().sum())
