"""Several numbers for each sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from locallearn.accelerator import constant
from locallearn.errors import UserError
from locallearn.task import REGRESSION, Task, not_a_tensor


@dataclass(frozen=True)
class Regression(Task):
    """Numbers: z and y float32 [B, outputs]. L = mean of (z - y)^2 over all entries; e = 2 (z - y) / (B outputs).

    Targets are standardised: `mean` and `std` of each output, in original units, serve the report alone. R2 is
    1 - SSE / (sum of y^2 - (sum of y)^2 / n) for each output that varies, then the mean; RMSE is the root of the mean
    squared error over samples and outputs.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    kind: ClassVar[str] = REGRESSION
    wanted: ClassVar[str] = "numbers for each sample"
    score: ClassVar[str] = "r2"
    metrics: ClassVar[Mapping[str, bool]] = {"loss": False, "r2": True, "rmse": False, "mae": False}
    inner: ClassVar[frozenset[str]] = frozenset({"r2"})

    @classmethod
    def of(cls, y: Tensor) -> Regression:
        """The task whose units are those of the targets [N, outputs] that are trained on. Raises UserError for an
        output that is the same for all of them."""
        mean, std = y.double().mean(0), y.double().std(0, correction=0)
        if len(equal := (~(std > 0)).nonzero().flatten()):
            raise UserError(f"output {int(equal[0])} is the same for all training samples: leave it out")
        return cls(tuple(mean.tolist()), tuple(std.tolist()))

    def standardised(self, y: Tensor) -> Tensor:
        """Targets in original units -> float32, as the task has them."""
        mean, std = (constant(tuple(numbers), torch.float64, y.device) for numbers in (self.mean, self.std))
        return ((y.double() - mean) / std).float()

    def original(self, y: Tensor) -> Tensor:
        """What was standardised, or answered, in original units; float64."""
        mean, std = (constant(tuple(numbers), torch.float64, y.device) for numbers in (self.mean, self.std))
        return y.double() * std + mean

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(z, y.to(z.dtype))

    def count(self, y: Tensor) -> Tensor:
        return y.new_full((), len(y), dtype=torch.int64)

    def sums(self, z: Tensor, y: Tensor) -> Tensor:
        """Of each output: squared errors, absolute errors, y and y^2."""
        z, y = z.double(), y.double()
        return torch.cat([(z - y).square().sum(0), (z - y).abs().sum(0), y.sum(0), y.square().sum(0)])

    def numbers(self, total: float | None, sums: Sequence[float] | None, count: float) -> dict[str, float]:
        numbers = {} if total is None else {"loss": total / count}
        if sums is None:
            return numbers
        outputs = len(sums) // 4
        squared, absolute, first, second = (sums[i : i + outputs] for i in range(0, len(sums), outputs))
        varied = [b - a * a / count for a, b in zip(first, second, strict=True)]
        explained = [1 - e / v for e, v in zip(squared, varied, strict=True) if v > 1e-12 * count]
        if explained:  # of one sample, or of equal ones, nothing can be explained
            numbers["r2"] = math.fsum(explained) / len(explained)
        scale = self.std or (1.0,) * outputs
        variance = math.fsum(e * s * s for e, s in zip(squared, scale, strict=True)) / (outputs * count)
        mae = math.fsum(e * s for e, s in zip(absolute, scale, strict=True)) / (outputs * count)
        return numbers | {"rmse": math.sqrt(variance), "mae": mae}

    def error(self, z: Tensor, y: Tensor) -> Tensor:
        return 2 * (z - y) / z.numel()

    def context(self, y: Tensor, classes: int) -> Tensor:
        return y

    def random(self, batch: int, classes: int, image: Sequence[int], generator: torch.Generator) -> Tensor:
        return torch.randn(batch, classes, generator=generator)

    def checked(self, y: Any, count: int, classes: int, look: bool = True) -> Tensor:
        if not isinstance(y, Tensor):
            raise not_a_tensor("targets", y)
        if classes == 1 and y.shape == (count,):
            y = y[:, None]
        if y.shape != (count, classes) or y.is_complex():
            raise UserError(
                f"the targets are {list(y.shape)} {y.dtype}, but must be [{count}, {classes}]: a number for each of "
                "the outputs of each sample"
            )
        if not y.is_floating_point() or y.dtype == torch.float16:
            y = y.float()
        if look and not bool(torch.isfinite(y).all()):
            raise UserError("the targets hold NaN or infinity: leave these samples out, or give them a number")
        return y
