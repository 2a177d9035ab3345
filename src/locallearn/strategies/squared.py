"""What rules share that move states towards one target for each sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import nn

from locallearn.contract import BlockSpec, Route, Strategy
from locallearn.objectives.base import plain_labels
from locallearn.task import CLASSIFICATION


class TowardsTarget(Strategy):
    """Blocks exchange messages in rounds until what they emit is nearer to the target.

    output  task: the target is that of the task's loss; squared: half the squared error to the one-hot label
    """

    output: str
    route: ClassVar[Route] = Route.ROUNDS
    tasks: ClassVar[frozenset[str]] = frozenset({CLASSIFICATION})
    needs: ClassVar[str] = "moves states towards one target for each sample"

    def modules(self, spec: BlockSpec) -> Mapping[str, nn.Module]:
        if self.output == "squared":
            plain_labels(spec, "strategy.output=squared", "strategy.output=task")
        return {}
