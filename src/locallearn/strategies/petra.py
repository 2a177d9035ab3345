"""PETRA: backpropagation through reversible blocks, which keep nothing of a batch that is under way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from locallearn.contract import Block, BlockSpec, Packet, Route, Send, Step, Strategy, backward, enter, task_loss
from locallearn.errors import UserError


class FromOutput(nn.Sequential):
    """Units that run again from what they have emitted. [B, ...] -> [B, ...]"""

    def forward(self, x: Tensor, kept: list[Tensor | None] | None = None, y: Tensor | None = None) -> Tensor:
        """Run the units, or with `y` run them again.

        Args:
            x: The input. The second time units that are not reversible read it; where the first one is reversible, the
                backward pass writes it there.
            kept: Takes the input of each unit that is not reversible, and None for the others.
            y: What the last unit has emitted. Reversible units compute nothing before the backward pass.
        """
        if kept is None:
            return super().forward(x)
        for i, unit in enumerate(self):
            if y is None:
                kept.append(None if is_reversible(unit) else x)
                x = unit(x)
            else:  # what a reversible unit has emitted is what the next one has kept
                x = unit(x, [*kept, y][i + 1]) if is_reversible(unit) else unit(x)
        return x


def is_reversible(unit: nn.Module) -> bool:
    """Whether a unit can run again from its output, given as a second argument: `models.coupling.Reversible`."""
    return getattr(unit, "reversible", False)


@dataclass(frozen=True)
class Petra(Strategy):
    """PETRA (Rivaud et al. 2024, arXiv 2406.02052): parallel end-to-end training with reversible architectures.

    Down go the gradient of a block's input and that input itself: (g_{k-1}, x_{k-1}). The block below computes its own
    input from it, by the inverse at its weights of the moment, and pulls the gradient back there. So it keeps neither
    graph nor input, but for units that are not reversible: they keep their input, and run again. With
    `runtime.staleness` weights have changed since the forward pass, and the inverse is an approximation; without it
    gradients are those of backpropagation up to rounding. Raises UserError for a model without reversible units.
    """

    route: ClassVar[Route] = Route.CHAIN

    def modules(self, spec: BlockSpec) -> Mapping[str, nn.Module]:
        if not any(spec.reversible):
            raise UserError(
                "Petra runs blocks backward from their outputs, and no unit of this model is reversible: choose "
                "model=revnet, or strategy=checkpoint, which keeps inputs"
            )
        return {}

    def adapt(self, layers: nn.Module, spec: BlockSpec) -> nn.Module:
        return FromOutput(*layers) if isinstance(layers, nn.Sequential) and not spec.last else layers

    def step(self, block: Block, packet: Packet) -> Step:
        if block.last:
            x = enter(block, packet)
            out = x.at(block.layers(x.h))
            loss = task_loss(block, out.h, out.y)
            yield Send(out)
            backward(loss)
        else:
            again = block.again()  # with the buffers as they are before the first forward
            kept: list[Tensor | None] = []
            sends = [_forward(block, packet, kept)]
            packet = packet.at(packet.h.to("meta"))  # its size alone
            grad, y = yield sends.pop()
            h = kept[0] if kept[0] is not None else torch.empty_like(packet.h, device=y.device)
            x = enter(block, packet.at(h))
            with again:
                out = x.at(block.layers(x.h, kept, y))
            backward(None, out, (grad,))
        block.update()
        return (*x.take_grads(), x.h.detach())


def _forward(block: Block, packet: Packet, kept: list[Tensor | None]) -> Send:
    """The forward half; nothing else is left of it than what `kept` takes."""
    x = enter(block, packet)
    with torch.no_grad():
        return Send(x.at(block.layers(x.h, kept)))
