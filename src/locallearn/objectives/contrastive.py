"""Contrastive losses between the samples of a batch: by label (SupCon) and by image (SimCLR)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.auxiliary import Auxiliary
from locallearn.contract import BlockSpec, Packet, Size
from locallearn.errors import UserError
from locallearn.objectives.base import LossAndLogits, Objective, ObjectiveModules, exact, wide
from locallearn.task import CLASSIFICATION, MIXED, MULTILABEL, REGRESSION


@dataclass(frozen=True)
class SupCon(Objective):
    """Supervised contrastive loss (Khosla et al. 2020, arXiv 2004.11362, eq. 2), of one view per image.

    L = mean over anchors i of -1/|P(i)| sum_{p in P(i)} log(exp(z_i.z_p / t) / sum_{a != i} exp(z_i.z_a / t)), where
    P(i) are the others with i's label and z [B, features] is the auxiliary network's output at length 1. Anchors
    without a positive and unlabelled samples do not count; without any pair the loss is 0. Small batches have few
    pairs: InfoPro uses 1024. No classifier: the block cannot predict.

    The authors' code multiplies by t / 0.07, which is 1 at the default, and takes two views of every image, so that no
    anchor lacks a positive; InfoPro's copy of it divides by all anchors, those without a positive too.
    """

    features: Annotated[int, Ge(1)] = 128
    temperature: Annotated[float, Gt(0)] = 0.07
    needs: ClassVar[str] = "attracts samples of one label"

    def modules(self, spec: BlockSpec, auxiliary: Auxiliary) -> dict[str, nn.Module]:
        return {"projection": auxiliary.build_below(spec.above, spec.emits, self.features)}

    def loss(self, spec: BlockSpec, modules: ObjectiveModules, h: Tensor, packet: Packet) -> LossAndLogits:
        return contrast(modules["projection"](h), packet.y, self.temperature), None


@dataclass(frozen=True)
class SimCLR(Objective):
    """SimCLR's NT-Xent between two augmented views of each image (Chen et al. 2020, arXiv 2002.05709), at every block.

    `begin` doubles the batch: the first half of [2B, ...] and of the labels is one view, the second half the other.
    L = mean over the 2B views of -log(exp(z_i.z_j / t) / sum_{a != i} exp(z_i.z_a / t)), j the other view of i's image,
    z the auxiliary network's output at length 1. No label is read. Twice the compute of a supervised step.

    features  of z
    crop      smallest share of the area that a view shows, enlarged to the image's size; the share is uniform up to 1
    flip      mirror half of the views of colour images. Off for colour images of digits or letters; grey images, which
              in this library's sets are mostly digits, are never mirrored
    jitter    strength of the random contrast (times 1 +- jitter) and brightness (plus +- jitter standard deviations)
    """

    features: Annotated[int, Ge(1)] = 128
    temperature: Annotated[float, Gt(0)] = 0.5
    crop: Annotated[float, Interval(gt=0, le=1)] = 0.25
    flip: bool = True
    jitter: Annotated[float, Interval(ge=0, lt=1)] = 0.4
    labels: ClassVar[bool] = False
    tasks: ClassVar[frozenset[str] | None] = frozenset({CLASSIFICATION, MIXED, MULTILABEL, REGRESSION})
    needs: ClassVar[str] = "moves images, and not what is asked at their positions"

    def unread(self, specs: Sequence[BlockSpec]) -> Mapping[str, str]:
        return {} if specs[0].image[0] == 3 else {"flip": "data=NAME of colour images"}

    def begin(self, packet: Packet) -> Packet:
        views = torch.cat([self.view(packet.h), self.view(packet.h)])
        return Packet(views, torch.cat([packet.y, packet.y]), packet.side)

    def view(self, images: Tensor) -> Tensor:
        """One augmented copy of each of the normalised images [B, C, H, W], every image with draws of its own."""
        draws = torch.rand(6, len(images), device=images.device, dtype=images.dtype)
        side = (self.crop + (1 - self.crop) * draws[0]).sqrt()
        right, down = (2 * draws[1:3] - 1) * (1 - side)  # of the window's centre; the image reaches from -1 to 1
        mirror = torch.where(draws[3] < 0.5, -1.0, 1.0) if self.flip and images.shape[1] == 3 else 1.0
        zero = torch.zeros_like(side)
        window = torch.stack([side * mirror, zero, right, zero, side, down], dim=1).view(-1, 2, 3)
        grid = F.affine_grid(window, list(images.shape), align_corners=False).to(images.dtype)
        shown = F.grid_sample(images, grid, padding_mode="border", align_corners=False).to(images.dtype)
        contrast, brightness = ((2 * draws[4:] - 1) * self.jitter)[..., None, None, None]
        return shown * (1 + contrast) + brightness

    def check(self, image: Size) -> None:
        if len(image) != 3:
            raise UserError(
                f"objective=simclr crops images, but the input is {list(image)}: choose objective=reconstruction, "
                "or objective=supcon where there are labels"
            )

    def modules(self, spec: BlockSpec, auxiliary: Auxiliary) -> dict[str, nn.Module]:
        self.check(spec.image)
        return {"projection": auxiliary.build_below(spec.above, spec.emits, self.features)}

    def loss(self, spec: BlockSpec, modules: ObjectiveModules, h: Tensor, packet: Packet) -> LossAndLogits:
        image = torch.arange(len(h) // 2, device=h.device).repeat(2)
        return contrast(modules["projection"](h), image, self.temperature), None


def contrast(z: Tensor, y: Tensor, temperature: float) -> Tensor:
    """The contrastive loss [] of z [B, features] when equal y [B] attract; negative y take no part.

    With two samples of each y it is NT-Xent. Masks, not indexing: nothing here waits for a GPU.
    """
    z = F.normalize(wide(z), dim=1)
    with exact(z):
        scores = z @ z.T / temperature  # [B, B]
    there = y >= 0
    others = (there[:, None] & there).fill_diagonal_(False)
    positive = (others & (y[:, None] == y)).to(z.dtype)
    # The lowest finite number instead of -inf: a row without others stays free of inf - inf.
    log_sum = scores.masked_fill(~others, torch.finfo(z.dtype).min).logsumexp(dim=1, keepdim=True)
    count = positive.sum(dim=1)
    losses = -((scores - log_sum) * positive).sum(dim=1) / count.clamp(min=1)
    return losses.sum() / count.count_nonzero().clamp(min=1)
