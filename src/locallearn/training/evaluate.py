"""Accuracy and loss of every block that can predict, over a whole split, every sample once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from locallearn import names
from locallearn.engine import Learner


def evaluate(learner: Learner, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """`loss` and `accuracy` (0 to 1) of the model, and `block/00/accuracy`, ... of each block that can predict; a stage
    of a pipeline gives those of its own blocks.

    Looks and never changes: modes and buffers are afterwards as they were.
    """
    depth = len(learner.blocks)
    correct = torch.zeros(depth, dtype=torch.float64, device=learner.device)
    loss = torch.zeros((), dtype=torch.float64, device=learner.device)
    predicts = [False] * depth
    labelled = torch.zeros((), dtype=torch.int64, device=learner.device)
    for inputs, labels in batches:
        labelled += (labels >= 0).sum()  # the labels of another split's nodes of one graph are hidden
        for k, logits in enumerate(learner.predict(inputs)):
            if logits is None:
                continue
            predicts[k] = True
            correct[k] += (logits.argmax(dim=1) == labels).sum()
            if learner.blocks[k].last:
                loss += F.cross_entropy(logits.float(), labels.clamp(min=-1), ignore_index=-1, reduction="sum")
    samples = int(labelled)
    if not samples:
        return {}
    shares = (correct / samples).tolist()
    result = {"loss": loss.item() / samples, "accuracy": shares[-1]} if learner.blocks[-1].last else {}
    indices = [block.spec.index for block in learner.blocks]
    return result | names.of_blocks({i: {"accuracy": shares[k]} for k, i in enumerate(indices) if predicts[k]})
