"""Cross-entropy of an auxiliary classifier, called "pred" in the local-loss literature."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from locallearn.auxiliary import Auxiliary
from locallearn.contract import BlockSpec, Packet, cross_entropy
from locallearn.objectives.base import LossAndLogits, Objective, ObjectiveModules


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """L_k = cross_entropy(a_k(h_k), y), mean over the batch (Belilovsky et al. 2019, 2020)."""

    def modules(self, spec: BlockSpec, auxiliary: Auxiliary) -> dict[str, nn.Module]:
        return {"classifier": auxiliary.build(spec.emits, spec.classes)}

    def loss(self, spec: BlockSpec, modules: ObjectiveModules, h: Tensor, packet: Packet) -> LossAndLogits:
        logits = modules["classifier"](h)
        return cross_entropy(logits, packet.y), logits

    def predict(self, modules: ObjectiveModules, h: Tensor) -> Tensor | None:
        return modules["classifier"](h)
