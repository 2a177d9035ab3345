"""Auxiliary networks that are built like the model: of new units like those above a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Interval
from torch import nn

from locallearn.auxiliary.networks import Auxiliary, Size, pooled
from locallearn.errors import UserError
from locallearn.messages import Unit
from locallearn.models.fresh import emitted


@dataclass(frozen=True)
class AugLocal(Auxiliary):
    """AugLocal's heads (Ma et al. 2024, arXiv 2402.17318): new units like some of those above the block, evenly spaced,
    then the average over positions, BN if there is at most one unit, and Linear.

    Of the block that ends with unit l of n they are round(l + (n - 1 - l) / d * i), i = 1 ... d, halves to even, or all
    where d is not less than there are. Each reads the width of the one before it; a residual block or convolution
    halves the sides where they are at least twice those of the unit it is like. Lower blocks have deeper heads: d =
    max(1, round((1 - q) layers + q)), q = decay l / (n - 2).

    layers  units of the lowest head
    decay   how much shallower the highest one is: 0 not at all, 1 down to a single unit
    """

    layers: Annotated[int, Ge(1)] = 2
    decay: Annotated[float, Interval(ge=0, le=1)] = 0.5

    def build(self, size: Size, classes: int) -> nn.Module:
        raise UserError(
            "auxiliary=auglocal is made of units like those above a block, which this loss does not read: choose "
            "objective=cross_entropy, or another auxiliary network"
        )

    def build_below(self, above: Sequence[Unit], size: Size, classes: int) -> nn.Module:
        body, size = like(self.chosen(above), size)
        pool, features = pooled(size, (1, 1))
        norm = [nn.BatchNorm1d(features)] if len(body) < 2 else []
        return nn.Sequential(*body, *pool, *norm, nn.Linear(features, classes))

    def chosen(self, above: Sequence[Unit]) -> list[Unit]:
        """Which of the units above a block its head is like."""
        if not above:
            return []
        lowest, count = above[0].index - 1, above[-1].index + 1
        share = self.decay * lowest / (count - 2) if count > 2 else 0.0
        depth = max(1, round(self.layers * (1 - share) + share))
        if depth >= len(above):
            return [*above]
        return [above[round(lowest + len(above) / depth * i) - lowest - 1] for i in range(1, depth + 1)]


def like(units: Sequence[Unit], size: Size) -> tuple[list[nn.Module], Size]:
    """New units like these, the first for [B, *size] and each for what the one before it emits, and what the last one
    emits. Raises UserError for a unit that cannot be built so."""
    made: list[nn.Module] = []
    for unit in units:
        made.append(unit.build(size))
        size = unit.emits if size == unit.reads else emitted(made[-1], size)
    return made, size
