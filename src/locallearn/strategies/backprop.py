"""Backpropagation, block by block, and its memory baseline with recomputation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from locallearn.contract import Block, Packet, Route, Send, Step, Strategy, backward, enter, task_loss


@dataclass(frozen=True)
class Backprop(Strategy):
    """Backpropagation (Rumelhart, Hinton & Williams 1986): g_{k-1} = J_k^T g_k, and block k learns from g_k.

    The graph is cut at block borders and the gradient carried across, which changes no number. Sends g_{k-1} [B, ...]
    down, the gradient of what the block has read.
    """

    route: ClassVar[Route] = Route.CHAIN
    priced: ClassVar[bool] = True

    def step(self, block: Block, packet: Packet) -> Step:
        x = enter(block, packet)
        out = x.at(block.layers(x.h))
        loss = task_loss(block, out.h, out.y) if block.last else None
        grads = yield Send(out)
        backward(loss, out, grads)
        block.update()
        return x.take_grads()


@dataclass(frozen=True)
class Checkpoint(Strategy):
    """Backpropagation with recomputation (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv
    1604.06174).

    A block keeps only its input and runs again when its feedback arrives: the gradients of backprop for the activation
    memory of one block, at the price of a second forward. The last block's feedback comes at once: it keeps its graph.
    Buffers, such as batch statistics, move in the first forward only, and dropout draws the same numbers twice. A
    forward hook of the user's runs twice, as it does under `torch.utils.checkpoint`. Sends what backprop sends.
    """

    route: ClassVar[Route] = Route.CHAIN
    priced: ClassVar[bool] = True

    def step(self, block: Block, packet: Packet) -> Step:
        x = enter(block, packet)
        if block.last:
            out = x.at(block.layers(x.h))
            loss = task_loss(block, out.h, out.y)
            yield Send(out)
            backward(loss, out, None)
        else:
            again = block.again()  # with the buffers as they are before the first forward
            with torch.no_grad():
                out = x.at(block.layers(x.h))
            grads = yield Send(out)
            with again:
                out = x.at(block.layers(x.h))
            backward(None, out, grads)
        block.update()
        return x.take_grads()
