"""What the code of Nokland & Eidnes 2019 (arXiv 1901.06656) has beside prediction and similarity of labels: targets and
a decoder without weight transport (its `--bio`), and the reconstruction of what a layer reads."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.auxiliary import Auxiliary, Linear
from locallearn.contract import BlockSpec
from locallearn.errors import UserError
from locallearn.objectives.base import plain_labels, wide

PROJECTED = 128


class Projected(nn.Module):
    """Random sums of a label's numbers, and a linear decoder that tells their signs from pooled features.

    A fixed matrix P [PROJECTED, classes] makes P t of a one-hot label t; the decoder minimises the binary cross-entropy
    to P t > 0. Its weight starts as that of the auxiliary network, its bias at 0; gradients pass it by a fixed random
    matrix instead of the weight (feedback alignment). Both random matrices are uniform in +-1 / sqrt(fan_in).
    """

    project: Tensor
    feedback: Tensor

    def __init__(self, spec: BlockSpec, auxiliary: Auxiliary) -> None:
        super().__init__()
        if not isinstance(auxiliary, Linear):
            raise UserError(
                f"objective.bio=true has a decoder of one linear layer, but auxiliary is {type(auxiliary).__name__}: "
                "choose auxiliary=pooled_linear or linear"
            )
        plain_labels(spec, "objective.bio=true", "objective.bio=false")
        *pool, self.linear = auxiliary.build(spec.emits, PROJECTED).children()
        assert isinstance(self.linear, nn.Linear)
        nn.init.zeros_(self.linear.bias)
        self.pool = nn.Sequential(*(m for m in pool if not isinstance(m, nn.Flatten)))
        self.register_buffer("project", _uniform(PROJECTED, spec.classes))
        self.register_buffer("feedback", _uniform(*self.linear.weight.shape))

    def targets(self, labels: Tensor) -> Tensor:
        """P t of labels [B, classes], one-hot or rows of several: [B, PROJECTED]"""
        return labels.to(self.project.dtype) @ self.project.t()

    def loss(self, h: Tensor, labels: Tensor, known: Tensor) -> Tensor:
        """Of features h [B, ...], over the samples whose labels are known [B]."""
        x = self.pool(h).flatten(1)
        answers = wide(self.linear(x.detach()) + (x - x.detach()) @ self.feedback.t())  # x - x is 0, but for gradients
        wanted = (self.targets(labels) > 0).to(answers.dtype)
        errors = F.binary_cross_entropy_with_logits(answers, wanted, reduction="none").mean(1)
        return (errors * known).sum() / known.sum().clamp(min=1)


class InputDecoder(nn.Module):
    """ReLU of a linear map from what a block emits to what it reads: a transposed 3x3 convolution between maps, of the
    stride by which the block makes them smaller, else a linear layer."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        reads, emits = spec.reads, spec.emits
        if len(reads) == len(emits) == 3:
            strides = [big // small for big, small in zip(reads[1:], emits[1:], strict=True)]
            if any(s < 1 or s * small != big for s, big, small in zip(strides, reads[1:], emits[1:], strict=True)):
                raise UserError(
                    f"objective.unsupervised=recon: block {spec.index} reads {list(reads)} and emits {list(emits)}, "
                    "whose sides do not divide them: cut the model elsewhere, or choose objective.unsupervised=sim"
                )
            more = (strides[0] - 1, strides[1] - 1)
            self.layers: nn.Module = nn.ConvTranspose2d(
                emits[0], reads[0], 3, (strides[0], strides[1]), padding=1, output_padding=more
            )
        else:
            linear = nn.Linear(math.prod(emits), math.prod(reads))
            self.layers = nn.Sequential(nn.Flatten(), linear, nn.Unflatten(1, reads))

    def loss(self, h: Tensor, x: Tensor) -> Tensor:
        """The mean squared error to x [B, *reads], of what is made of h [B, *emits]."""
        return F.mse_loss(wide(F.relu(self.layers(h))), wide(x.detach()))


def _uniform(rows: int, columns: int) -> Tensor:
    return (2 * torch.rand(rows, columns) - 1) / math.sqrt(columns)
