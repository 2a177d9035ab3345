"""Any number of labels for each sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from locallearn.errors import UserError
from locallearn.task import MULTILABEL, Task, not_a_tensor


@dataclass(frozen=True)
class Multilabel(Task):
    """Labels: z [B, labels], y float32 [B, labels], 1 where a sample has the label, 0 where not, -1 where nobody knows.

    L = mean over the known entries of the binary cross-entropy of sigmoid(z); e = (sigmoid(z) - y) / n. A label is
    answered where z > 0. F1 is 2 tp / (2 tp + fp + fn), the mean over labels that occur; `subset_accuracy` the share of
    samples with every known label right; `map` the mean over labels of the average precision, in evaluations alone.
    """

    kind: ClassVar[str] = MULTILABEL
    wanted: ClassVar[str] = "any number of labels for each sample"
    score: ClassVar[str] = "f1"
    metrics: ClassVar[Mapping[str, bool]] = {"loss": False, "f1": True, "subset_accuracy": True, "map": True}
    inner: ClassVar[frozenset[str]] = frozenset({"f1"})

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        known = y >= 0
        losses = F.binary_cross_entropy_with_logits(z, y.clamp(min=0).to(z.dtype), reduction="none")
        return (losses * known).sum() / known.sum().clamp(min=1)

    def count(self, y: Tensor) -> Tensor:
        return (y >= 0).count_nonzero()

    def sums(self, z: Tensor, y: Tensor) -> Tensor:
        """Of each label: true positives, false positives, false negatives; then samples that are right, and samples."""
        answered, known = z > 0, y >= 0
        there, not_there = y > 0.5, known & (y <= 0.5)
        counts = torch.stack([answered & there, answered & not_there, ~answered & there]).sum(1).flatten()
        right = ((answered == there) | ~known).all(1) & known.any(1)
        return torch.cat([counts, right.sum()[None], known.any(1).sum()[None]]).double()

    def numbers(self, total: float | None, sums: Sequence[float] | None, count: float) -> dict[str, float]:
        numbers = {} if total is None else {"loss": total / count}
        if sums is None:
            return numbers
        *counts, right, samples = sums
        labels = len(counts) // 3
        of_labels = zip(counts[:labels], counts[labels : 2 * labels], counts[2 * labels :], strict=True)
        f1 = [2 * tp / (2 * tp + fp + fn) for tp, fp, fn in of_labels if tp + fn]
        numbers |= {"f1": math.fsum(f1) / len(f1)} if f1 else {}
        return numbers | ({"subset_accuracy": right / samples} if samples else {})

    def rows(self, z: Tensor, y: Tensor) -> Tensor:
        return torch.stack([z.float(), y.float()], dim=1)  # [B, 2, labels]

    def finish(self, rows: Tensor) -> dict[str, float]:
        from sklearn.metrics import average_precision_score

        scores, y = (column.T.cpu().numpy() for column in rows.unbind(1))
        precisions = [
            average_precision_score(a[t >= 0] > 0.5, s[t >= 0])
            for s, t, a in zip(scores, y, y, strict=True)
            if (t > 0.5).any()
        ]
        return {"map": math.fsum(precisions) / len(precisions)} if precisions else {}

    def error(self, z: Tensor, y: Tensor) -> Tensor:
        return (z.sigmoid() - y) * (y >= 0) / self.count(y).clamp(min=1)

    def context(self, y: Tensor, classes: int) -> Tensor:
        return y.clamp(min=0)

    def random(self, batch: int, classes: int, image: Sequence[int], generator: torch.Generator) -> Tensor:
        return torch.randint(2, (batch, classes), generator=generator).float()

    def checked(self, y: Any, count: int, classes: int, look: bool = True) -> Tensor:
        if not isinstance(y, Tensor):
            raise not_a_tensor("labels", y)
        if y.shape != (count, classes) or y.is_complex():
            raise UserError(
                f"the labels are {list(y.shape)} {y.dtype}, but must be [{count}, {classes}]: 1, 0 or -1 (not known) "
                "for each label of each sample"
            )
        y = y.float()
        if look and not bool(((y == 0) | (y == 1) | (y == -1)).all()):
            raise UserError("the labels hold values other than 1, 0 and -1 (not known): use only these")
        return y
