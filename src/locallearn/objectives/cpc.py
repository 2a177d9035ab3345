"""Contrastive predictive coding of image patches (van den Oord, Li & Vinyals 2018, "Representation Learning with
Contrastive Predictive Coding", arXiv 1807.03748, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.auxiliary import Auxiliary
from locallearn.contract import Block, BlockSpec, Packet, Size, task_loss
from locallearn.errors import UserError
from locallearn.objectives.base import LossAndLogits, Objective, ObjectiveModules
from locallearn.objectives.infonce import Predictions
from locallearn.task import CLASSIFICATION, MIXED, MULTILABEL, REGRESSION


@dataclass(frozen=True)
class CPC(Objective):
    """Predict rows of patches from the rows above: InfoNCE's loss (see there) with s = z^T W_k c.

    `begin` cuts every image [C, H, W] into half-overlapping patches, which the network reads one by one, as rows of the
    batch [B * R * S, C, patch, patch]: no vector can know its neighbours or where it is. z [R, S] is the mean over each
    patch's map. The context c at row i is what `layers` gated convolutions make of the rows up to i, of none below; W_k
    predicts from it the row i + 1 + k, since row i + 1 shares pixels with row i. Negatives are drawn from all patches
    of the batch. The head reads the patches' vectors as one map, resized to the one that it gets of a whole
    image; in evaluations the plain model reads whole images. No label and no auxiliary network is read.

    With blocks=1 it is CPC; with more every block has a loss and a context of its own, as Greedy InfoMax but for the
    context. About three times the compute of whole images, more with smaller patches.

    steps      distances k to predict, as many of them as the rows allow
    negatives  of each prediction
    layers     of the context; 0: c = z
    patch      side of a patch in pixels, an even number; None: about a quarter of the image's side
    """

    steps: Annotated[int, Ge(1)] = 5
    negatives: Annotated[int, Ge(1)] = 16
    layers: Annotated[int, Ge(0)] = 4
    patch: Annotated[int, Ge(2)] | None = None
    labels: ClassVar[bool] = False
    reads_auxiliary: ClassVar[bool] = False
    tasks: ClassVar[frozenset[str] | None] = frozenset({CLASSIFICATION, MIXED, MULTILABEL, REGRESSION})
    needs: ClassVar[str] = "cuts images into patches, which have no answers of their own"

    def side(self, image: Size) -> int:
        """Of the patches of an image [C, H, W], in pixels. Raises UserError where there are not two rows of them."""
        if len(image) != 3:
            raise UserError(
                f"objective=cpc cuts images into patches, but the input is {list(image)}: choose "
                "objective=reconstruction"
            )
        side = self.patch or max(2, 2 * round(image[1] / 8))
        most = min(2 * image[1] // 3, image[2]) // 2 * 2
        if side % 2 or side > most:
            raise UserError(
                f"objective.patch={side}: must be an even number of at most {most} for images of {image[1]} x "
                f"{image[2]} pixels"
            )
        return side

    def grid(self, image: Size) -> tuple[int, int]:
        """Rows and columns of the patches of an image [C, H, W]; what is left at its bottom and right is not read."""
        side = self.side(image)
        return (image[1] - side) // (side // 2) + 1, (image[2] - side) // (side // 2) + 1

    def begin(self, packet: Packet) -> Packet:
        images = packet.h
        side = self.side(images.shape[1:])
        cut = images.unfold(2, side, side // 2).unfold(3, side, side // 2)  # [B, C, R, S, side, side]
        rows, columns = cut.shape[2:4]
        patches = cut.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        return Packet(patches, packet.y.repeat_interleave(rows * columns, 0), packet.side)

    def check(self, image: Size) -> None:
        self.side(image)

    def modules(self, spec: BlockSpec, auxiliary: Auxiliary) -> dict[str, nn.Module]:
        side = self.side(spec.image)
        if len(spec.emits) != 3 or min(side * spec.emits[axis] // spec.image[axis] for axis in (1, 2)) < 1:
            raise UserError(
                f"objective=cpc reads patches of {side} x {side} pixels one by one, but block {spec.index} makes "
                f"{list(spec.emits)} of a whole image: choose a convolutional model with larger maps, such as "
                "model=allcnn, or larger patches"
            )
        size = (spec.emits[0], *self.grid(spec.image))
        predictions = Predictions(size, self.steps, self.negatives, same_position=False, most=max(size))
        return {"context": Context(size[0], self.layers), "predictions": predictions}

    def loss(self, spec: BlockSpec, modules: ObjectiveModules, h: Tensor, packet: Packet) -> LossAndLogits:
        z = self.vectors(spec, h)
        return modules["predictions"](z, modules["context"](z)), None

    def vectors(self, spec: BlockSpec, h: Tensor) -> Tensor:
        """The means of the maps [B * R * S, C, h, w] of patches, as a map [B, C, R, S]."""
        return h.mean((2, 3)).unflatten(0, (-1, *self.grid(spec.image))).permute(0, 3, 1, 2)

    def head_loss(self, block: Block, h: Tensor, packet: Packet) -> Tensor:
        rows, columns = self.grid(block.spec.image)
        _, height, width = block.spec.emits
        z = F.adaptive_avg_pool2d(self.vectors(block.spec, h), (height, width))
        return task_loss(block, z, packet.y[:: rows * columns])


class Context(nn.Module):
    """What the rows up to each one say: `layers` times c + tanh(a) sigmoid(b), with a and b of 2 x 3 convolutions that
    see a row and the one above it, and a 1x1 convolution. [B, C, R, S] -> [B, C, R, S]"""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(channels, 2 * channels, (2, 3), padding=(0, 1)) for _ in range(layers))
        self.last = nn.Conv2d(channels, channels, 1) if layers else nn.Identity()

    def forward(self, c: Tensor) -> Tensor:
        for layer in self.layers:
            values, gates = layer(F.pad(c, (0, 0, 1, 0))).chunk(2, dim=1)
            c = c + values.tanh() * gates.sigmoid()
        out: Tensor = self.last(c)
        return out
