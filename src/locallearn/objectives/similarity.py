"""Similarity matching and its mix with prediction (Nokland & Eidnes 2019, "Training Neural Networks with Local Error
Signals", arXiv 1901.06656)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.auxiliary import Auxiliary
from locallearn.contract import BlockSpec, Packet, Size
from locallearn.objectives.base import LossAndLogits, Objective, ObjectiveModules, exact, wide
from locallearn.objectives.cross_entropy import CrossEntropy
from locallearn.task import CLASSIFICATION, MIXED, MULTILABEL

LABELS = frozenset({CLASSIFICATION, MIXED, MULTILABEL})


@dataclass(frozen=True)
class Similarity(Objective):
    """L_sim = mean over all B^2 pairs of (R(g(h)) - R(onehot(y)))^2, with R the adjusted cosine matrix; of several
    labels, the row of y stands for onehot(y).

    g is a 3x3 convolution C -> C for maps and a linear layer D -> D for vectors and for the mean of a sequence, without
    bias. Maps with more than 3 channels are reduced to each channel's standard deviation over space before R. Pairs
    with an unlabelled sample do not count. No classifier: the block cannot predict.
    """

    reads_auxiliary: ClassVar[bool] = False
    tasks: ClassVar[frozenset[str] | None] = LABELS
    needs: ClassVar[str] = "compares samples by their labels"

    def modules(self, spec: BlockSpec, auxiliary: Auxiliary) -> dict[str, nn.Module]:
        return {"similarity": SimilarityProjection(spec.emits)}

    def loss(self, spec: BlockSpec, modules: ObjectiveModules, h: Tensor, packet: Packet) -> LossAndLogits:
        labels = spec.task.context(packet.y, spec.classes)  # one-hot, or the rows of several labels
        ours = similarity_matrix(modules["similarity"](h))
        target = similarity_matrix(labels.to(torch.promote_types(h.dtype, torch.float32)))
        known = packet.y >= 0 if packet.y.dim() == 1 else (packet.y >= 0).all(dim=1)
        counts = known[:, None] & known  # [B, B]
        # A pair without labels is its own target. With every label there the factor is exactly 1 (number / tensor would
        # not do: PyTorch computes number * (1 / tensor)).
        loss = F.mse_loss(ours, torch.where(counts, target, ours.detach()))
        counted = counts.sum().clamp(min=1).to(loss.dtype)
        return loss * (torch.full_like(counted, counts.numel()) / counted), None


@dataclass(frozen=True)
class PredSim(Objective):
    """L = (1 - beta) L_pred + beta L_sim; beta = 0.99 in the paper, whose classifier is `auxiliary=pooled_linear`.

    A head that only reads out learns from (1 - beta) times its loss, as in the authors' code."""

    beta: Annotated[float, Interval(ge=0, le=1)] = 0.99
    tasks: ClassVar[frozenset[str] | None] = LABELS
    needs: ClassVar[str] = "compares samples by their labels"

    @property
    def head_weight(self) -> float:
        return 1 - self.beta

    def modules(self, spec: BlockSpec, auxiliary: Auxiliary) -> dict[str, nn.Module]:
        return CrossEntropy().modules(spec, auxiliary) | Similarity().modules(spec, auxiliary)

    def loss(self, spec: BlockSpec, modules: ObjectiveModules, h: Tensor, packet: Packet) -> LossAndLogits:
        prediction, logits = CrossEntropy().loss(spec, modules, h, packet)
        similarity, _ = Similarity().loss(spec, modules, h, packet)
        return (1 - self.beta) * prediction + self.beta * similarity, logits

    def predict(self, modules: ObjectiveModules, h: Tensor) -> Tensor | None:
        return CrossEntropy().predict(modules, h)


class SimilarityProjection(nn.Module):
    """g: 3x3 convolution C -> C for maps [C, H, W], linear D -> D for everything else, without bias; then maps to
    [B, C]. A sequence [T, D] is its mean over T."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        conv = {3: nn.Conv2d, 4: nn.Conv3d}.get(len(size))
        self.layer: nn.Module = (
            conv(size[0], size[0], 3, padding=1, bias=False) if conv else nn.Linear(size[-1], size[-1], bias=False)
        )

    def forward(self, h: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            return self.layer(h.mean(1) if h.dim() == 3 else h.flatten(1))
        maps = wide(self.layer(h))  # [B, C, H, W]
        if maps.shape[1] > 3 and maps[0, 0].numel() > 1:
            # The small constant keeps the gradient of a constant map finite: d sqrt(v) / dv is infinite at 0.
            return (maps.flatten(2).var(dim=2) + 1e-8).sqrt()  # [B, C]
        return maps.flatten(1)


def similarity_matrix(x: Tensor) -> Tensor:
    """R [B, B]: cosine between samples x [B, D] after each sample's mean over its features is taken off."""
    x = wide(x)
    x = x - x.mean(dim=1, keepdim=True)
    x = x / (x.norm(dim=1, keepdim=True) + 1e-8)
    with exact(x):
        return (x @ x.T).clamp(-1, 1)
