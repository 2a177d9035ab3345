"""Similarity matching and its mix with prediction (Nokland & Eidnes 2019, "Training Neural Networks with Local Error
Signals", arXiv 1901.06656)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.auxiliary import Auxiliary
from locallearn.contract import BlockSpec, Packet, Size
from locallearn.objectives.base import LossAndLogits, Objective, ObjectiveModules, exact, numbers_of_input, wide
from locallearn.objectives.cross_entropy import CrossEntropy
from locallearn.objectives.local_signals import InputDecoder, Projected
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
        return similarity_loss(similarity_matrix(modules["similarity"](h)), labels, packet.y), None


def similarity_loss(ours: Tensor, labels: Tensor, y: Tensor) -> Tensor:
    """The mean squared difference between R of features, [B, B], and R of labels [B, ...], over the pairs of samples
    that have one in y [B, ...]."""
    target = similarity_matrix(labels.to(ours.dtype))
    known = labelled(y)
    counts = known[:, None] & known  # [B, B]
    # A pair without labels is its own target. With every label there the factor is exactly 1 (number / tensor would
    # not do: PyTorch computes number * (1 / tensor)).
    loss = F.mse_loss(ours, torch.where(counts, target, ours.detach()))
    counted = counts.sum().clamp(min=1).to(loss.dtype)
    return loss * (torch.full_like(counted, counts.numel()) / counted)


def labelled(y: Tensor) -> Tensor:
    """Which samples have labels, [B]."""
    return y >= 0 if y.dim() == 1 else (y >= 0).all(dim=1)


@dataclass(frozen=True)
class PredSim(Objective):
    """L = (1 - alpha) ((1 - beta) L_pred + beta L_sim) + alpha L_unsup; beta = 0.99 in the paper, whose classifier is
    `auxiliary=pooled_linear`.

    A head that only reads out learns from (1 - beta) times its loss, as in the authors' code.

    bio           without weight transport, as their `--bio`: P t, 128 fixed random sums of the label's numbers, is the
                  target. L_pred is the binary cross-entropy to P t > 0 of a decoder through which feedback alignment
                  passes, L_sim compares R of the pooled features, without g, with R(P t). Inner blocks cannot predict
    unsupervised  L_unsup. sim: the mean over pairs of (R(g(h)) - R(x))^2, with x what the block reads; recon: the
                  squared error to x of what a decoder makes of h, in all blocks but the first
    alpha         its weight, for samples without a label as well
    """

    beta: Annotated[float, Interval(ge=0, le=1)] = 0.99
    bio: bool = False
    unsupervised: Literal["none", "sim", "recon"] = "none"
    alpha: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    tasks: ClassVar[frozenset[str] | None] = LABELS
    needs: ClassVar[str] = "compares samples by their labels"

    @property
    def head_weight(self) -> float:
        return 1 - self.beta

    @property
    def unlabelled(self) -> bool:
        return self.unsupervised != "none" and self.alpha > 0

    def unread(self, specs: Sequence[BlockSpec]) -> Mapping[str, str]:
        unread = {"alpha": "objective.unsupervised=sim or recon"} if self.unsupervised == "none" else {}
        return unread if self.alpha else {"unsupervised": "objective.alpha above 0", **unread}

    def modules(self, spec: BlockSpec, auxiliary: Auxiliary) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {}
        if self.bio:
            modules |= {"projected": Projected(spec, auxiliary)}
        else:
            modules |= CrossEntropy().modules(spec, auxiliary) | Similarity().modules(spec, auxiliary)
        if self.unlabelled and spec.index == 0:
            numbers_of_input(spec, "objective.unsupervised")
        if self.unlabelled and self.unsupervised == "recon" and spec.index:
            modules |= {"input_decoder": InputDecoder(spec)}
        return modules

    def loss(self, spec: BlockSpec, modules: ObjectiveModules, h: Tensor, packet: Packet) -> LossAndLogits:
        labels, logits = spec.task.context(packet.y, spec.classes), None
        if self.bio:
            projected = modules["projected"]
            assert isinstance(projected, Projected)
            prediction = projected.loss(h, labels, labelled(packet.y))
            matrix, labels = similarity_matrix(deviations(projected.pool(h))), projected.targets(labels)
        else:
            prediction, logits = CrossEntropy().loss(spec, modules, h, packet)
            matrix = similarity_matrix(modules["similarity"](h))
        loss = (1 - self.beta) * prediction + self.beta * similarity_loss(matrix, labels, packet.y)
        if not self.unlabelled:
            return loss, logits
        return (1 - self.alpha) * loss + self.alpha * self.unsupervised_loss(modules, h, matrix, packet.h), logits

    def unsupervised_loss(self, modules: ObjectiveModules, h: Tensor, matrix: Tensor, x: Tensor) -> Tensor:
        """L_unsup, for h [B, ...] with the similarity `matrix` [B, B] and x [B, ...], which the block has read."""
        if self.unsupervised == "sim":
            return F.mse_loss(matrix, similarity_matrix(deviations(x.detach())))
        if "input_decoder" not in modules:
            return matrix.new_zeros(())
        decoder = modules["input_decoder"]
        assert isinstance(decoder, InputDecoder)
        return decoder.loss(h, x)

    def predict(self, modules: ObjectiveModules, h: Tensor) -> Tensor | None:
        return None if self.bio else CrossEntropy().predict(modules, h)


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
        return deviations(self.layer(h))


def deviations(x: Tensor) -> Tensor:
    """Of maps [B, C, ...] with more than 3 channels the standard deviation of each over space, [B, C]; anything else
    flattened."""
    x = wide(x)
    if x.dim() > 3 and x.shape[1] > 3 and x[0, 0].numel() > 1:
        # The small constant keeps the gradient of a constant map finite: d sqrt(v) / dv is infinite at 0.
        return (x.flatten(2).var(dim=2) + 1e-8).sqrt()  # [B, C]
    return x.flatten(1)


def similarity_matrix(x: Tensor) -> Tensor:
    """R [B, B]: cosine between samples x [B, D] after each sample's mean over its features is taken off."""
    x = wide(x)
    x = x - x.mean(dim=1, keepdim=True)
    x = x / (x.norm(dim=1, keepdim=True) + 1e-8)
    with exact(x):
        return (x @ x.T).clamp(-1, 1)
