"""What can be read from frozen features: by a linear classifier, and by the labels of the nearest neighbours."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def pooled(h: Tensor) -> Tensor:
    """Activations [N, ...] as features [N, D]: maps are averaged over space and sequences over time (van den Oord et
    al. 2018; Löwe et al. 2019)."""
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
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if not _usable(train, test):
        return math.nan
    if bool((labels == labels[0]).all()):
        return float((truth == labels[0]).double().mean())
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200, tol=1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 200 steps are what the number means
        classifier.fit(_numpy(train), _numpy(labels))
    return float(classifier.score(_numpy(test), _numpy(truth)))


def neighbour_accuracy(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor, neighbours: int = 5) -> float:
    """Accuracy (0 to 1) on features [M, D] with labels [M] of the vote among the nearest `neighbours` (or all, if there
    are fewer) of features [N, D] with labels [N]. Near is a small cosine distance, which no scale of a layer changes
    (Wu et al. 2018), and a vote counts by its inverse, so that also one sample per class gives an answer. NaN as
    `linear_accuracy`."""
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
