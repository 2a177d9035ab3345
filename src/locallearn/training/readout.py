"""A linear classifier on frozen features: how self-supervised runs are scored, and what any block has learned."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from locallearn import names
from locallearn.analysis.readout import linear_accuracy, pooled
from locallearn.data import Data
from locallearn.engine import Learner

BATCH = 256


def linear_readout(learner: Learner, data: Data) -> dict[str, float]:
    """`linear_accuracy` (of the last block) and `block/00/linear_accuracy`, ...: logistic regression fitted to the
    training split's frozen features without augmentation, scored on the test split.

    Maps are averaged over space and sequences over time. Holds the pooled features of the training split in memory.
    """
    train, labels = _features(learner, data.evaluation(data.train, BATCH))
    test, truth = _features(learner, data.evaluation(data.test, BATCH))
    found: dict[int, dict[str, float]] = {}
    for k, (fit_on, score_on) in enumerate(zip(train, test, strict=True)):
        found[k] = {"linear_accuracy": linear_accuracy(fit_on, labels, score_on, truth)}
    return found[len(train) - 1] | names.of_blocks(found)


@torch.no_grad()
def _features(learner: Learner, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], Tensor]:
    """Pooled features [N, C] of each block, and the labels [N], of the samples that have one; on the CPU."""
    rows: list[list[Tensor]] = [[] for _ in learner.blocks]
    labels = []
    for inputs, y in batches:
        known = y >= 0
        labels.append(y[known].cpu())
        for row, h in zip(rows, learner.features(inputs), strict=True):
            row.append(pooled(h)[known].float().cpu())
    return [torch.cat(row) for row in rows], torch.cat(labels)
