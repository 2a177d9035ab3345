"""The HSIC bottleneck (Ma, Lewis & Kleijn 2020, arXiv 1908.01580)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, MinLen
from torch import Tensor, nn

from locallearn.analysis.hsic import EPSILON, gaussian_kernel, normalised
from locallearn.auxiliary import Auxiliary
from locallearn.contract import BlockSpec, Packet
from locallearn.objectives.base import (
    LossAndLogits,
    Objective,
    ObjectiveModules,
    exact,
    numbers_of_input,
    plain_labels,
    wide,
)
from locallearn.objectives.reconstruction import with_image
from locallearn.objectives.similarity import LABELS, labelled


@dataclass(frozen=True)
class HSIC(Objective):
    """L_k = nHSIC(h_k, x) - weight nHSIC(h_k, y): forget the input, keep the label, measured by the dependence of
    kernels (`analysis.hsic`), without any classifier: a block cannot predict, and with strategy.last=local the head
    reads out.

    x is the network's input, which `side` carries, y the one-hot label (the row of several labels). Samples without a
    label do not count. Three systems of B equations for each block: a batch of 256 takes about 10 ms.

    weight   of the label's term, lambda in the paper
    scales   s of the Gaussian kernels, in units of the root of the number of coordinates; several are added up
    epsilon  of the normalisation
    """

    weight: Annotated[float, Ge(0)] = 50.0
    scales: Annotated[list[Annotated[float, Gt(0)]], MinLen(1)] = field(default_factory=lambda: [5.0])
    epsilon: Annotated[float, Gt(0)] = EPSILON
    reads_auxiliary: ClassVar[bool] = False
    builds: ClassVar[bool] = False
    tasks: ClassVar[frozenset[str] | None] = LABELS
    needs: ClassVar[str] = "compares samples by their labels"

    def begin(self, packet: Packet) -> Packet:
        return with_image(packet)

    def modules(self, spec: BlockSpec, auxiliary: Auxiliary) -> dict[str, nn.Module]:
        numbers_of_input(spec, "objective=hsic")
        plain_labels(spec, "objective=hsic", "objective=cross_entropy")
        return {}

    def loss(self, spec: BlockSpec, modules: ObjectiveModules, h: Tensor, packet: Packet) -> LossAndLogits:
        known = labelled(packet.y)
        labels = spec.task.context(packet.y, spec.classes)
        with exact(h):
            of_h, of_x, of_y = (self._normalised(t, known) for t in (h, packet.side[0].detach(), labels.to(h.dtype)))
            return (of_h * of_x).sum() - self.weight * (of_h * of_y).sum(), None

    def _normalised(self, t: Tensor, known: Tensor) -> Tensor:
        return normalised(gaussian_kernel(wide(t), self.scales), known, self.epsilon)
