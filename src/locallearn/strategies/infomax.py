"""Greedy InfoMax: local learning without labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge

from locallearn.auxiliary import Auxiliary, Linear
from locallearn.objectives import InfoNCE, Objective
from locallearn.strategies.greedy import DGL


@dataclass(frozen=True)
class Infomax(DGL):
    """Greedy InfoMax (Lowe, O'Connor & Veeling 2019, arXiv 1905.11786).

    DGL with one fixed objective: every block, the last one too, minimises InfoNCE between the positions of its own map,
    without labels; the head is a linear read-out of the last block's detached features. Detached at every border; sends
    nothing down. Every block must emit maps of at least two rows. `InfoNCE` says where this differs from the paper.

    steps          distances, in rows of a map, that are predicted
    negatives      vectors from which a prediction must tell the right one
    same_position  false: negatives from any position, as in the paper; see `InfoNCE`
    """

    objective: Objective = field(init=False)
    auxiliary: Auxiliary = field(init=False)
    last: Literal["local"] = field(init=False, default="local")
    steps: Annotated[int, Ge(1)] = 5
    negatives: Annotated[int, Ge(1)] = 16
    same_position: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "objective", InfoNCE(self.steps, self.negatives, self.same_position))
        object.__setattr__(self, "auxiliary", Linear())  # InfoNCE reads none
