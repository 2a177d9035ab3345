"""What can be read from frozen features: by a linear classifier, and by the labels of the nearest neighbours."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def pooled(h: Tensor) -> Tensor:
    """Activations [N, ...] as features [N, D]: maps averaged over space, sequences over time (van den Oord 2018)."""
    return h.flatten(2).mean(dim=2) if h.dim() > 3 else h.mean(dim=1) if h.dim() == 3 else h


@torch.no_grad()
def features(
    batches: Iterable[tuple[Tensor, Tensor]], layers: Callable[[Tensor], Iterable[Tensor]]
) -> tuple[list[Tensor], Tensor]:
    """The pooled features [N, D] of each of the layers that a function gives for inputs [B, ...], and the labels [N],
    of the samples of all batches that have a label; in float32 on the CPU."""
    rows: list[list[Tensor]] = []
    labels = []
    for inputs, y in batches:
        known = y >= 0
        labels.append(y[known].cpu())
        rows.append([pooled(h)[known].float().cpu() for h in layers(inputs)])
    return [torch.cat(layer) for layer in zip(*rows, strict=True)], torch.cat(labels)


def linear_accuracy(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor) -> float:
    """Accuracy (0 to 1) on features [M, D] with labels [M] of a multinomial logistic regression that is fitted to
    standardised features [N, D] and labels [N].

    Where all `labels` are of one class it answers with that class, and of constant features with the most frequent.
    NaN where there is no sample to fit or to score, or a feature is not finite.
    """
    from sklearn.preprocessing import StandardScaler

    if not _usable(train, test):
        return math.nan
    if bool((labels == labels[0]).all()):
        return float((truth == labels[0]).double().mean())
    scaler = StandardScaler().fit(_numpy(train))
    classifier = _logistic_regression(scaler.transform(_numpy(train)), labels)
    return float(classifier.score(scaler.transform(_numpy(test)), _numpy(truth)))


def linear_head(features: Tensor, labels: Tensor) -> nn.Linear:
    """Multinomial logistic regression [C] -> [classes that occur] on features [N, C] (standardised while it is fitted)
    and labels [N], as a layer for the features as they are."""
    x = features.double().cpu()
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    fitted = _logistic_regression(_numpy((x - mean) / std), labels)
    weight, bias = torch.from_numpy(fitted.coef_), torch.from_numpy(fitted.intercept_)
    if len(weight) == 1:  # two classes: the logit of the second against 0
        weight, bias = F.pad(weight, (0, 0, 1, 0)), F.pad(bias, (1, 0))
    weight = weight / std
    layer = nn.Linear(weight.shape[1], len(weight)).to(features)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias - weight @ mean)
    return layer


def _logistic_regression(x: Any, labels: Tensor) -> Any:
    """With L2 penalty 1, after 200 steps if it has not converged by then: that is what the numbers mean."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(max_iter=200, tol=1e-3).fit(x, _numpy(labels))


def neighbour_accuracy(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor, neighbours: int = 5) -> float:
    """Accuracy (0 to 1) on features [M, D] with labels [M] of the vote among the nearest `neighbours` (or all, if there
    are fewer) of features [N, D] with labels [N]. Near is a small cosine distance, which no scale of a layer changes
    (Wu et al. 2018); votes count by its inverse, so that one sample per class is enough. NaN as `linear_accuracy`."""
    from sklearn.neighbors import KNeighborsClassifier

    if not _usable(train, test):
        return math.nan
    count = min(neighbours, len(train))
    classifier = KNeighborsClassifier(count, weights="distance", metric="cosine", algorithm="brute")
    classifier.fit(_numpy(train), _numpy(labels))
    return float(classifier.score(_numpy(test), _numpy(truth)))


def _usable(train: Tensor, test: Tensor) -> bool:
    return bool(len(train)) and bool(len(test)) and bool(train.isfinite().all()) and bool(test.isfinite().all())


def _numpy(x: Tensor) -> Any:
    return x.detach().cpu().numpy()
