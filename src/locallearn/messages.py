"""What blocks send each other, read of each other, and build like each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from torch import Tensor, nn

from locallearn import scaling

Size: TypeAlias = tuple[int, ...]
"""A shape without the batch: (C, H, W) for maps, (D,) for vectors."""

Feedback: TypeAlias = tuple[Tensor | None, ...]
"""What a block sends down: under CHAIN and NEIGHBOR a gradient for `h` and one for each tensor of `side` (None for one
that needs none), or a message of the strategy's own making (several gradients of `h`, by the loss they come from);
under BROADCAST whatever the last block returns."""


class Packet(NamedTuple):
    """What a block hands to the next one.

    h     activations [B, ...]; the input for block 0
    y     targets of the task [B, ...]: of classification labels [B], below 0 where a sample has none (the nodes of a
          graph that are not trained on): no loss reads it
    side  what a strategy needs further up (the image, a reversible branch)
    """

    h: Tensor
    y: Tensor
    side: tuple[Tensor, ...] = ()

    def detach(self) -> Packet:
        """The same values without a graph: nothing that leaves a block carries one."""
        return Packet(self.h.detach(), self.y, tuple(t.detach() for t in self.side))

    def at(self, h: Tensor, *side: Tensor) -> Packet:
        """This packet one block further up; `side` replaces the old one when given."""
        return Packet(h, self.y, side or self.side)

    def leaves(self) -> Packet:
        """The same values as leaves that collect gradients (integers stay as they are)."""
        return Packet(_leaf(self.h), self.y, tuple(_leaf(t) for t in self.side))

    def take_grads(self) -> Feedback:
        """The collected gradients of `h` and `side`, moved out of the leaves. None where nothing arrived."""
        grads: list[Tensor | None] = []
        for leaf in (self.h, *self.side):
            grads.append(leaf.grad)
            leaf.grad = None
        return tuple(grads)


def _leaf(t: Tensor) -> Tensor:
    t = t.detach()
    return scaling.leaf(t.requires_grad_()) if t.is_floating_point() else t


class Send(NamedTuple):
    """What `step` yields: a packet for the block above and, under NEIGHBOR and ROUNDS, feedback for the block below.
    After the first yield either may be None."""

    ahead: Packet | None
    back: Feedback | None = None


class Heard(NamedTuple):
    """What a block gets in a round: what both neighbours sent in the round before; None where they sent nothing."""

    below: Packet | None
    above: Feedback | None


class Published(NamedTuple):
    """Tensors of a block above that a block reads: in step t it gets them as they were after
    every * floor(max(0, t - lag) / every) steps, wherever the two blocks live.

    source  the block that has them
    every   steps from one version to the next
    lag     steps by which they are late; in a pipeline 0 waits for the source to finish the step before, and as many
            as there are blocks from here to the source wait for nobody
    """

    source: int
    every: int = 1
    lag: int = 0


class Copy(NamedTuple):
    """What a block reads of another one: the steps after which the tensors were so, and the tensors, which are not to
    be written into."""

    version: int
    tensors: tuple[Tensor, ...]


class Unit(NamedTuple):
    """A unit of the model, of which a strategy may build new ones.

    index  of the unit, from the input upward
    reads, emits  the shapes that it reads and emits, without the batch
    build  from a shape to a new unit that reads it, with parameters as fresh as those of a new model, drawn from the
           global generator. Of another shape than `reads`, maps may have other channels and another size, vectors and
           sequences other features. Raises UserError for a unit that cannot be built anew, or not for that shape
    """

    index: int  # type: ignore[assignment]
    reads: Size
    emits: Size
    build: Callable[[Size], nn.Module]


def backward(loss: Tensor | None, out: Packet | None = None, grads: Feedback | None = None) -> None:
    """Write gradients by one autograd call; with precision=fp16 it also keeps small ones from becoming 0.

    Args:
        loss: The block's own [], if it has one.
        out: What it has sent, with its graph.
        grads: The gradients of `out.h` and `out.side` that came back, if any.
    """
    roots: list[Tensor] = []
    seeds: list[Tensor | None] = []
    if loss is not None:
        roots.append(loss)
        seeds.append(None)
    for tensor, grad in zip((out.h, *out.side) if out else (), grads or (), strict=False):
        if tensor.requires_grad and grad is not None:
            roots.append(tensor)
            seeds.append(grad)
    if roots:
        scaling.backward(roots, seeds)
