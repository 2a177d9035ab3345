"""What a run measures: losses and accuracies of every block, on the training batches and on whole splits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from locallearn.analysis.readout import linear_accuracy, pooled
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.engine.totals import BlockTotals

BATCH = 256


def evaluate(learner: Learner, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Evaluate every block that can predict, counting each sample once. Modes and buffers stay as they are.

    Args:
        learner: All blocks of the model, or those of one stage.
        batches: Pairs of inputs [B, *image] and labels [B]; samples with a label below 0 are left out.

    Returns:
        `loss` and `accuracy` (0 to 1) of the model, and `block/00/accuracy`, ... of each block; nothing for a split
        without labels.
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
    return result | {f"block/{i:02d}/accuracy": shares[k] for k, i in enumerate(indices) if predicts[k]}


def evaluate_splits(learner: Learner, data: Data) -> dict[str, float]:
    """`evaluate` on the validation and the test split, by the names of an epoch's record."""
    record: dict[str, float] = {}
    for name, split in (("validation", data.validation), ("test", data.test)):
        for key, value in evaluate(learner, data.evaluation(split, BATCH)).items():
            block, _, metric = key.rpartition("/")
            record[f"{block}/{name}_{metric}" if block else f"{name}/{metric}"] = value
    return record


def linear_readout(learner: Learner, data: Data) -> dict[str, float]:
    """Score every block by a linear classifier, as self-supervised runs are scored.

    Logistic regression is fitted to the frozen features of the training split without augmentation (maps averaged over
    space, sequences over time), all of which are held in memory, and scored on the test split.

    Returns:
        `linear_accuracy` (0 to 1, of the last block) and `block/00/linear_accuracy`, ...
    """
    train, labels = _features(learner, data.evaluation(data.train, BATCH))
    test, truth = _features(learner, data.evaluation(data.test, BATCH))
    scores = [linear_accuracy(a, labels, b, truth) for a, b in zip(train, test, strict=True)]
    return {"linear_accuracy": scores[-1]} | {f"block/{k:02d}/linear_accuracy": s for k, s in enumerate(scores)}


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


def sums_of_blocks(reports: Iterable[Sequence[tuple[int, Mapping[str, Any]]]]) -> dict[int, dict[str, Any]]:
    """The sums of every block over the replicas of its stage. Each process reports (index, sums) of its blocks."""
    parts: dict[int, list[Mapping[str, Any]]] = {}
    for report in reports:
        for index, sums in report:
            parts.setdefault(index, []).append(sums)
    return {index: BlockTotals.merge(replicas) for index, replicas in sorted(parts.items())}


def epoch_record(reports: Sequence[Mapping[str, Any]], replicas: int) -> dict[str, float]:
    """The record of an epoch from the reports of all processes, by rank.

    Losses and accuracies are those on the training batches (`train/` is the last block that learns), then what was
    evaluated; for each stage of several its memory and the share of the time that it waited for others.
    """
    blocks = {k: BlockTotals.means(sums) for k, sums in sums_of_blocks(report["blocks"] for report in reports).items()}
    record: dict[str, float] = {}
    for metrics in blocks.values():
        record |= {f"train/{name}": value for name, value in metrics.items() if name in ("loss", "accuracy")}
    for k, metrics in blocks.items():
        record |= {f"block/{k:02d}/{name}": value for name, value in metrics.items()}
    for report in reports:
        record |= report["numbers"]
    record["learning_rate"] = reports[-1]["learning_rate"]
    record["peak_memory_bytes"] = max(report["peak_memory_bytes"] for report in reports)
    for stage, report in enumerate(reports[::replicas] if len(reports) > 1 else ()):
        record |= {f"stage/{stage:02d}/{name}": report[name] for name in ("peak_memory_bytes", "waiting")}
    return record
