"""The Forward-Forward algorithm: each layer tells images with their label from images with a wrong one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.contract import Block, BlockSpec, Packet, Route, Send, Step, Strategy, backward
from locallearn.errors import UserError
from locallearn.objectives.base import numbers_of_input, plain_labels, wide
from locallearn.strategies.activations import COMMUTE, DROPOUT, last_activation
from locallearn.strategies.passing import passing
from locallearn.task import CLASSIFICATION

NEUTRAL = 0.1
"""Every class has it in an image that shows none."""
TINY = 1e-8
AT_MOST_ONE = (nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh)


class MeanActivity(nn.Module):
    """The running mean m of what each feature of a block emits for images with their label: m <- 0.9 m + 0.1 mean."""

    mean: Tensor
    moving: ClassVar[tuple[str, ...]] = ("mean",)

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((features,), 0.5))

    def forward(self, h: Tensor, known: Tensor) -> Tensor:
        """Move it towards the mean of those of h [B, D] that count, known [B] being 1; return it as a function of h."""
        count = known.sum()
        now = (h * known[:, None]).sum(0) / count.clamp(min=1)
        mean = torch.where(count > 0, 0.9 * self.mean + 0.1 * now, self.mean)
        self.mean.copy_(mean.detach())
        return mean


@dataclass(frozen=True)
class ForwardForward(Strategy):
    """The Forward-Forward algorithm (Hinton 2022, arXiv 2212.13345), supervised.

    The label is written into the first pixels of the image: its own class (positive), a wrong one (negative), or
    0.1 for every class (neutral). Each block reads u = h_{k-1} / rms(h_{k-1}), detached, which hides the length that
    the block below has learned, and its goodness is G = sum_j h_j^2. It minimises the mean over positive and negative
    rows of BCE(sigmoid(G - theta D), positive), with D features, plus peer * mean_j (mean m - m_j)^2, which keeps all
    features equally active (m: `MeanActivity`). Sends nothing down; all blocks learn on the same batch.

    readout    what answers. linear: a classifier without bias on the normalised features of the neutral image in all
               blocks but the first, trained by the true loss, which sends nothing into them; it ships. goodness: for
               each class the image that shows it runs through the net, and the sum of G over all blocks but the first
               decides; nothing ships. The first block sees the label itself, and is left out (unless it is alone)
    threshold  theta, for each feature
    peer       weight of the peer loss; 0 leaves it out
    """

    readout: Literal["linear", "goodness"] = "linear"
    threshold: Annotated[float, Gt(0)] = 1.0
    peer: Annotated[float, Ge(0)] = 0.03
    route: ClassVar[Route] = Route.NONE
    multiplies: ClassVar[bool] = True
    tasks: ClassVar[frozenset[str]] = frozenset({CLASSIFICATION})
    needs: ClassVar[str] = "writes a class into each image"

    @property
    def ships(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"readout"}) if self.readout == "linear" else frozenset()

    def modules(self, spec: BlockSpec) -> Mapping[str, nn.Module]:
        numbers_of_input(spec, "ForwardForward")
        if self.readout == "goodness":
            plain_labels(spec, "strategy.readout=goodness", "strategy.readout=linear")
        if math.prod(spec.image) < spec.classes:
            raise UserError(
                f"ForwardForward writes {spec.classes} classes into inputs of {math.prod(spec.image)} numbers: choose "
                "data with larger ones, or another strategy"
            )
        modules: dict[str, nn.Module] = {"activity": MeanActivity(math.prod(spec.emits))} if self.peer else {}
        if spec.last and self.readout == "linear":
            features = sum(math.prod(size) for size in spec.sizes[_first(spec) :])
            modules["readout"] = readout = nn.Linear(features, spec.classes, bias=False)
            nn.init.zeros_(readout.weight)
        return modules

    def adapt(self, layers: nn.Module, spec: BlockSpec) -> nn.Module:
        """Units whose last rectifier passes every gradient, for the peer loss, which alone opens features that have
        died: the gradient of goodness, 2 h, is 0 where it is closed. Raises UserError where no goodness can exceed the
        threshold."""
        last = last_activation(layers)
        if self.threshold >= 1 and isinstance(last, AT_MOST_ONE) and getattr(last, "max_val", 1) <= 1:
            raise UserError(
                f"ForwardForward wants a goodness above strategy.threshold={self.threshold:g} for each feature, but "
                f"{type(last).__name__} emits numbers of at most 1: choose a lower threshold, such as 0.5, or an "
                "activation without bound, such as model.activation=relu"
            )
        opened = last_activation(layers, (*COMMUTE, *DROPOUT))
        return passing(layers, opened) if self.peer and opened is not None else layers

    def step(self, block: Block, packet: Packet) -> Step:
        spec, y = block.spec, packet.y
        h = block.layers(normalised(self.with_label(packet, spec)))
        positive, negative, *neutral = h.flatten(1).chunk(self.rows)
        side = self.seen(block, packet, h)
        yield Send(packet.at(h, *side))
        loss = self.local_loss(block, positive, negative, y)
        if spec.last and neutral:
            block.note("local_loss", loss)
            logits = block.auxiliary["readout"](torch.cat(side, 1))
            true = spec.task.loss(logits, y)
            block.report(true, logits, y)
            loss = loss + true
        else:
            block.report(loss)
        backward(loss)
        block.update()
        return None

    def local_loss(self, block: Block, positive: Tensor, negative: Tensor, y: Tensor) -> Tensor:
        """The loss [] of features [B, D] of images that show the classes y [B], and of images that show wrong ones."""
        known = (y >= 0).to(positive.dtype)
        count = known.sum().clamp(min=1)
        above, below = self.excess(positive), self.excess(negative)
        loss = ((F.softplus(-above) + F.softplus(below)) * known).sum() / (2 * count)  # binary cross-entropy
        right = (above > 0).to(known) + (below <= 0).to(known)
        block.note("told_apart", (right * known).sum() / (2 * count))
        if self.peer:
            mean = block.auxiliary["activity"](wide(positive), known)
            loss = loss + self.peer * (mean.mean() - mean).square().mean()
        return loss

    def excess(self, h: Tensor) -> Tensor:
        """G - theta D of features [B, ...]: by how much their goodness is above the threshold, [B]."""
        h = wide(h.flatten(1))
        return h.square().sum(1) - self.threshold * h.shape[1]

    def labelled(self, image: Tensor, y: Tensor, spec: BlockSpec) -> Tensor:
        """Images [B, ...] with their class, then with a wrong one, and for a linear read-out with none, one after the
        other. Wrong classes are drawn evenly from the global generator."""
        wrong = (y + torch.randint(1, max(2, spec.classes), y.shape, device=y.device)) % spec.classes
        labels = [F.one_hot(each.clamp(min=0), spec.classes).to(image.dtype) for each in (y, wrong)]
        if self.readout == "linear":
            labels.append(torch.full_like(labels[0], NEUTRAL))
        return torch.cat([written(image, each, spec) for each in labels])

    def look(self, packet: Packet, spec: BlockSpec) -> Packet:
        image = packet.h
        if self.readout == "linear":
            return packet.at(written(image, image.new_full((1, spec.classes), NEUTRAL), spec))
        classes = torch.eye(spec.classes, dtype=image.dtype, device=image.device)
        return packet.at(torch.cat([written(image, each[None], spec) for each in classes]))

    def through(self, block: Block, packet: Packet) -> Packet:
        h = block.layers(normalised(self.with_label(packet, block.spec)))
        return packet.at(h, *self.seen(block, packet, h))

    def with_label(self, packet: Packet, spec: BlockSpec) -> Tensor:
        """What a block reads: of a training batch block 0 has images, and writes the labels into them."""
        if spec.index or not packet.y.numel():
            return packet.h
        return self.labelled(packet.h, packet.y, spec)

    def seen(self, block: Block, packet: Packet, h: Tensor) -> tuple[Tensor, ...]:
        """What the read-out needs of this block and those below, for what it emits, h [B, ...]: the features of images
        that show no class; or at an evaluation the goodness so far."""
        if block.spec.index < _first(block.spec):
            return ()
        training = bool(packet.y.numel())
        if self.readout == "linear":
            neutral = h.detach().flatten(1).chunk(self.rows)[-1] if training else h.flatten(1)
            return (*packet.side, normalised(neutral))
        return () if training else ((packet.side[0] if packet.side else 0.0) + self.excess(h),)

    @property
    def rows(self) -> int:
        """How often a training batch has each image."""
        return 3 if self.readout == "linear" else 2

    def predict(self, block: Block, packet: Packet) -> Tensor | None:
        if not packet.side:
            return None
        if self.readout == "linear":
            return block.auxiliary["readout"](torch.cat(packet.side, 1)) if block.last else None
        return packet.side[0].unflatten(0, (block.spec.classes, -1)).t()


def written(image: Tensor, numbers: Tensor, spec: BlockSpec) -> Tensor:
    """Images [B, ...] whose first numbers are `numbers` [B or 1, classes]; of pixels 0 is black and 1 white."""
    if spec.pixels is not None:
        black, white = (side[0] for side in spec.pixels)
        numbers = black + (white - black) * numbers
    flat = image.flatten(1)
    return torch.cat([numbers.expand(len(image), -1), flat[:, spec.classes :]], 1).view_as(image)


def normalised(h: Tensor) -> Tensor:
    """h [B, ...] over the root of its mean square, sample by sample."""
    rms = h.flatten(1).square().mean(1).sqrt() + TINY
    return h / rms.view(-1, *[1] * (h.dim() - 1))


def _first(spec: BlockSpec) -> int:
    """The first block that is read: not the one that sees the label, unless it is alone."""
    return min(1, spec.depth - 1)
