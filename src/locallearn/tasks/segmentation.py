"""A class for every pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from locallearn.errors import UserError
from locallearn.task import POSITION, SEGMENTATION, Task, class_numbers


@dataclass(frozen=True)
class Segmentation(Task):
    """Pixels: z [B, classes, h, w], y int64 [B, H, W], -1 where a pixel has no class.

    z is resized to H x W (bilinear, corners not aligned), and L = mean over pixels of -log softmax(z)_y. The score is
    the mean over the classes that occur of the intersection over the union.
    """

    kind: ClassVar[str] = SEGMENTATION
    wanted: ClassVar[str] = "a class for every pixel"
    form: ClassVar[str] = POSITION
    score: ClassVar[str] = "miou"
    metrics: ClassVar[Mapping[str, bool]] = {"loss": False, "miou": True, "accuracy": True}
    inner: ClassVar[frozenset[str]] = frozenset({"miou"})

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        return self.total(z, y) / self.count(y).clamp(min=1)

    def count(self, y: Tensor) -> Tensor:
        return (y >= 0).count_nonzero()

    def total(self, z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(_at(z, y), y.clamp(min=-1), ignore_index=-1, reduction="sum")

    def sums(self, z: Tensor, y: Tensor) -> Tensor:
        """The counts of pixels [truth, answer], one row after the other."""
        classes, known = z.shape[1], y >= 0
        answers = _at(z, y).argmax(dim=1)
        pairs = (y.clamp(min=0) * classes + answers).flatten()
        counts = torch.zeros(classes * classes, dtype=torch.float64, device=z.device)
        return counts.index_add_(0, pairs, known.flatten().double())

    def numbers(self, total: float | None, sums: Sequence[float] | None, count: float) -> dict[str, float]:
        numbers = {} if total is None else {"loss": total / count}
        if sums is None:
            return numbers
        classes = math.isqrt(len(sums))
        table = [sums[i : i + classes] for i in range(0, len(sums), classes)]
        right = [table[k][k] for k in range(classes)]
        truth, answers = [sum(row) for row in table], [sum(column) for column in zip(*table, strict=True)]
        shares = [r / (t + a - r) for r, t, a in zip(right, truth, answers, strict=True) if t]
        return numbers | {"miou": math.fsum(shares) / len(shares), "accuracy": sum(right) / count}

    def error(self, z: Tensor, y: Tensor) -> Tensor:
        large = _at(z, y)
        error = large.softmax(1) * (y >= 0)[:, None] - self.context(y, z.shape[1]).to(z.dtype)
        error = error / self.count(y).clamp(min=1)
        if large is z:
            return error
        return torch.ops.aten.upsample_bilinear2d_backward(error, list(y.shape[1:]), list(z.shape), False)

    def flat(self, h: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
        if h.dim() != 4:
            return None
        cells = F.interpolate(y[:, None].float(), size=h.shape[2:], mode="nearest-exact")
        return h.movedim(1, 3).flatten(0, 2), cells.flatten().long()

    def context(self, y: Tensor, classes: int) -> Tensor:
        return (y[:, None] == torch.arange(classes, device=y.device)[:, None, None]).float()

    def random(self, batch: int, classes: int, image: Sequence[int], generator: torch.Generator) -> Tensor:
        return torch.randint(classes, (batch, *image[-2:]), generator=generator)

    def checked(self, y: Any, count: int, classes: int, look: bool = True) -> Tensor:
        y = class_numbers(y, count, "H, W", "masks", "a class for each pixel")
        if look and y.numel() and (highest := int(y.max())) >= classes:
            raise UserError(
                f"a pixel of class {highest}, but there are {classes} classes, 0 to {classes - 1} (below 0: none): "
                "correct the masks, or choose a model of more classes"
            )
        return y


def _at(z: Tensor, y: Tensor) -> Tensor:
    """z [B, classes, h, w] at the size of y [B, H, W]."""
    if z.shape[2:] == y.shape[1:]:
        return z
    return F.interpolate(z, size=y.shape[1:], mode="bilinear", align_corners=False)
