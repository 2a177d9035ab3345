"""Local forward gradient: noise in the activities and forward mode take the place of the backward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from locallearn import seeds
from locallearn.auxiliary import Linear
from locallearn.contract import Block, BlockSpec, Packet, Route, Send, Step, Strategy, backward, task_loss
from locallearn.objectives.base import wide
from locallearn.strategies.forward_mode import Layer, forward_mode, watched
from locallearn.task import POSITION

HEADS = "local_heads"


class LocalHeads(nn.Module):
    """A classifier for each of G groups of features: layer norm, then a linear layer that starts at zero. G is the
    largest number up to `most` that divides the features (channels of maps).

    What a block emits [B, *emits] -> answers [G B, classes] as the task asks, group after group. Where it asks once for
    each sample, maps are first averaged to 2 x 2 and sequences to one step.
    """

    def __init__(self, spec: BlockSpec, most: int) -> None:
        super().__init__()
        features = spec.emits[_axis(spec.emits) - 1]
        self.groups = groups = max(g for g in range(1, min(most, features) + 1) if features % g == 0)
        self.at_each = spec.task.form == POSITION
        self.maps = len(spec.emits) > 2
        self.pool = nn.Sequential()
        if not self.at_each:
            *pool, _ = Linear().build(spec.emits, 1).children()
            self.pool = nn.Sequential(*pool)
            features = self.pool(torch.zeros(1, *spec.emits)).shape[1]
        self.weight = nn.Parameter(torch.zeros(groups, features // groups, spec.classes))
        self.bias = nn.Parameter(torch.zeros(groups, 1, spec.classes))

    def forward(self, h: Tensor) -> Tensor:
        h = self.pool(h).movedim(1, -1) if self.at_each and self.maps else self.pool(h)
        x = h.unflatten(-1, (self.groups, -1)).movedim(-2, 0)  # [G, B, ..., D / G]
        x = F.layer_norm(x, x.shape[-1:])
        z = x.flatten(1, -2) @ self.weight + self.bias
        z = z.unflatten(1, x.shape[1:-1]).flatten(0, 1)
        return z.movedim(-1, 1) if self.maps and self.at_each else z

    def repeated(self, y: Tensor) -> Tensor:
        """Targets [B, ...] for the answers of all groups, [G B, ...]."""
        return y.repeat(self.groups, *[1] * (y.dim() - 1))

    def apart(self, answers: Tensor) -> Tensor:
        """What belongs to all groups [G B, ...], group by group [G, B, ...]."""
        return answers.unflatten(0, (self.groups, -1))


class Perturbed(NamedTuple):
    """What a layer gave.

    out       with the graph of this layer alone
    noise     what was added to it in forward mode
    sampled   whether its first axis is the samples; else all of them see its noise
    """

    out: Tensor
    noise: Tensor
    sampled: bool


class Pass(NamedTuple):
    """A pass in forward mode: what a block emits h [B, ...], its derivative along the noise (None for 0), and the
    layers."""

    h: Tensor
    change: Tensor | None
    layers: list[Perturbed]


@dataclass(frozen=True)
class ForwardGradient(Strategy):
    """Local forward gradient with activity perturbation (Ren, Kornblith, Liao & Hinton 2023, arXiv 2210.03310).

    Each block has a local loss of its own, L = sum_g l(a_g(h_g), y) over groups g of its features, each with a linear
    classifier. For every layer of the block (what holds parameters, with the norm that follows it) with output o, noise
    v ~ N(0, 1) like o enters in forward mode, all layers at once; it gives dL_i, the derivative of the loss of sample i
    along it, and

        g_o = dL_i v / n    in the place of dL/do, 0 where a rectifier that follows is closed,

    a mean over `draws` of v, from which the layer's own parameters learn by exact gradients. Nothing passes backward
    from layer to layer. Heads have exact gradients of detached features; sends nothing.

    draws   how many v are averaged; each costs a forward pass in forward mode
    groups  G at most: in each block the largest such number that divides its features. The last layer of a block learns
            from the loss of each group apart, if it has as many features as the block emits; what stands behind it must
            not mix them
    """

    draws: Annotated[int, Ge(1)] = 1
    groups: Annotated[int, Ge(1)] = 1
    route: ClassVar[Route] = Route.NONE
    boxes: ClassVar[bool] = False

    def modules(self, spec: BlockSpec) -> Mapping[str, nn.Module]:
        return {HEADS: LocalHeads(spec, self.groups)}

    def step(self, block: Block, packet: Packet) -> Step:
        again = [block.again() for _ in range(self.draws - 1)]
        tried = self.tried(block, packet.h, 0)
        yield Send(packet.at(tried.h))
        loss: Tensor | None = self.of_heads(block, tried.h, packet.y)
        for draw in range(self.draws):
            if draw:
                with again[draw - 1]:
                    tried = self.tried(block, packet.h, draw)
            change = self.change(block, tried, packet.y) / self.draws
            outs = [each.out for each in tried.layers]
            grads = [weighed(each, change, tried.h, last=each is tried.layers[-1]) for each in tried.layers]
            backward(loss, Packet(outs[0], packet.y, tuple(outs[1:])) if outs else None, tuple(grads))
            loss = None
        block.update()
        return None

    def noise(self, out: Tensor, draw: int, number: int) -> Tensor:
        """v like the output of a layer, from a stream of its own: dropout draws what it draws under backprop, in every
        draw the same."""
        return seeds.noise_like(out, draw, number)

    def tried(self, block: Block, x: Tensor, draw: int) -> Pass:
        """What a block makes of x [B, ...], in forward mode with the noise of a draw. Raises UserError for a net that
        has no forward mode."""
        layers: list[Perturbed] = []

        def perturb(layer: Layer, read: Tensor | None, out: Tensor) -> Tensor:
            value, tangent = forward_ad.unpack_dual(out)
            if not value.requires_grad:  # frozen
                return out
            v = self.noise(value.detach(), draw, len(layers))
            v = v * (value.detach() > 0) if layer.rectified else v
            layers.append(Perturbed(value, v, read is not None and read.dim() > 1 and len(value) == len(x)))
            return forward_ad.make_dual(value.detach(), v if tangent is None else tangent.detach() + v)

        with torch.no_grad(), forward_mode(block, x), watched(block.layers, perturb):
            h, change = forward_ad.unpack_dual(block.layers._call_impl(x))  # not the compiled one
        return Pass(h, change, layers)

    def change(self, block: Block, tried: Pass, y: Tensor) -> Tensor:
        """The derivative of the loss of each group and sample [G, B] along the noise, over the number of samples."""
        heads = local_heads(block)
        if tried.change is None:
            return tried.h.new_zeros(heads.groups, len(tried.h))
        with torch.no_grad(), forward_mode(block, tried.h):
            z, dz = forward_ad.unpack_dual(heads(forward_ad.make_dual(tried.h, tried.change)))
        z, dz = wide(z), wide(dz)
        changes = (block.spec.task.error(z, heads.repeated(y)) * dz).flatten(1).sum(1)
        return heads.groups * heads.apart(changes)

    def of_heads(self, block: Block, h: Tensor, y: Tensor) -> Tensor:
        """The loss [] from which heads learn, for features h [B, ...] without a graph: it is reported."""
        heads = local_heads(block)
        z = heads(h)
        local = block.spec.task.loss(z, heads.repeated(y))
        if block.last:
            block.note("local_loss", local)
            return heads.groups * local + task_loss(block, h, y)
        block.report(local, heads.apart(z).mean(0), y)
        return heads.groups * local

    def predict(self, block: Block, packet: Packet) -> Tensor | None:
        if block.head is not None:
            return block.head(packet.h)
        if HEADS not in block.auxiliary:  # frozen
            return None
        heads = local_heads(block)
        return heads.apart(heads(packet.h)).mean(0)


def local_heads(block: Block) -> LocalHeads:
    """Those of a block that learns."""
    heads = block.auxiliary[HEADS]
    assert isinstance(heads, LocalHeads)
    return heads


def weighed(layer: Perturbed, change: Tensor, h: Tensor, last: bool) -> Tensor:
    """What stands for the gradient of a layer's output: its noise, times the change [G, B] of what it can reach.

    h [B, ...] is what the block emits: the features of its last layer, if as many, reach those of their group alone."""
    groups, axis = len(change), _axis(h.shape[1:])
    shape = [1] * layer.noise.dim()
    if not layer.sampled:
        change = change.sum()
    elif last and layer.noise.dim() == h.dim() and layer.noise.shape[axis] == h.shape[axis]:
        change = change.t().repeat_interleave(h.shape[axis] // groups, 1)
        shape[0], shape[axis] = change.shape
    else:
        change = change.sum(0)
        shape[0] = -1
    return (layer.noise * change.view(shape)).to(layer.out.dtype)


def _axis(emits: Sequence[int]) -> int:
    """The axis of a batch [B, *emits] in which features are."""
    return 2 if len(emits) == 2 else 1
