"""Greedy InfoMax: local learning without labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from annotated_types import Ge

from locallearn.auxiliary import Linear
from locallearn.objectives import InfoNCE, Objective
from locallearn.strategies.greedy import LocalLosses


@dataclass(frozen=True)
class Infomax(LocalLosses):
    """Greedy InfoMax (Lowe, O'Connor & Veeling 2019, arXiv 1905.11786).

    Every block, the last one too, minimises InfoNCE between the positions of its own map, without labels; the head is a
    read-out of the last block's detached features. Detached at every border; sends nothing down. Raises UserError for a
    block that does not emit maps of at least two rows. `InfoNCE` has the equation, and says where this differs from the
    paper.

    steps          distances, in rows of a map, that are predicted
    negatives      vectors from which a prediction must tell the right one
    same_position  false: negatives from any position, as in the paper; see `InfoNCE`
    """

    steps: Annotated[int, Ge(1)] = 5
    negatives: Annotated[int, Ge(1)] = 16
    same_position: bool = True
    auxiliary = Linear()  # InfoNCE reads none

    @cached_property
    def objective(self) -> Objective:  # type: ignore[override]
        return InfoNCE(self.steps, self.negatives, self.same_position)
