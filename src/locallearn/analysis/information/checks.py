"""Signs that an estimate does not mean what it seems to; each is a sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from locallearn.analysis.information.result import Information, Samples

NEAR = 0.99
"""An estimate above this share of log2 N is saturated."""


def checked(
    data: Samples, estimator: str, x: float | None, y: float | None, warnings: Sequence[str] = (), **convention: Any
) -> Information:
    """The result of an estimator for `data`: I(X;T) and I(T;Y) in bits with its convention, its own warnings, and those
    that hold for every estimator."""
    most = math.inf if estimator == "gaussian" else math.log2(len(data.t))  # the closed form knows no samples
    said = (*warnings, *_warnings(data, most, x, y))
    return Information(x, y, estimator, samples=len(data.t), h_y=data.h_y, warnings=said, **convention)


def _warnings(data: Samples, most: float, x: float | None, y: float | None) -> Iterator[str]:
    if bool((data.t == data.t[:1]).all()):
        yield "all activations are equal: the layer carries nothing"
    if x is not None and x > NEAR * most:
        said = f"I(X;T) = {x:.2f} bits is saturated at log2 N = {most:.2f}: nearly every sample stands alone"
        yield said if y is None else f"{said}, and I(T;Y) would be H(Y) for random labels too"
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
    found: list[tuple[int, str]] = []
    for what, attribute in (("I(X;T)", "x"), ("I(T;Y)", "y")):
        for k in range(1, len(layers)):
            below, above = (_range(layer, attribute) for layer in layers[k - 1 : k + 1])
            if below is None or above is None:
                continue
            exact = getattr(layers[k], f"{attribute}_range") is not None
            n = min(layers[k - 1].samples, layers[k].samples)
            tolerance = 1e-6 if exact else math.log2(n) / math.sqrt(n)
            rise = above[0] - below[1]
            if rise > tolerance:
                said = (
                    f"{what} rises by {rise:.2f} bits from layer {k - 1} to {k}, against the data-processing "
                    "inequality: the layers' scales differ against the noise or the bins"
                )
                found.append((k, said))
    return tuple(found)


def _range(layer: Information, attribute: str) -> tuple[float, float] | None:
    """Between what the estimate lies: a pair, of equal numbers where it has no bounds."""
    value = getattr(layer, attribute)
    return getattr(layer, f"{attribute}_range") or (None if value is None else (value, value))
