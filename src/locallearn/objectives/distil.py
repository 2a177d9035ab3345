"""Distillation: a teacher's answers in the place of labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt, Interval
from torch import Tensor, nn

from locallearn.auxiliary import Auxiliary
from locallearn.contract import CLASSES, Block, BlockSpec, Packet, Task
from locallearn.objectives.base import LossAndLogits, Objective, ObjectiveModules, wide


@dataclass(frozen=True)
class Distil(Objective):
    """Self-training and distillation (the third stage of SimCLRv2: Chen et al. 2020, arXiv 2006.10029, section 2).

    L_k = alpha mean_x [-sum_c P_T(c|x) log P_k(c|x)] + (1 - alpha) mean_(x,y) [-log softmax(a_k(h_k))_y]

    with P(c|x) = softmax(logits / temperature)_c, P_T of the teacher, P_k of block k's auxiliary classifier a_k, and in
    the last block of the model's own head. The first mean is over all images, the second over those with a label (the
    paper writes sums). The teacher sees what the student sees, augmentation included: once for each batch, where block
    0 lives; its probabilities [B, classes] travel up in `side`. It is in eval mode and never ships.

    temperature  of both; above 1 the teacher's smaller probabilities weigh more
    alpha        the teacher's share; the rest is that of the labels
    """

    temperature: Annotated[float, Gt(0)] = 1.0
    alpha: Annotated[float, Interval(ge=0, le=1)] = 1.0
    teacher: nn.Module | None = field(default=None, kw_only=True, repr=False, compare=False)
    taught: ClassVar[bool] = True

    def begin(self, packet: Packet) -> Packet:
        assert self.teacher is not None, "whoever trains has filled it"
        with torch.no_grad():
            logits = self.teacher(packet.h)
        return packet.at(packet.h, (wide(logits) / self.temperature).softmax(dim=1))

    def modules(self, spec: BlockSpec, auxiliary: Auxiliary) -> dict[str, nn.Module]:
        return {"classifier": auxiliary.build_below(spec.above, spec.emits, spec.classes)}

    def loss(self, spec: BlockSpec, modules: ObjectiveModules, h: Tensor, packet: Packet) -> LossAndLogits:
        logits = modules["classifier"](h)
        return self.blend(logits, packet, spec.task), logits

    def head_loss(self, block: Block, h: Tensor, packet: Packet) -> Tensor:
        assert block.head is not None, "only the last block has the head"
        logits = block.head(h)
        loss = self.blend(logits, packet, block.spec.task)
        block.report(loss, logits, packet.y)
        block.note("distil_loss", loss)  # the mean over all batches, those without any label too
        return loss

    def blend(self, logits: Tensor, packet: Packet, task: Task = CLASSES) -> Tensor:
        """The loss [] of logits [B, classes]."""
        answers = packet.side[0].detach()
        loss = -(answers * (wide(logits) / self.temperature).log_softmax(dim=1)).sum(dim=1).mean()
        return loss if self.alpha == 1 else self.alpha * loss + (1 - self.alpha) * task.loss(logits, packet.y)

    def predict(self, modules: ObjectiveModules, h: Tensor) -> Tensor | None:
        return modules["classifier"](h)
