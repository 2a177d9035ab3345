"""InfoPro: keep what the input says while learning the task (Wang et al. 2021, "Revisiting Locally Supervised Learning:
an Alternative to End-to-end Training", arXiv 2101.10832)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from locallearn.auxiliary import Auxiliary
from locallearn.contract import BlockSpec, Packet
from locallearn.errors import UserError
from locallearn.objectives.base import LossAndLogits, Objective, ObjectiveModules
from locallearn.objectives.contrastive import SupCon
from locallearn.objectives.cross_entropy import CrossEntropy
from locallearn.objectives.reconstruction import Reconstructor, reconstruct, with_image
from locallearn.options import OneOf

LABEL_LOSSES: dict[str, Objective] = {"cross_entropy": CrossEntropy(), "supcon": SupCon()}


@dataclass(frozen=True)
class InfoPro(Objective):
    """L_k = r_k L_rec + t_k L_task for k < K; r and t go linearly from the first local block to the last one.

    L_rec is `Reconstructor`'s; L_task cross-entropy ("softmax" in the paper) or supervised contrast (features 128,
    temperature 0.07). Published (r first, t first, r last, t last) for ResNet-110 with contrast: K=2 5, 0.5 (one local
    block: the last pair is not used); K=4 1, 0, 0, 1; K=8 5, 0, 0, 1; K=16 5, 0, 0.5, 1. The paper's network for L_task
    is `auxiliary=conv_fc`. A block does not build what has weight 0, so one without L_task cannot predict; without r
    the method is DGL. `side` carries the image.

    task                  cross_entropy or supcon
    reconstruction_first  r at the first local block
    reconstruction_last   r at the last local block
    task_first            t at the first local block
    task_last             t at the last local block
    quarters              reconstruct each quarter of the image from that of the maps, with a decoder of its own (PFF of
                          Su et al. 2024, arXiv 2407.05638, who add up the four means where here is the mean of all)
    """

    task: Annotated[str, OneOf(LABEL_LOSSES)] = "cross_entropy"
    reconstruction_first: Annotated[float, Ge(0)] = 5.0
    reconstruction_last: Annotated[float, Ge(0)] = 0.0
    task_first: Annotated[float, Ge(0)] = 0.5
    task_last: Annotated[float, Ge(0)] = 1.0
    quarters: bool = False

    @property
    def tasks(self) -> frozenset[str] | None:  # type: ignore[override]  # of the loss that reads labels
        return LABEL_LOSSES[self.task].tasks

    def __post_init__(self) -> None:
        super().__post_init__()
        for end in ("first", "last"):
            if getattr(self, f"reconstruction_{end}") == 0 == getattr(self, f"task_{end}"):
                raise UserError(
                    f"objective.reconstruction_{end} and objective.task_{end} are both 0, so the {end} local block "
                    "would learn nothing: give one of them a weight"
                )

    def unread(self, specs: Sequence[BlockSpec]) -> Mapping[str, str]:
        unread = {} if self.task_first or self.task_last else {"task": "objective.task_last above 0"}
        ends = ("reconstruction_last", "task_last")
        if not self.reconstructs or not any(len(s.emits) == 3 and min(s.emits[1:]) > 1 for s in specs[:-1]):
            unread["quarters"] = "objective.reconstruction_first above 0, and maps of at least 2 x 2 positions"
        return unread if len(specs) > 2 else unread | dict.fromkeys(ends, "blocks=3 or more")

    def weights(self, index: int, depth: int) -> tuple[float, float]:
        """(r, t) of a block; the local ones are 0 .. depth - 2."""
        share = min(index / (depth - 2), 1.0) if depth > 2 else 0.0
        return (
            (1 - share) * self.reconstruction_first + share * self.reconstruction_last,
            (1 - share) * self.task_first + share * self.task_last,
        )

    @property
    def reconstructs(self) -> bool:
        return bool(self.reconstruction_first or self.reconstruction_last)

    def begin(self, packet: Packet) -> Packet:
        return with_image(packet) if self.reconstructs else packet

    def modules(self, spec: BlockSpec, auxiliary: Auxiliary) -> dict[str, nn.Module]:
        reconstruction, task = self.weights(spec.index, spec.depth)
        modules = (
            LABEL_LOSSES[self.task].modules(spec, auxiliary) if task else {}
        )  # first, so that it starts as DGL's does
        if reconstruction:
            modules["decoder"] = Reconstructor(spec, self.quarters)
        return modules

    def loss(self, spec: BlockSpec, modules: ObjectiveModules, h: Tensor, packet: Packet) -> LossAndLogits:
        r, t = self.weights(spec.index, spec.depth)
        loss, logits = torch.zeros((), device=h.device), None
        if t:
            task, logits = LABEL_LOSSES[self.task].loss(spec, modules, h, packet)
            loss = loss + t * task
        if r:
            loss = loss + r * reconstruct(modules, h, packet.side[0])
        return loss, logits

    def predict(self, modules: ObjectiveModules, h: Tensor) -> Tensor | None:
        return LABEL_LOSSES[self.task].predict(modules, h) if "classifier" in modules else None
