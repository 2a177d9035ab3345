"""What an estimator is given, checked; what it returns; and signs that a number does not mean what it seems to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from locallearn.errors import UserError

Array: TypeAlias = Tensor | np.ndarray | Sequence[float] | Sequence[int] | Sequence[Sequence[float]]
NEAR = 0.99
"""An estimate above this share of log2 N is saturated."""


@dataclass(frozen=True)
class Information:
    """Mutual information of a layer, in bits.

    x  I(X;T), of the layer and the input; None if it needs the input and that was not given
    y  I(T;Y), of the layer and the label; None without labels
    h_y  H(Y) of the labels among the samples, the most that I(T;Y) can be
    noise_variance  of the Gaussian noise that T is taken to have on top of the activations; of `renyi` the squared
        width of its kernel
    bins  how the activations were binned
    x_range, y_range  of the pairwise bounds: what I(X;T) and I(T;Y) certainly lie between, given the noise
    curve  of MINE: the estimate on held-out samples while its network learned, of I(X;T), else of I(T;Y)
    warnings  sentences on why the number may not mean what it seems to
    """

    x: float | None
    y: float | None
    estimator: str
    samples: int
    noise_variance: float | None = None
    bins: str | None = None
    h_y: float | None = None
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    curve: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()


class Samples(NamedTuple):
    """t [N, D] as given, y [N] as numbers 0 to C-1 or None, x [N, Dx] or None; all on the device of t."""

    t: Tensor
    y: Tensor | None
    x: Tensor | None

    @property
    def counts(self) -> Tensor:
        """How many samples each class has [C]."""
        assert self.y is not None
        return torch.bincount(self.y)

    @property
    def h_y(self) -> float | None:
        """H(Y) in bits."""
        return None if self.y is None else entropy(self.counts)


def entropy(counts: Tensor) -> float:
    """Entropy in bits of the distribution that has these counts."""
    p = counts[counts > 0].double() / counts.sum()
    return abs(float(-(p * p.log2()).sum()))  # without the sign of -0.0


def samples(t: Array, y: Array | None = None, x: Array | None = None) -> Samples:
    """Check and flatten activations [N, D...], labels [N] and inputs [N, Dx...]; drop samples with a label below 0."""
    flat = _flat("t", t)
    inputs = None if x is None else _flat("x", x).to(flat.device)
    if inputs is not None and len(inputs) != len(flat):
        raise UserError(f"x has {len(inputs)} samples, t has {len(flat)}; give the input of each row of t")
    labels = None
    if y is not None:
        labels = torch.as_tensor(y, device=flat.device).detach()
        if labels.shape != (len(flat),):
            raise UserError(f"y has shape {list(labels.shape)}, t has {len(flat)} samples; give each one label, [N]")
        if labels.is_floating_point() and not torch.equal(labels, labels.round()):
            raise UserError("y must be whole numbers, one class for each sample; targets that vary go to x=")
        known = labels >= 0
        if not bool(known.all()):
            flat, labels = flat[known], labels[known]
            inputs = None if inputs is None else inputs[known]
        labels = labels.unique(return_inverse=True)[1]
    if len(flat) < 2:
        labelled = "" if y is None else " with a label"
        raise UserError(f"t has {len(flat)} samples{labelled}; mutual information needs at least 2")
    return Samples(flat, labels, inputs)


def _flat(name: str, values: Array) -> Tensor:
    """A tensor [N, D] of finite floating-point numbers."""
    if isinstance(values, np.ndarray) and not values.flags.writeable:  # of a Tracker; PyTorch knows no such tensors
        values = np.array(values)
    tensor = torch.as_tensor(values).detach()
    if not tensor.dim() or not tensor.numel():
        raise UserError(f"{name} has shape {list(tensor.shape)}; give activations [N, D...], one row for each sample")
    flat = tensor.reshape(len(tensor), -1)
    if not flat.is_floating_point():
        flat = flat.double()
    if not bool(torch.isfinite(flat.sum(dtype=torch.float64))):  # one pass without a copy; most have none
        count = int((~torch.isfinite(flat)).sum())
        if count:
            bad = int((~torch.isfinite(flat)).any(1).sum())
            raise UserError(
                f"{name} has {count} values that are NaN or infinite, in {bad} of {len(flat)} samples; "
                "the network has diverged or was given such inputs"
            )
    return flat


def positive(name: str, value: float | None) -> float:
    """A number above 0. Raises UserError."""
    if value is None or isinstance(value, str) or not math.isfinite(value) or value <= 0:
        raise UserError(f"{name}={value}: must be a finite number above 0")
    return float(value)


def checked(
    data: Samples, estimator: str, x: float | None, y: float | None, warnings: Sequence[str] = (), **convention: Any
) -> Information:
    """I(X;T) and I(T;Y) in bits with the estimator's convention, its own warnings, and those that hold for all."""
    most = math.inf if estimator == "gaussian" else math.log2(len(data.t))  # the closed form knows no samples
    warnings = (*warnings, *_warnings(data, most, x, y))
    return Information(x, y, estimator, samples=len(data.t), h_y=data.h_y, warnings=warnings, **convention)


def _warnings(data: Samples, most: float, x: float | None, y: float | None) -> Iterator[str]:
    if bool((data.t == data.t[:1]).all()):
        yield "all activations are equal: the layer carries nothing"
    if x is not None and x > NEAR * most:
        more = "" if y is None else ", and I(T;Y) would be H(Y) for random labels too"
        yield f"I(X;T) = {x:.2f} bits is saturated at log2 N = {most:.2f}: nearly every sample stands alone{more}"
    if data.y is not None:
        sizes = data.counts
        lonely, classes = int((sizes == 1).sum()), len(sizes)
        if lonely:
            which = "every class has" if lonely == classes else f"{lonely} of {classes} classes have"
            yield f"{which} one sample: I(T;Y) is too large, whatever the layer does; give more samples"
        h_y = data.h_y or 0.0
        if y is not None and y > h_y + 1e-6:
            yield f"I(T;Y) = {y:.3f} bits is above H(Y) = {h_y:.3f}: the estimate is wrong by that much at least"


def data_processing(layers: Sequence[Information]) -> tuple[tuple[int, str], ...]:
    """Where the successive layers of a feed-forward net break the data-processing inequality: I(X;T) or I(T;Y) that
    rises from one layer to the next: the upper layer's number, and a sentence.

    Of pairwise bounds, where the whole range of a layer lies above that of the one below. Of others, where the rise
    exceeds log2(N) / sqrt(N) bits: the standard deviation of a plug-in entropy from N samples is at most that
    (Antos and Kontoyiannis 2001). A break is a fault of the convention, not of the net: noise or bins that are added to
    each layer on its own, at its own scale, do not make a Markov chain.
    """
    breaks: list[tuple[int, str]] = []
    for what, name in (("I(X;T)", "x"), ("I(T;Y)", "y")):
        for k, (below, above) in enumerate(pairwise(layers), 1):
            if getattr(below, name) is None or getattr(above, name) is None:
                continue
            bounded, n = getattr(above, f"{name}_range"), min(below.samples, above.samples)
            tolerance = 1e-6 if bounded else math.log2(n) / math.sqrt(n)
            low = bounded[0] if bounded else getattr(above, name)
            high = (getattr(below, f"{name}_range") or [getattr(below, name)])[-1]
            if low - high > tolerance:
                sentence = (
                    f"{what} rises by {low - high:.2f} bits from layer {k - 1} to {k}, against the data-processing "
                    "inequality: the layers' scales differ against the noise or the bins"
                )
                breaks.append((k, sentence))
    return tuple(breaks)
