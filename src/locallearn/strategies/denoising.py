"""What strategies share whose blocks take the noise from a label, given the image: each block reads the image itself,
and noise at an evaluation belongs to the sample."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from locallearn import seeds
from locallearn.auxiliary import Linear
from locallearn.contract import Block, BlockSpec, Packet, Route, Send, Step, Strategy, backward
from locallearn.errors import UserError
from locallearn.objectives.base import numbers_of_input, plain_labels
from locallearn.strategies.targets import MOST_WEIGHTS
from locallearn.task import CLASSIFICATION

FEATURES = 2048
"""Maps are pooled until at most so many numbers are left for the linear layer that reads them."""


class Denoiser(nn.Module):
    """What a block has made of the image [B, *size], and a noisy label [B, given] -> logits [B, classes]."""

    def __init__(self, size: tuple[int, ...], given: int, classes: int, width: int) -> None:
        super().__init__()
        self.features = Linear(FEATURES).build(size, width)
        self.label = nn.Linear(given, width)
        self.both = nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, h: Tensor, noisy: Tensor) -> Tensor:
        return self.both(self.features(h) + self.label(noisy))


class Denoising(Strategy):
    """Every block learns alone to tell the class of an image that it reads itself, given a noisy label. To answer,
    the blocks take the noise from a random label, one after the other.

    Block 0 reads the image; in front of every other block stands a module of its own, `image`, that brings the image to
    the shape which the units read. The head of the model is not used. While training `h` is the image in every packet;
    at an evaluation it is what a block has made of the image, and `side` has the image, the label, and its logits.
    """

    width: int
    given: ClassVar[int] = 0
    """Numbers that a block reads beside the noisy label."""
    route: ClassVar[Route] = Route.NONE
    tasks: ClassVar[frozenset[str]] = frozenset({CLASSIFICATION})
    needs: ClassVar[str] = "takes the noise from the class of each sample"

    def modules(self, spec: BlockSpec) -> Mapping[str, nn.Module]:
        numbers_of_input(spec, type(self).__name__)
        plain_labels(spec, type(self).__name__, "another strategy")
        modules: dict[str, nn.Module] = {} if spec.index == 0 else {"image": reader(spec)}
        modules["denoiser"] = Denoiser(spec.emits, spec.classes + self.given, spec.classes, self.width)
        return modules

    def read(self, block: Block, image: Tensor) -> Tensor:
        """What the units of a block make of the image, [B, *emits]."""
        return block.layers(block.auxiliary["image"](image) if block.spec.index else image)

    def step(self, block: Block, packet: Packet) -> Step:
        yield Send(packet)  # the image; the block above waits for nothing else
        image, y = packet.h, packet.y
        label = block.spec.task.context(y, block.spec.classes).to(image.dtype)
        loss, logits = self.loss(block, image, label, y)
        block.report(loss)  # no accuracy: the block has seen the label
        block.note("denoised", mean((logits.argmax(1) == y).to(label.dtype), y))
        backward(loss)
        block.update()
        return None

    @abstractmethod
    def loss(self, block: Block, image: Tensor, label: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The loss [] of a block for images [B, ...] and one-hot labels [B, classes], 0 for a sample without one, whose
        number in y [B] is below 0; and its logits [B, classes], given the label with noise."""

    def look(self, packet: Packet, spec: BlockSpec) -> Packet:
        start = normal(packet.h, seeds.derive(spec.seed, "noise"), spec.classes)
        return packet.at(packet.h, packet.h, start)

    def through(self, block: Block, packet: Packet) -> Packet:
        if packet.y.numel():  # below blocks that learn
            return packet
        image, z, *_ = packet.side
        if "denoiser" not in block.auxiliary:  # it has never learned to
            return packet.at(packet.h, image, z)
        return packet.at(*self.denoised(block, image, z))

    @abstractmethod
    def denoised(self, block: Block, image: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        """What a block hands on to answer: its features [B, *emits], the image, the label with less noise [B, classes],
        and its logits [B, classes]."""


def reader(spec: BlockSpec) -> nn.Module:
    """A layer that brings the image [B, *image] to the shape that a block reads [B, *reads]: from maps to smaller maps
    a convolution of patches that do not overlap, along a sequence one linear layer at every step, else a matrix. Raises
    UserError for one that is too large."""
    image, reads = spec.image, spec.reads
    if len(image) == len(reads) == 3:
        patch = [max(1, math.ceil(side / own)) for side, own in zip(image[1:], reads[1:], strict=True)]
        grid = [own * side for own, side in zip(reads[1:], patch, strict=True)]
        size = patch[0], patch[1]
        return nn.Sequential(nn.AdaptiveAvgPool2d((grid[0], grid[1])), nn.Conv2d(image[0], reads[0], size, size))
    if len(image) == len(reads) == 2 and image[0] == reads[0] and not spec.channels_first:
        return nn.Linear(image[1], reads[1])
    if (weights := math.prod(image) * math.prod(reads)) > MOST_WEIGHTS:
        raise UserError(
            f"block {spec.index}: a matrix from the image {list(image)} to what the block reads, {list(reads)}, has "
            f"{weights:,} numbers, but at most {MOST_WEIGHTS:,} are allowed: cut the model elsewhere, or choose "
            "another strategy"
        )
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(image), math.prod(reads)), nn.Unflatten(1, reads))


def mean(values: Tensor, y: Tensor) -> Tensor:
    """The mean [] of values [B] over the samples whose label in y [B] is not below 0; 0 if there is none."""
    known = (y >= 0).to(values.dtype)
    return (values * known).sum() / known.sum().clamp(min=1)


def draw(image: Tensor, size: int) -> Tensor:
    """Normal numbers [B, size], others at every call; see `normal`."""
    return normal(image, torch.randint(2**62, (), device=image.device), size)


def normal(x: Tensor, key: int | Tensor, size: int) -> Tensor:
    """Normal numbers [B, size] in the type of x [B, ...], for each sample from a stream of its own, which the key and
    the numbers of the sample decide: neither the rest of the batch nor anything that was drawn before."""
    bits = x.detach().flatten(1).float().contiguous().view(torch.int32).long()
    place = _mixed(torch.arange(bits.shape[1], device=x.device)) | 1
    sample = _mixed(_mixed((bits * place).sum(1)) ^ key)
    counter = torch.arange(2 * size, device=x.device)
    words = _shifted(_mixed(sample[:, None] + counter * _GOLDEN), 11)
    uniform = (words.double() + 0.5) * 2.0**-53
    radius, angle = uniform.chunk(2, 1)
    return ((-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()).to(x.dtype)  # Box & Muller 1958


def _signed(number: int) -> int:
    """The int64 of these 64 bits."""
    return number - (1 << 64) if number >> 63 else number


_GOLDEN, _FIRST, _SECOND = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mixed(z: Tensor) -> Tensor:
    """The finaliser of splitmix64, as `seeds.mix` has it, of each int64."""
    z = z + _GOLDEN
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """z >> bits without the sign."""
    return z >> bits & (1 << 64 - bits) - 1
