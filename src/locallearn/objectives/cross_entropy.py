"""The task's own loss of an auxiliary head: for classes cross-entropy, called "pred" in the local-loss literature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from locallearn.auxiliary import Auxiliary
from locallearn.contract import BlockSpec, Packet
from locallearn.objectives.base import LossAndLogits, Objective, ObjectiveModules, head


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """L_k = l(a_k(h_k), y), mean over the batch (Belilovsky et al. 2019, 2020); l is the loss of the task:
    cross-entropy of classes, next tokens and pixels, its binary form of labels, the squared error of numbers."""

    tasks: ClassVar[frozenset[str] | None] = None

    def modules(self, spec: BlockSpec, auxiliary: Auxiliary) -> dict[str, nn.Module]:
        return {"classifier": head(spec, auxiliary)}

    def loss(self, spec: BlockSpec, modules: ObjectiveModules, h: Tensor, packet: Packet) -> LossAndLogits:
        logits = modules["classifier"](h)
        return spec.task.loss(logits, packet.y), logits

    def predict(self, modules: ObjectiveModules, h: Tensor) -> Tensor | None:
        return modules["classifier"](h)
