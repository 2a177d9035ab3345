"""What data from Python ask for: the task, the labels in its form, and how many tokens there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from locallearn.data.dataset import Data
from locallearn.data.items import Passes
from locallearn.data.split import stratified
from locallearn.data.store import CHECKED
from locallearn.errors import UserError, unknown
from locallearn.seeds import generator
from locallearn.task import CLASSIFICATION, TOKENS, Task
from locallearn.tasks import TASKS, Multilabel, Regression


def asked(task: Any, labels: Tensor | None) -> Task:
    """The task that is meant; a regression is standardised by the `labels` that are trained on. Raises UserError."""
    if isinstance(task, str):
        if task not in TASKS:
            raise unknown("task", task, TASKS)
        task = TASKS[task]
    if not (isinstance(task, Task) or (isinstance(task, type) and issubclass(task, Task))):
        raise UserError(f"task={task!r:.60}: must be {', '.join(TASKS)}, or an object of a class derived from Task")
    task = task if isinstance(task, Task) else task()
    if task.kind == CLASSIFICATION and labels is not None:
        if labels.is_floating_point() and labels.dim() == 1:
            raise UserError("the labels are not whole numbers: number the classes from 0, or give task='regression'")
        task.checked(labels, len(labels), labels.shape[-1], look=False)
    if isinstance(task, Regression) and not task.mean and labels is not None:
        return Regression.of(_columns(labels))
    return task


def targets(task: Task, labels: Tensor) -> Tensor:
    """Labels as the task has them."""
    if isinstance(task, Regression):
        return task.standardised(_columns(labels)) if task.mean else _columns(labels).float()
    return labels.float() if isinstance(task, Multilabel) else labels


def _columns(labels: Tensor) -> Tensor:
    return labels[:, None] if labels.dim() == 1 else labels


def describe_inputs(data: Data) -> None:
    """Set `data.inputs`, and count the tokens where inputs are token numbers; under the task `tokens` the classes are
    the vocabulary. Else every sample is read once. Raises UserError for samples that can only be iterated."""
    data.inputs = getattr(data.train.store, "inputs", None)
    if data.inputs is None and data.train.store.dtype != torch.int64:
        return
    if data.inputs is not None and all(part.kind != "tokens" for part in data.inputs.parts):
        return
    if data.inputs is None and data.task.kind == TOKENS:
        data.vocabulary = len(data.classes)
        return
    stores = {id(part.store): part.store for part in (data.train, data.validation, data.test)}.values()
    if any(isinstance(store, Passes) for store in stores):
        raise UserError(
            "inputs are whole numbers, but it is not known how many tokens there are: give them as tensors, or as a "
            "dataset with __getitem__"
        )
    samples = (part for store in stores for part in store.take(torch.arange(len(store)), CHECKED))
    if data.inputs is None:
        data.vocabulary = 1 + max(int(part.max()) for part in samples)
    else:
        data.inputs = data.inputs.counted(samples)


def fifth(labels: Tensor, task: Task) -> Sequence[Tensor]:
    """The places of what is trained and of what is tested on, a fixed fifth; of classes a fifth of each."""
    count, draws = len(labels), generator(0, "objects", "test")
    if task.kind == CLASSIFICATION and count > 1:
        return stratified(labels.clamp(min=0), count - max(1, count // 5), draws)
    order = torch.randperm(count, generator=draws)
    return order[count // 5 :].sort().values, order[: count // 5].sort().values
