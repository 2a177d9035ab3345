"""InfoNCE between the positions of a block's own map (Lowe, O'Connor & Veeling 2019, "Putting An End to End-to-End:
Gradient-Isolated Learning of Representations", arXiv 1905.11786)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.auxiliary import Auxiliary
from locallearn.contract import BlockSpec, Packet, Size
from locallearn.errors import UserError
from locallearn.objectives.base import LossAndLogits, Objective, ObjectiveModules, exact, wide

GRID = 7  # positions to a side, as in Greedy InfoMax: 64 x 64 crops in half-overlapping patches of 16


@dataclass(frozen=True)
class InfoNCE(Objective):
    """Predict the rows of a map from rows further up: L = mean over k and positions of
    -log(exp(s_0) / (exp(s_0) + sum_{j=1..N} exp(s_j))), s = z^T W_k c.

    c is the block's output at row i, pooled to at most 7 x 7 positions; z is the one k rows further down for s_0, and
    for the others that of N images drawn uniformly from the batch (which may hit the positive, as in the paper's code).
    W_k is a 1x1 convolution without bias. The next row is skipped where there are more than two. No label and no
    auxiliary network is read.

    Greedy InfoMax encodes 49 overlapping patches one by one, so that a vector cannot know where it is. The plain model
    that ships reads whole images: here positions are those of its map, whose receptive fields overlap, more and more
    further up, and whose padding tells every vector its row. Against negatives from anywhere, the paper's, that row
    alone wins and the features forget the image; so the negatives come from the positive's own position.

    steps          distances k to predict, as many of them as the rows allow
    negatives      N
    same_position  false: negatives from any position, as in the paper
    """

    steps: Annotated[int, Ge(1)] = 5
    negatives: Annotated[int, Ge(1)] = 16
    same_position: bool = True
    labels: ClassVar[bool] = False
    reads_auxiliary: ClassVar[bool] = False
    tasks: ClassVar[frozenset[str] | None] = None

    def modules(self, spec: BlockSpec, auxiliary: Auxiliary) -> dict[str, nn.Module]:
        if len(spec.emits) != 3 or spec.emits[1] < 2:
            other = "simclr" if len(spec.image) == 3 else "reconstruction"
            raise UserError(
                f"InfoNCE predicts rows of a map from other rows, but block {spec.index} emits {list(spec.emits)}: cut "
                f"the model elsewhere, choose one that ends in maps, or learn with strategy=dgl objective={other}"
            )
        return {"predictions": Predictions(spec.emits, self.steps, self.negatives, self.same_position)}

    def loss(self, spec: BlockSpec, modules: ObjectiveModules, h: Tensor, packet: Packet) -> LossAndLogits:
        return modules["predictions"](h), None


class Predictions(nn.Module):
    """The matrices W_k and the loss [] of a map h [B, C, H, W], averaged to at most `most` positions a side, under
    them; what predicts is h itself or a context of its size."""

    def __init__(self, size: Size, steps: int, negatives: int, same_position: bool, most: int = GRID) -> None:
        super().__init__()
        channels, rows, columns = size[0], min(size[1], most), min(size[2], most)
        first = 2 if rows > 2 else 1
        self.grid = (rows, columns)
        self.distances = range(first, min(first + steps, rows))
        self.negatives = negatives
        self.same_position = same_position
        self.layers = nn.ModuleList(nn.Conv2d(channels, channels, 1, bias=False) for _ in self.distances)

    def forward(self, h: Tensor, context: Tensor | None = None) -> Tensor:
        z = F.adaptive_avg_pool2d(h, self.grid)  # [B, C, rows, columns]
        predicting = z if context is None else F.adaptive_avg_pool2d(context, self.grid)
        candidates = _vectors(z)
        losses = []
        for distance, layer in zip(self.distances, self.layers, strict=True):
            predicted = _vectors(layer(predicting[:, :, :-distance]))  # [M, C]
            drawn = self._draw(len(h), distance, h.device)
            # Not candidates[drawn], whose backward takes ten to a hundred times as long on a CPU.
            losses.append(info_nce(predicted, _vectors(z[:, :, distance:]), F.embedding(drawn, candidates)))
        return torch.stack(losses).mean()

    def _draw(self, images: int, distance: int, device: torch.device) -> Tensor:
        """Which vectors of the batch are the negatives, int64 [M, N], for contexts in the order of `_vectors`."""
        rows, columns = self.grid
        size = images * (rows - distance) * columns, self.negatives
        if not self.same_position:
            return torch.randint(images * rows * columns, size, device=device)
        position = torch.arange(distance * columns, rows * columns, device=device).repeat(images)
        return torch.randint(images, size, device=device) * (rows * columns) + position[:, None]


def info_nce(context: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
    """Mean cross-entropy [] of telling positive [M, C] from negatives [M, N, C] by the product with context [M, C]."""
    with exact(context):
        others = torch.einsum("mc,mnc->mn", context, negatives)
    scores = torch.cat([(context * positive).sum(dim=1, keepdim=True), others], dim=1)  # [M, 1 + N]
    return -scores.log_softmax(dim=1)[:, 0].mean()


def _vectors(z: Tensor) -> Tensor:
    """Maps [B, C, H, W] as one vector per position, [B * H * W, C], in float32 or more."""
    return wide(z).permute(0, 2, 3, 1).flatten(0, 2)
