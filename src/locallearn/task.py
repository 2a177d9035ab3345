"""What is asked of a model: a loss of its outputs against targets, and the numbers by which a run is judged.

A task belongs to the data and is frozen. A target `y` is one tensor for every packet. Metrics come from sums that add
up over anything: micro-batches, stages, replicas and the batches of an evaluation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Interval
from torch import Tensor
from torch.nn import functional as F

from locallearn.accelerator import constant
from locallearn.analysis.readout import pooled
from locallearn.errors import UserError
from locallearn.options import Options

SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)
INTEGERS = (*SIGNED, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool)
CLASSIFICATION, MIXED, TOKENS = "classification", "mixed labels", "tokens"
REGRESSION, MULTILABEL, SEGMENTATION = "regression", "multilabel", "segmentation"
DETECTION = "detection"
SAMPLE, POSITION, BOXES = "sample", "position", "boxes"


class Task(Options, ABC):
    """What is asked of a model. Concrete tasks are frozen dataclasses of typed options and hold no tensors.

    In the methods z is what the model or a head answers, and y what it should have been. An item is what has a target
    of its own: a sample, a token, a pixel, an entry of a vector; an item without a target takes no part.

    kind     the name of the task
    wanted   what it asks for, in words, as in "asks for a class for each sample"
    form     one answer for each `sample` [B, classes], one for each `position` [B, T, classes] or [B, classes, h, w],
             or `boxes` [B, positions, ...]
    score    the metric by which a run is judged
    metrics  the name of every metric, and whether more of it is better
    inner    the metrics that are also evaluated at the blocks below the last one
    """

    _group = "task"

    kind: ClassVar[str]
    wanted: ClassVar[str]
    form: ClassVar[str] = SAMPLE
    score: ClassVar[str]
    metrics: ClassVar[Mapping[str, bool]]
    inner: ClassVar[frozenset[str]]

    @property
    def asks(self) -> str:
        """What strategies, objectives and probes must be able to serve: the kind, or a variant of it."""
        return self.kind

    @property
    def directions(self) -> dict[str, str]:
        """The metrics as a manifest has them: "up" where more is better, "down" where less is."""
        return {name: "up" if up else "down" for name, up in self.metrics.items()}

    @abstractmethod
    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        """What is minimised [], a mean over the items that have a target; 0, with a gradient of 0, where none has."""

    @abstractmethod
    def count(self, y: Tensor) -> Tensor:
        """How many items have a target []."""

    def total(self, z: Tensor, y: Tensor) -> Tensor:
        """The loss summed over the items [], which an evaluation adds up."""
        return self.loss(z, y) * self.count(y)

    @abstractmethod
    def sums(self, z: Tensor, y: Tensor) -> Tensor:
        """What the metrics are made of, float64 [S]: sums over the items."""

    @abstractmethod
    def numbers(self, total: float | None, sums: Sequence[float] | None, count: float) -> dict[str, float]:
        """The metrics from sums over `count` items, at least one: of the loss, if it is known, and those of `sums`, if
        something has predicted."""

    def rows(self, z: Tensor, y: Tensor) -> Tensor | None:
        """What a metric needs that no sum can give, [B, ...], kept during one evaluation; None if nothing does."""
        return None

    def finish(self, rows: Tensor) -> dict[str, float]:
        """The metrics of all `rows` of an evaluation, one after the other."""
        return {}

    def error(self, z: Tensor, y: Tensor) -> Tensor:
        """dloss/dz, shaped like z: in closed form where a task has one, else by autograd."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            return torch.autograd.grad(self.loss(z, y), z)[0]

    def flat(self, h: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
        """Features [N, D] and class numbers [N], below 0 for none, for read-outs of activations h [B, ...]; None where
        y has no classes."""
        return None

    def context(self, y: Tensor, classes: int) -> Tensor:
        """What a network that is shown the targets sees of them: floats [B, classes] or [B, T, classes], zero where an
        item has none."""
        raise UserError(f"the task {self.kind} has no targets that a network could be shown: choose another strategy")

    @abstractmethod
    def random(self, batch: int, classes: int, image: Sequence[int], generator: torch.Generator) -> Tensor:
        """Targets of a batch as they could be, for measurements on noise. `image` is the shape of one input."""

    @abstractmethod
    def checked(self, y: Any, count: int, classes: int, look: bool = True) -> Tensor:
        """The targets of `count` samples in the type of the task.

        Args:
            y: What was given.
            count: The samples of the batch.
            classes: The number of classes, or of outputs.
            look: Whether values are read, for which the host would wait on a GPU.

        Raises:
            UserError: For targets that would train a wrong model.
        """


@dataclass(frozen=True)
class Classification(Task):
    """One class for each sample: z [B, classes], y int64 [B], below 0 where a sample has none, or mixed labels: float
    [B, classes], the share of each class (mixup).

    L = mean of -log softmax(z)_y; e = (softmax(z) - onehot(y)) / n.

    smoothing  share of every training label that is spread over all classes (Szegedy et al. 2016); an evaluation's loss
               is that of the true labels
    weights    of the classes in the training loss, whose mean is then over weights
    mixed      whether training labels are mixed
    """

    smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    weights: tuple[Annotated[float, Ge(0)], ...] = ()
    mixed: bool = False
    kind: ClassVar[str] = CLASSIFICATION
    wanted: ClassVar[str] = "a class for each sample"
    score: ClassVar[str] = "accuracy"
    metrics: ClassVar[Mapping[str, bool]] = {"loss": False, "accuracy": True}
    inner: ClassVar[frozenset[str]] = frozenset({"accuracy"})

    @property
    def asks(self) -> str:
        return MIXED if self.mixed else self.kind

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        if not self.smoothing and not self.weights and not y.is_floating_point():
            return cross_entropy(z, y)
        weights = constant(tuple(self.weights), z.dtype, z.device) if self.weights else None
        if y.is_floating_point():
            return F.cross_entropy(z, y.to(z.dtype), weights, label_smoothing=self.smoothing)
        y = y.clamp(min=-1)
        total = F.cross_entropy(z, y, weights, ignore_index=-1, reduction="sum", label_smoothing=self.smoothing)
        shares = (y >= 0).to(z.dtype) if weights is None else weights[y.clamp(min=0)] * (y >= 0)
        return total / shares.sum().clamp(min=torch.finfo(z.dtype).tiny)

    def count(self, y: Tensor) -> Tensor:
        if y.is_floating_point():
            return y.new_full((), len(y), dtype=torch.int64)
        return (y >= 0).count_nonzero()

    def total(self, z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z.float(), y.clamp(min=-1), ignore_index=-1, reduction="sum")

    def sums(self, z: Tensor, y: Tensor) -> Tensor:
        """[correct]"""
        if y.is_floating_point():
            y = y.argmax(dim=1)
        return (z.argmax(dim=1) == y).count_nonzero().double()[None]

    def numbers(self, total: float | None, sums: Sequence[float] | None, count: float) -> dict[str, float]:
        loss = {} if total is None else {"loss": total / count}
        return loss if sums is None else loss | {"accuracy": sums[0] / count}

    def error(self, z: Tensor, y: Tensor) -> Tensor:
        if self.weights:  # the closed form gives every class the same weight
            return super().error(z, y)
        target = self.context(y, z.shape[1]).to(z.dtype)
        there = target.sum(dim=1, keepdim=True)  # 0 where a sample has no label
        smooth = (1 - self.smoothing) * target + self.smoothing * there / z.shape[1]
        return (z.softmax(dim=1) * there - smooth) / self.count(y).clamp(min=1)

    def flat(self, h: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return pooled(h), y

    def context(self, y: Tensor, classes: int) -> Tensor:
        if y.is_floating_point():
            return y
        # Not one_hot, which fails on the negative label of an unlabelled sample and waits for a GPU to see that.
        return (y[:, None] == torch.arange(classes, device=y.device)).float()

    def random(self, batch: int, classes: int, image: Sequence[int], generator: torch.Generator) -> Tensor:
        return torch.randint(classes, (batch,), generator=generator)

    def checked(self, y: Any, count: int, classes: int, look: bool = True) -> Tensor:
        if self.mixed and isinstance(y, Tensor) and y.is_floating_point() and y.shape == (count, classes):
            return y
        if not isinstance(y, Tensor) or y.shape != (count,) or y.dtype not in INTEGERS:
            raise _no_labels(classes, count, y)
        y = y.long()
        if look and (highest := int(y.max())) >= classes:
            raise UserError(
                f"label {highest}, but there are {classes} classes, 0 to {classes - 1} (below 0: no label): "
                "correct the labels, or choose a model of more classes"
            )
        return y


CLASSES = Classification()
"""One class for each sample, without options."""


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy [] of logits [B, classes] over the samples of y [B] that have a label (0 or more);
    0, with a gradient of 0, where none has one. The values of labels on a GPU are not looked at: it would wait."""
    if y.is_cpu and int(y.min()) >= 0:
        return F.cross_entropy(logits, y)
    total = F.cross_entropy(logits, y.clamp(min=-1), ignore_index=-1, reduction="sum")
    return total / (y >= 0).sum().clamp(min=1)


def not_a_tensor(what: str, value: Any) -> UserError:
    """The error for targets that are not a tensor."""
    return UserError(f"the {what} are a {type(value).__name__}, not a tensor: make it one with torch.as_tensor")


def class_numbers(y: Any, count: int, axes: str, what: str, each: str) -> Tensor:
    """Class numbers of `count` samples with more `axes`, such as "H, W", as int64; their values are not read. Raises
    UserError, whose sentence calls them `what` and ends with `each`, what there must be one of."""
    if not isinstance(y, Tensor):
        raise not_a_tensor(what, y)
    if y.dim() != 2 + axes.count(",") or len(y) != count or y.dtype not in INTEGERS:
        raise UserError(f"the {what} are {list(y.shape)} {y.dtype}, but must be integers [{count}, {axes}], {each}")
    return y.long()


def _no_labels(classes: int, count: int, labels: Any) -> UserError:
    """What is wrong with the labels of a batch of `count`, whatever their values are."""
    if not isinstance(labels, Tensor):
        return not_a_tensor("labels", labels)
    shape, wanted = list(labels.shape), f"one class number, from 0 to {classes - 1}, for each of the {count} samples"
    if shape == [count, classes] and (classes > 1 or labels.is_floating_point()):
        return UserError(f"the labels are {shape}, scores or one-hot, but must be {wanted}: labels.argmax(dim=1)")
    if len(shape) != 1:
        hint = ": labels.squeeze(1)" if shape == [count, 1] else ""
        return UserError(f"the labels are {shape}, but must be [{count}], {wanted}{hint}")
    if shape[0] != count:
        return UserError(f"{shape[0]} labels for a batch of {count}: give {wanted}")
    return UserError(f"the labels are {labels.dtype}, but must be integers, {wanted}: labels.long()")
