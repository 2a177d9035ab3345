"""Average precision as COCO defines it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MOST = 100
"""Detections of a class in an image that count: those of the highest scores."""

Floats = NDArray[np.float64]


def average_precisions(found: Sequence[Floats], truth: Sequence[Floats], scores: Sequence[Floats]) -> Floats | None:
    """The average precision of one class at each of `THRESHOLDS` [10], or None where no image has the class.

    Within an image each detection takes, in the order of scores, the free object of the largest IoU that is not below
    the threshold. The detections of all images together are sorted by score (equal ones stay in order); precision is
    made monotone from the right, and averaged over `RECALLS`.

    Args:
        found: Of each image the boxes that were found, [N, 4].
        truth: Those that are there, [G, 4].
        scores: Of what was found, [N].
    """
    objects = sum(map(len, truth))
    if not objects:
        return None
    right, all_scores = [], []
    for boxes, there, own in zip(found, truth, scores, strict=True):
        order = np.argsort(-own, kind="stable")[:MOST]
        all_scores.append(own[order])
        right.append(_matched(_iou(boxes[order], there)))
    order = np.argsort(-np.concatenate(all_scores), kind="stable")
    hits = np.concatenate(right)[order].cumsum(0)  # [N, thresholds]
    recall, precision = hits / objects, hits / np.arange(1, len(hits) + 1)[:, None]
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    means = []
    for r, p in zip(recall.T, precision.T, strict=True):
        places = np.searchsorted(r, RECALLS, side="left")
        means.append(np.append(p, 0.0)[places].mean())
    return np.array(means)


def _matched(iou: Floats) -> NDArray[np.bool_]:
    """Which detections, in the order of their scores, are right at each threshold: [N, G] -> [N, thresholds]. Of equal
    IoU the last object is taken, as in COCO's code."""
    found, there = iou.shape
    right = np.zeros((found, len(THRESHOLDS)), dtype=bool)
    if not there:
        return right
    free = np.ones((len(THRESHOLDS), there), dtype=bool)
    rows = np.arange(len(THRESHOLDS))
    least = np.minimum(THRESHOLDS, 1 - 1e-10)
    for i in np.flatnonzero(iou.max(axis=1) >= least[0]):
        of_free = np.where(free, iou[i], -1.0)[:, ::-1]
        best = there - 1 - of_free.argmax(axis=1)
        right[i] = of_free.max(axis=1) >= least
        free[rows[right[i]], best[right[i]]] = False
    return right


def _iou(a: Floats, b: Floats) -> Floats:
    """[N, 4] and [G, 4] -> [N, G]"""
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    overlap = (high - low).clip(min=0).prod(axis=2)
    areas_a, areas_b = ((box[:, 2:] - box[:, :2]).prod(axis=1) for box in (a, b))
    union = areas_a[:, None] + areas_b - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
