"""Losses that look back at the input: reconstruct all of it, or the part that was hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.auxiliary import Auxiliary, Decoder
from locallearn.contract import BlockSpec, Packet, Size
from locallearn.errors import UserError
from locallearn.objectives.base import LossAndLogits, Objective, ObjectiveModules, numbers_of_input, wide


@dataclass(frozen=True)
class Reconstruction(Objective):
    """L_k = L_rec(decoder(h_k), input): a greedy autoencoder, InfoPro's reconstruction alone (see `Reconstructor`).

    `side` carries the input. No label and no auxiliary network is read.
    """

    labels: ClassVar[bool] = False
    reads_auxiliary: ClassVar[bool] = False
    tasks: ClassVar[frozenset[str] | None] = None

    @property
    def reconstructs(self) -> bool:
        return True

    def begin(self, packet: Packet) -> Packet:
        return with_image(packet)

    def modules(self, spec: BlockSpec, auxiliary: Auxiliary) -> dict[str, nn.Module]:
        return {"decoder": Reconstructor(spec)}

    def loss(self, spec: BlockSpec, modules: ObjectiveModules, h: Tensor, packet: Packet) -> LossAndLogits:
        return reconstruct(modules, h, packet.side[0]), None


@dataclass(frozen=True)
class Inpainting(Reconstruction):
    """L_k = L_rec(decoder(h_k), image) over a hidden region only (context encoders: Pathak et al. 2016, arXiv
    1604.07379, without their adversary).

    `begin` replaces a random rectangle of each image by 0, the mean of normalised images; `side` carries the whole
    image and the mask, bool [B, 1, H, W], true where hidden. Evaluation sees whole images. No label is read.

    mask  share of the height and of the width that is hidden
    """

    mask: Annotated[float, Interval(gt=0, le=1)] = 0.5

    def begin(self, packet: Packet) -> Packet:
        images = packet.h
        rows, columns = (self._band(len(images), length, images.device) for length in images.shape[2:])
        hidden = rows[:, None, :, None] & columns[:, None, None, :]
        return packet.at(images.masked_fill(hidden, 0.0), images, hidden)

    def _band(self, images: int, length: int, device: torch.device) -> Tensor:
        """Which of `length` rows or columns are hidden, by image: bool [B, length]."""
        size = max(1, round(self.mask * length))
        first = torch.randint(length - size + 1, (images, 1), device=device)
        at = torch.arange(length, device=device)
        return (at >= first) & (at < first + size)

    def check(self, image: Size) -> None:
        if len(image) != 3:
            raise UserError(
                f"objective=inpainting hides part of an image, but the input is {list(image)}: choose "
                "objective=reconstruction"
            )

    def modules(self, spec: BlockSpec, auxiliary: Auxiliary) -> dict[str, nn.Module]:
        self.check(spec.image)
        return super().modules(spec, auxiliary)

    def loss(self, spec: BlockSpec, modules: ObjectiveModules, h: Tensor, packet: Packet) -> LossAndLogits:
        image, hidden = packet.side
        return reconstruct(modules, h, image, hidden), None

    def fill(self, modules: ObjectiveModules, h: Tensor, packet: Packet) -> Tensor:
        decoder = modules["decoder"]
        assert isinstance(decoder, Reconstructor)
        return decoder.black + decoder(h).sigmoid() * decoder.contrast if decoder.pixels else decoder(h)


class Reconstructor(nn.Module):
    """L_rec: binary cross-entropy between the sigmoid of a decoder's output and the pixels from 0 (black) to 1 (white),
    mean over all numbers; for inputs that are no pixels the mean squared error to the input."""

    black: Tensor  # [C, 1, 1]
    contrast: Tensor  # [C, 1, 1], white - black

    def __init__(self, spec: BlockSpec, quarters: bool = False) -> None:
        super().__init__()
        numbers_of_input(spec, "what reconstructs the input")
        if len(spec.maps) > 1:
            raise UserError(
                f"block {spec.index} hands on {len(spec.maps)} maps in one, but what reconstructs the input reads one: "
                "choose objective=cross_entropy, or cut the model where it emits one"
            )
        self.decoder = Decoder(quarters=quarters).build(spec.emits, spec.image)
        self.pixels = spec.pixels is not None and len(spec.image) == 3
        black, white = (torch.tensor(x)[:, None, None] for x in spec.pixels or ((0.0,), (1.0,)))
        self.register_buffer("black", black, persistent=False)  # known from the data: no part of a checkpoint
        self.register_buffer("contrast", white - black, persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        """What the decoder makes of h, [B, *image], in float32 or more."""
        return wide(self.decoder(h))

    def loss(self, h: Tensor, image: Tensor, hidden: Tensor | None = None) -> Tensor:
        """L_rec [], over the hidden region if there is one. Nothing flows into the image."""
        decoded, target = self(h), image.detach()
        if self.pixels:
            target = ((target - self.black) / self.contrast).clamp(0, 1).to(decoded.dtype)
            errors = F.binary_cross_entropy_with_logits(decoded, target, reduction="none")
        else:
            errors = (decoded - target).square()
        if hidden is None:
            return errors.mean()
        hidden = hidden.expand_as(errors)
        return (errors * hidden).sum() / hidden.sum()


def reconstruct(modules: ObjectiveModules, h: Tensor, image: Tensor, hidden: Tensor | None = None) -> Tensor:
    """The loss [] of the module called `decoder`."""
    decoder = modules["decoder"]
    assert isinstance(decoder, Reconstructor)
    return decoder.loss(h, image, hidden)


def with_image(packet: Packet) -> Packet:
    """The packet with its own input in `side`."""
    if not packet.h.is_floating_point():
        raise UserError("the input consists of indices, which cannot be reconstructed: choose objective=cross_entropy")
    return packet.at(packet.h, packet.h)
