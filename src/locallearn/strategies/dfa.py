"""Direct feedback alignment: the output error goes straight to every block, through a fixed random projection."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn import seeds
from locallearn.contract import Block, BlockSpec, Packet, Route, Send, Size, Step, Strategy, Task, backward, task_loss
from locallearn.errors import UserError
from locallearn.scaling import unscaled
from locallearn.task import POSITION

HE = math.sqrt(6)
"""The scale at which the entries of a matrix have He's bound, sqrt(6 / size)."""


class FeedbackProjection(nn.Module):
    """e [B, classes] -> e B, as large as a block's output [B, *size]; without parameters. Of errors at every position,
    [B, T, classes] or [B, classes, h, w], each is projected by itself; those of a map are first summed in each cell of
    the block's.

    matrix  [classes, n]: n is the product of `size`, or fewer, one for each channel, and then repeated over space
    shape   of e B without the batch, such that it broadcasts to `size`
    """

    matrix: Tensor

    def __init__(self, matrix: Tensor, shape: Size, size: Size) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.shape, self.size = shape, size

    def forward(self, error: Tensor) -> Tensor:
        with unscaled(error):
            return self.projected(error)

    def projected(self, error: Tensor) -> Tensor:
        if error.dim() == 3:
            return error.to(self.matrix.dtype) @ self.matrix  # [B, T, D]
        if error.dim() == 4:
            cells = error.shape[2:].numel() / math.prod(self.size[1:])
            error = (
                F.adaptive_avg_pool2d(error, (self.size[1], self.size[2])) * cells
            )  # sums over the error's positions in a cell
            return (error.to(self.matrix.dtype).movedim(1, 3) @ self.matrix).movedim(3, 1)  # [B, C, H, W]
        projected = error.to(self.matrix.dtype) @ self.matrix  # [B, n]
        return projected.view(-1, *self.shape).expand(-1, *self.size)


@dataclass(frozen=True)
class DFA(Strategy):
    """Direct feedback alignment (Nokland 2016, arXiv 1609.01596; Launay et al. 2020, arXiv 2006.12878).

    Every block, the last one too, learns from ghat_k = e B_k in the place of dL/dh_k, with e = dL/dlogits [B, classes]
    and B_k fixed and random; inside a block ghat_k passes on by exact backprop. The head alone has its true gradient
    (if it has no weights the output layer is in the last block, which then has its true gradient). Detached at every
    border and before the head; the last block sends e to all, so that all can learn at the same time.

    `blocks=max` is layer-wise DFA; with fewer blocks there are fewer projections, each for several layers. In the paper
    the error enters behind a layer's activation, da = (e B) * f'(a); here it enters at the end of the block, behind
    norm, activation and pool, and passes back through these: the same where a unit is a linear layer and an activation.

    Where the task asks at every position (tokens, pixels) the error at each goes to the features at the same one
    through one matrix [classes, channels], whatever `projection` says.

    projection  full: a random number for each feature of h; channel: one per channel, the same at all positions (a
                sequence [T, D] has D channels). For vectors both are the same. Of a map [C, H, W] full needs
                classes * C * H * W numbers, channel H * W times fewer
    shared      one matrix for all blocks, of which each reads the leading columns (Launay et al.), instead of
                independent ones
    scale       multiplies B. At 1 its entries are uniform in +-1/sqrt(size of h), or of the largest h if shared: those
                of a linear layer from h to the logits, as PyTorch initialises it, so that |ghat| is |e| / sqrt(3)
                whatever the size. ReLU nets without norms die at rates that backprop bears: lower the rate
    """

    projection: Literal["full", "channel"] = "full"
    shared: bool = False
    scale: Annotated[float, Gt(0)] = 1.0
    route: ClassVar[Route] = Route.BROADCAST
    boxes: ClassVar[bool] = False
    priced: ClassVar[bool] = True

    def unread(self, specs: Sequence[BlockSpec]) -> Mapping[str, str]:
        if specs[0].task.form == POSITION:
            return {"projection": "data=NAME that asks once for each sample"}
        maps = any(len(spec.emits) > 1 for spec in specs)
        return {} if maps else {"projection": "model=NAME whose blocks emit maps"}

    def modules(self, spec: BlockSpec) -> Mapping[str, nn.Module]:
        shape, positions = self._shape(spec.emits, spec.task), spec.task.form == POSITION
        if self.shared:
            shapes = [self._shape(size, spec.task) for size in spec.sizes]
            columns, size = max(map(math.prod, shapes)), max(map(math.prod, shapes if positions else spec.sizes))
            uniform = torch.rand(spec.classes, columns, generator=seeds.generator(spec.seed, "dfa"), device="cpu")
            uniform = uniform[:, : math.prod(shape)].clone()
        else:
            uniform, size = torch.rand(spec.classes, math.prod(shape)), math.prod(shape if positions else spec.emits)
        return {"feedback": FeedbackProjection((2 * uniform - 1) * (self.scale / math.sqrt(size)), shape, spec.emits)}

    def _shape(self, size: Size, task: Task) -> Size:
        """The shape of e B for a block that emits `size`, without the batch."""
        if task.form == POSITION:
            if len(size) not in (2, 3):
                raise UserError(
                    f"DFA sends the error at every position to that position, but a block emits {list(size)}: cut the "
                    "model where it emits sequences [T, D] or maps [C, H, W], or choose another strategy"
                )
            return (1, size[-1]) if len(size) == 2 else (size[0], 1, 1)
        if self.projection == "full" or len(size) == 1:
            return size
        return (size[0], *[1] * (len(size) - 1)) if len(size) > 2 else (1, size[-1])

    def step(self, block: Block, packet: Packet) -> Step:
        out = packet.at(block.layers(packet.h))
        hidden = True
        if block.head is None:
            message = yield Send(out)
            assert message is not None
            (error,) = message
            assert error is not None
        else:
            hidden = next(block.head.parameters(), None) is not None
            head = packet.at(block.head(out.h.detach() if hidden else out.h))
            logits = head.h.detach().requires_grad_()
            loss = block.spec.task.loss(logits, packet.y)
            block.report(loss, logits, packet.y)
            yield Send(out)
            (error,) = torch.autograd.grad(loss, logits)
            backward(None, head, (error,))
            error = self.signal(error, block.spec.task.count(packet.y))
        if hidden:
            backward(None, out, (block.auxiliary["feedback"](error).to(out.h.dtype),))
        block.update()
        return (error,)

    def signal(self, error: Tensor, count: Tensor) -> Tensor:
        """What is projected, of the error e [B, classes] of a batch of `count` items."""
        return error


@dataclass(frozen=True)
class SignDFA(DFA):
    """sDFA, the control of DRTP (Frenkel, Lefebvre & Bol 2021, arXiv 1909.01311): ghat_k = sign(e) B_k / n, of n items.

    All else is DFA's. With softmax or sigmoid outputs p the sign of e, which is that of p - t, is 1 - 2t wherever p has
    not rounded to 0 or 1: of the error it tells the label alone.
    """

    scale: Annotated[float, Gt(0)] = HE

    def signal(self, error: Tensor, count: Tensor) -> Tensor:
        return error.sign() / count.clamp(min=1)


@dataclass(frozen=True)
class DRTP(DFA):
    """Direct random target projection (Frenkel, Lefebvre & Bol 2021, arXiv 1909.01311).

    Every block learns from ghat_k = t B_k / n in the place of dL/dh_k, with the target t [B, classes] (one-hot labels,
    say), n items and B_k fixed and random; inside a block ghat_k passes on by exact backprop, and the head alone has
    its true gradient. Detached at every border and before the head; sends nothing: the labels are in the packet, so
    that no block waits for another.

    In the authors' code the hidden signals are sums over the batch and the output's gradient is a mean, which Adam
    hides and plain gradient descent does not; here both are means. Blocks should end behind a bounded activation, as
    theirs do (tanh).

    scale  multiplies B: at sqrt(6) its entries are uniform in +-sqrt(6 / size of h), He's bound, as in their code
    """

    scale: Annotated[float, Gt(0)] = HE
    route: ClassVar[Route] = Route.NONE

    def step(self, block: Block, packet: Packet) -> Step:
        out = packet.at(block.layers(packet.h))
        yield Send(out)
        task = block.spec.task
        hidden = True
        if block.head is not None:
            hidden = next(block.head.parameters(), None) is not None
            backward(task_loss(block, out.h.detach() if hidden else out.h, packet.y))
        if hidden:
            target = task.context(packet.y, block.spec.classes) / task.count(packet.y).clamp(min=1)
            backward(None, out, (block.auxiliary["feedback"](target).to(out.h.dtype),))
        block.update()
        return None
