"""Masked patches: put back what was hidden of an image (He et al. 2022, "Masked Autoencoders Are Scalable Vision
Learners", arXiv 2111.06377)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor, nn

from locallearn.auxiliary import Auxiliary
from locallearn.contract import BlockSpec, Packet, Size
from locallearn.errors import UserError
from locallearn.objectives.base import LossAndLogits, ObjectiveModules, wide
from locallearn.objectives.reconstruction import Reconstruction, Reconstructor

GRID = 8  # patches to a side, about
EPSILON = 1e-6  # added to the variance of a patch, as in the authors' code


@dataclass(frozen=True)
class Masked(Reconstruction):
    """L_k = mean over hidden patches of the mean squared error of decoder(h_k) to the patch, which is shifted and
    scaled to mean 0 and variance 1 (over its pixels and channels).

    `begin` hides the same number of patches of each image, drawn at random, under 0, the mean of normalised images;
    `side` carries the whole image and the mask, bool [B, 1, H, W], true where hidden. Evaluation sees whole images.
    What predicts the mean of every patch has loss 1; a patch of one colour has the target 0. The authors leave hidden
    patches out, which a convolution cannot, and fill them with a learned token further up.

    hidden     share of the patches; the authors hide 0.75, from transformers
    patch      side of a patch in pixels; None: what divides the image and comes closest to an eighth of its side, but
               at least 2
    normalise  false: the pixels themselves are the target
    task       of the gradient of the head's true loss, the share that the last block learns from beside its own loss;
               0: the head only reads
    """

    hidden: Annotated[float, Interval(gt=0, lt=1)] = 0.6
    patch: Annotated[int, Ge(1)] | None = None
    normalise: bool = True
    task: Annotated[float, Interval(ge=0, le=1)] = 0.0

    @property
    def head_share(self) -> float:
        return self.task

    def begin(self, packet: Packet) -> Packet:
        images = packet.h
        side = self.side(images.shape[1:])
        rows, columns = images.shape[2] // side, images.shape[3] // side
        rank = torch.rand(len(images), rows * columns, device=images.device).argsort(1).argsort(1)
        hidden = (rank < self.count(rows * columns)).view(-1, 1, rows, columns)
        hidden = hidden.repeat_interleave(side, 2).repeat_interleave(side, 3)
        return packet.at(images.masked_fill(hidden, 0.0), images, hidden)

    def count(self, patches: int) -> int:
        """How many of the `patches` of an image are hidden: at least one, and not all."""
        return min(max(1, round(self.hidden * patches)), patches - 1)

    def side(self, image: Size) -> int:
        """Of the patches of an image [C, H, W], in pixels. Raises UserError where none divides it into two or more."""
        if len(image) != 3:
            raise UserError(
                f"objective=masked hides patches of an image, but the input is {list(image)}: choose "
                "objective=reconstruction"
            )
        whole = math.gcd(*image[1:])
        fits = [side for side in range(1, whole + 1) if whole % side == 0 and side < max(image[1:])]
        if not fits:
            raise UserError(
                "objective=masked hides patches of an image, but the input has one pixel: choose larger images"
            )
        if self.patch is None:
            return min([side for side in fits if side > 1] or fits, key=lambda side: abs(side - whole / GRID))
        if self.patch not in fits:
            raise UserError(
                f"objective.patch={self.patch} does not divide images of {image[1]} x {image[2]} pixels into patches: "
                f"choose {' or '.join(map(str, fits))}"
            )
        return self.patch

    def check(self, image: Size) -> None:
        self.side(image)

    def modules(self, spec: BlockSpec, auxiliary: Auxiliary) -> dict[str, nn.Module]:
        self.check(spec.image)
        return super().modules(spec, auxiliary)

    def loss(self, spec: BlockSpec, modules: ObjectiveModules, h: Tensor, packet: Packet) -> LossAndLogits:
        image, hidden = packet.side
        side = self.side(spec.image)
        target = patches(wide(image.detach()), side)
        if self.normalise:
            variance, mean = torch.var_mean(target, dim=3, correction=0, keepdim=True)
            target = (target - mean) / (variance + EPSILON).sqrt()
        errors = (patches(modules["decoder"](h), side) - target).square().mean(3)  # [B, rows, columns]
        there = hidden[:, 0, ::side, ::side].to(errors.dtype)
        return (errors * there).sum() / there.sum(), None

    def fill(self, modules: ObjectiveModules, h: Tensor, packet: Packet) -> Tensor:
        """Of normalised patches the mean and the deviation are not predicted: those of the visible pixels stand for
        them."""
        decoder = modules["decoder"]
        assert isinstance(decoder, Reconstructor)
        image, hidden = packet.side
        if not self.normalise:
            return decoder(h)
        seen = wide(image).masked_fill(hidden, torch.nan).flatten(1)
        mean = seen.nanmean(1, keepdim=True)
        deviation = (seen - mean).square().nanmean(1).sqrt()
        return decoder(h) * deviation.view(-1, 1, 1, 1) + mean.view(-1, 1, 1, 1)


def patches(x: Tensor, side: int) -> Tensor:
    """Images [B, C, H, W] as patches [B, rows, columns, C * side * side]."""
    return x.unflatten(3, (-1, side)).unflatten(2, (-1, side)).permute(0, 2, 4, 1, 3, 5).flatten(3)
