"""Information by binning: every activation becomes the number of its bin, and a sample the word of all its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from locallearn.analysis.information.result import Array, Information, Samples, checked, entropy, samples
from locallearn.errors import UserError

Bins: TypeAlias = int | float | str | Sequence[float] | Tensor
LARGEST = 2**62
TANH = (*torch.linspace(-1, 1, 30, dtype=torch.float64).tolist(), 2.0)
"""The edges for tanh units in the code of Shwartz-Ziv and Tishby 2017: 29 bins of equal width, and one for exactly 1.0,
which is what float32 makes of a saturated unit."""


def binned(t: Array, y: Array | None = None, bins: Bins = 30) -> Information:
    """I(X;T) = H(bin(T)) and I(T;Y) = H(bin(T)) - sum_y p(y) H(bin(T) | y), for a deterministic layer; exact for the
    distribution of the samples given (Shwartz-Ziv and Tishby 2017; Saxe et al. 2018).

    Args:
        t: activations [N, D...].
        y: labels [N].
        bins: an int: this many bins of equal width over this layer's own range; a float: bins of this width, at its
            multiples (0.07 in the code of Saxe et al.); ascending edges: the bins between them, with all that is
            outside in the outermost ones, such as tanh(linspace(-10, 10, 31)) for bins of equal width in the net input
            of tanh units; "tanh": those of the original: 29 of equal width on [-1, 1), and one for exactly 1.0.
    """
    data = samples(t, y)
    codes, convention = _codes(data.t, bins)
    words = codes.unique(dim=0, return_inverse=True)[1]  # [N], equal for samples with equal codes
    x = entropy(torch.bincount(words))
    of_y, h_y = None, data.h_y
    if data.y is not None and h_y is not None:
        joint = torch.bincount(words * (int(data.y.max()) + 1) + data.y)
        of_y = max(0.0, x + h_y - entropy(joint))
    return checked(Samples(codes, data.y, None), "binned", x, of_y, bins=convention)  # equal in their bins is equal


def _codes(t: Tensor, bins: Bins) -> tuple[Tensor, str]:
    """The number of the bin of each activation, int64 [N, D] from 0 upward, and the bins in words."""
    if isinstance(bins, bool):
        raise UserError(f"bins={bins}: must be a number of bins, their width, or their edges")
    if isinstance(bins, int):
        if not 1 <= bins <= 2**31:
            raise UserError(f"bins={bins}: the number of bins must be at least 1; for a width give a float")
        low, high = (float(v) for v in torch.aminmax(t))
        if low == high:
            return torch.zeros_like(t, dtype=torch.int64), f"{bins} on its range"
        scaled = (t.double() - low).mul_(bins / (high - low)).floor_().long()
        return scaled.clamp_(0, bins - 1), f"{bins} on its range"  # the largest value belongs to the last bin
    if isinstance(bins, float):
        if not 0 < bins < float("inf"):
            raise UserError(f"bins={bins}: the width of the bins must be a finite number above 0")
        numbers = (t.double() / bins).floor_()
        if float(numbers.abs().max()) > LARGEST / 2:
            raise UserError(f"bins={bins}: too narrow for activations up to {float(t.abs().max()):.3g}; widen them")
        numbers = numbers.long()
        return numbers - numbers.min(), f"width {bins:g}"
    if isinstance(bins, str):
        if bins != "tanh":
            raise UserError(f"bins={bins}: the only named bins are tanh; or give their number, width or edges")
        bins = TANH
    edges = torch.as_tensor(bins, dtype=torch.float64, device=t.device)
    if edges.dim() != 1 or len(edges) < 2 or not bool((edges.diff() > 0).all()):
        raise UserError("bins must be a number of bins, their width, or at least two ascending edges")
    inner = torch.bucketize(t.double(), edges[1:-1].contiguous(), right=True)  # a value on an edge: the bin above
    return inner, f"{len(edges) - 1} from {float(edges[0]):g} to {float(edges[-1]):g}"
