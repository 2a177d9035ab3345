"""What a run measures: the loss and the metrics of every block, on the training batches and on whole splits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from torch import Tensor

from locallearn import names
from locallearn.analysis.readout import features, linear_accuracy
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.engine.scores import scores
from locallearn.engine.totals import BlockTotals
from locallearn.task import Task

BATCH = 256


def evaluate(learner: Learner, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """`engine.scores` of a learner; a stage of a pipeline gives those of its own blocks. Modes and buffers are
    afterwards as they were."""
    return scores(learner.setup.task, learner.blocks, learner.predict, batches)


def evaluate_splits(learner: Learner, data: Data, batches: int | None = None) -> dict[str, float]:
    """`evaluate` on the validation and the test split, or on the first `batches` batches of each, by the names of an
    epoch's record."""
    record: dict[str, float] = {}
    for split, samples in ((names.VALIDATION, data.validation), (names.TEST, data.test)):
        metrics = evaluate(learner, islice(data.evaluation(samples, BATCH), batches))
        record |= {names.on(split, name): value for name, value in metrics.items()}
    return record


def linear_readout(learner: Learner, data: Data) -> dict[str, float]:
    """`linear_accuracy` (of the last block) and `block/00/linear_accuracy`, ..., as self-supervised runs are scored:
    logistic regression fitted to the training split's frozen features without augmentation, scored on the test split.

    Maps are averaged over space and sequences over time. Holds the pooled features of the training split in memory.
    """
    task = learner.setup.task
    train = features(data.evaluation(data.train, BATCH), learner.features, task.flat)
    test = features(data.evaluation(data.test, BATCH), learner.features, task.flat)
    blocks = enumerate(zip(train, test, strict=True))
    accuracies = {k: {"linear_accuracy": linear_accuracy(*a, *b)} for k, (a, b) in blocks}
    return accuracies[len(train) - 1] | names.of_blocks(accuracies)


def sums_of_blocks(reports: Iterable[Sequence[tuple[int, Mapping[str, Any]]]]) -> dict[int, dict[str, Any]]:
    """The sums of every block over the replicas of its stage. Each process reports (index, sums) of its blocks."""
    parts: dict[int, list[Mapping[str, Any]]] = {}
    for report in reports:
        for index, sums in report:
            parts.setdefault(index, []).append(sums)
    return {index: BlockTotals.merge(replicas) for index, replicas in sorted(parts.items())}


def model_numbers(blocks: Mapping[int, Mapping[str, float]], task: Task) -> dict[str, float]:
    """The metrics of the task on the training batches, of the last block that has them."""
    numbers: dict[str, float] = {}
    for metrics in blocks.values():
        numbers |= {name: metrics[name] for name in task.metrics if name in metrics}
    return numbers


def epoch_record(reports: Sequence[Mapping[str, Any]], replicas: int, task: Task) -> dict[str, float]:
    """The record of an epoch from the reports of all processes, by rank.

    Losses and metrics are those on the training batches (`train/` is the last block that learns), then what was
    evaluated; for each stage of several its memory and the share of the time that it waited for others.
    """
    sums = sums_of_blocks(report["blocks"] for report in reports)
    blocks = {k: BlockTotals.means(own, task) for k, own in sums.items()}
    record: dict[str, float] = {}
    record |= {names.on(names.TRAIN, name): value for name, value in model_numbers(blocks, task).items()}
    record |= names.of_blocks(blocks)
    for report in reports:
        record |= report["numbers"]
    record["learning_rate"] = reports[-1]["learning_rate"]
    record["peak_memory_bytes"] = max(report["peak_memory_bytes"] for report in reports)
    for stage, report in enumerate(reports[::replicas] if len(reports) > 1 else ()):
        record |= {names.at(names.STAGE, stage, name): report[name] for name in ("peak_memory_bytes", "waiting")}
    return record
