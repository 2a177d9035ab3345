"""Decoupled neural interfaces: a block learns from a prediction of its gradient and does not wait for the true one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Interval
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.auxiliary.synthesizer import InputSynthesizer, Synthesizer
from locallearn.contract import (
    Block,
    BlockSpec,
    Feedback,
    Packet,
    Route,
    Send,
    Step,
    Strategy,
    backward,
    enter,
    task_loss,
)
from locallearn.objectives.base import numbers_of_input


@dataclass(frozen=True)
class DNI(Strategy):
    """Synthetic gradients (Jaderberg et al. 2017, arXiv 1608.05343).

    A synthesizer M_k predicts the gradient of the loss: ghat_k = M_k(h_k) / B, and block k learns from it at once,
    th_k <- th_k - lr (d h_k / d th_k)^T ghat_k. Its target comes from the block above, g_k = J_{k+1}^T ghat_{k+1} (the
    true gradient below the last block): L = mean of (M_k(sg[h_k]) - B g_k)^2. The synthesizer predicts the gradient of
    a sample's own loss, because that of the batch mean shrinks as the batch grows; and L is a mean over features,
    because with the paper's sum SGD diverges at a usual rate. The last block has its true gradient. Detached: h_k
    between blocks, ghat before it is used, the synthesizer's input and target. Sends the gradient of its input to the
    block below. Records `synthesizer_loss`, divided by that of predicting zero: it must fall below 1.

    warmup   share of training in which the blocks learn from the true gradient while the synthesizers learn
    mix      share of the true gradient in what a block learns from after that: 0 is DNI, 1 is backpropagation
             with synthesizers that only watch. Both options wait for the blocks above: the route is then a chain
    width    hidden channels of the synthesizers; 0: those of what they read (the paper: 1024 for layers of 256)
    depth    hidden layers of the synthesizers; 0: linear ones
    batch_norm         in the synthesizers, before every ReLU
    synthetic_inputs   fully unlocked (the paper's section 2.3): a block also predicts its input, from the network's,
             learns from that, and regresses the prediction on what the block below really hands on. The gradient of
             the predicted input is what the synthesizer below predicts from that input: the two travel together
    """

    warmup: Annotated[float, Interval(ge=0, le=1)] = 0.0
    mix: Annotated[float, Interval(ge=0, le=1)] = 0.0
    width: Annotated[int, Ge(0)] = 0
    depth: Annotated[int, Ge(0)] = 2
    batch_norm: bool = True
    synthetic_inputs: bool = False
    boxes: ClassVar[bool] = False
    conditional: ClassVar[bool] = False

    @property
    def route(self) -> Route:  # type: ignore[override]  # of the instance: the options decide it
        return Route.CHAIN if self.warmup or self.mix else Route.NEIGHBOR

    @property
    def separate(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"synthesizer", "inputs"} if self.synthetic_inputs else {"synthesizer"})

    def unread(self, specs: Sequence[BlockSpec]) -> Mapping[str, str]:
        if len(specs) == 1:
            return dict.fromkeys((field.name for field in fields(self)), "blocks=2 or more")
        mix = {"mix": "strategy.warmup below 1"} if self.warmup == 1 else {}
        hidden = () if self.depth else ("width", "batch_norm")
        return mix | dict.fromkeys(hidden, "strategy.depth=1 or more")

    def modules(self, spec: BlockSpec) -> Mapping[str, nn.Module]:
        modules: dict[str, nn.Module] = {}
        classes = spec.classes if self.conditional else 0
        synthesizer = partial(
            Synthesizer,
            width=self.width,
            depth=self.depth,
            batch_norm=self.batch_norm,
            classes=classes,
            task=spec.task,
        )
        if not spec.last:
            modules["synthesizer"] = synthesizer(spec.emits)
        if spec.index and self.synthetic_inputs:
            numbers_of_input(spec, "strategy.synthetic_inputs")
            modules["inputs"] = InputSynthesizer(spec.image, spec.reads, synthesizer(spec.reads))
        return modules

    def begin(self, packet: Packet) -> Packet:
        return packet.at(packet.h, packet.h) if self.synthetic_inputs else packet

    def step(self, block: Block, packet: Packet) -> Step:
        half = self._waiting if self.route is Route.CHAIN else self._unlocked
        return (yield from half(block, self.read(block, packet)))

    def _unlocked(self, block: Block, packet: Packet) -> Step:
        x = enter(block, packet)
        out = x.at(block.layers(x.h))
        if block.last:
            backward(task_loss(block, out.h, out.y), out, None)
        else:
            backward(None, out, (self.synthesize(block, out.h.detach(), out.y),))
        block.update()
        out = out.detach()
        target, at = self.target((yield Send(out, back=self.feedback(x))), out.h)
        if target is not None:
            self.fit_synthesizer(block, at, out.y, target)
        return None

    def _waiting(self, block: Block, packet: Packet) -> Step:
        """With the true gradient: during warm-up, and mixed in."""
        x = enter(block, packet)
        out = x.at(block.layers(x.h))
        if block.last:
            loss = task_loss(block, out.h, out.y)
            yield Send(out)
            backward(loss, out, None)
            block.update()
            return self.feedback(x)
        h = out.h.detach()
        synthetic = self.synthesize(block, h, out.y)
        true, at = self.target((yield Send(out)), h)
        assert true is not None, "under a chain every block above answers"
        share = 1.0 if block.progress < self.warmup else self.mix
        backward(None, out, (share * true + (1 - share) * synthetic,))
        block.update()
        self.fit_synthesizer(block, at, out.y, true)
        return self.feedback(x)

    def feedback(self, x: Packet) -> Feedback:
        """For the block below: the gradient of what this one has read and, if that was a prediction, the prediction."""
        grads = x.take_grads()
        return (grads[0], x.h.detach()) if self.synthetic_inputs else grads

    def target(self, message: Feedback | None, h: Tensor) -> tuple[Tensor | None, Tensor]:
        """The gradient from above, and where it was taken: at h, or at the prediction of h that was read there."""
        if message is None:
            return None, h
        read = message[1] if self.synthetic_inputs else h
        assert read is not None
        return message[0], read

    def synthesize(self, block: Block, h: Tensor, y: Tensor) -> Tensor:
        """ghat_k [B, ...] for the output h of a block. Batch statistics of the synthesizer move here, and only here."""
        with torch.no_grad():
            return block.auxiliary["synthesizer"](h, y).to(h.dtype) / len(h)

    def fit_synthesizer(self, block: Block, h: Tensor, y: Tensor, target: Tensor) -> None:
        """One step of the synthesizer towards the gradient `target` [B, ...] of h. It runs again: no graph was kept."""
        with block.again():
            predicted = block.auxiliary["synthesizer"](h, y)
        _regress(block, "synthesizer", predicted, len(h) * target)

    def read(self, block: Block, packet: Packet) -> Packet:
        """What a block reads: the packet, or with `synthetic_inputs` its own prediction of it."""
        if not self.synthetic_inputs or block.spec.index == 0:
            return packet
        predicted = block.auxiliary["inputs"](packet.side[0], packet.y)
        _regress(block, "inputs", predicted, packet.h)
        return packet.at(predicted.detach().to(packet.h.dtype))


@dataclass(frozen=True)
class CDNI(DNI):
    """Conditional synthetic gradients: the synthesizers see the label, too (same paper, section 2.2).

    ghat_k = M_k(h_k, onehot(y)) / B. Nothing else differs from DNI; the label is not needed at inference, because
    synthesizers are not.
    """

    conditional: ClassVar[bool] = True


def _regress(block: Block, part: str, predicted: Tensor, target: Tensor) -> None:
    """One step on the mean squared error; its ratio to that of a zero prediction is recorded."""
    target = target.detach().to(predicted.dtype)
    loss = F.mse_loss(predicted, target)
    zero = target.square().mean()
    backward(loss)
    block.update(part)
    with torch.no_grad():
        block.note(f"{part}_loss", torch.where(zero > 0, loss / zero, torch.ones_like(loss)))
