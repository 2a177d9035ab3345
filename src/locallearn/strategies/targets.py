"""Target propagation: what comes down is what a block should have emitted, not a gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from locallearn import seeds
from locallearn.contract import Block, BlockSpec, Packet, Route, Send, Size, Step, Strategy, backward, task_loss
from locallearn.errors import UserError
from locallearn.objectives.base import wide
from locallearn.scaling import unscaled
from locallearn.task import CLASSIFICATION

MOST_WEIGHTS = 2**27
"""Of the matrices between all blocks together: half a GB in float32, four times that with gradients and Adam."""


def matrices_fit(spec: BlockSpec) -> None:
    """Raise UserError where dense matrices between what neighbouring blocks emit would fill the memory."""
    counts = [(math.prod(below) * math.prod(above), below, above) for below, above in pairwise(spec.sizes)]
    count = sum(each for each, _, _ in counts)
    if count > MOST_WEIGHTS:
        _, below, above = max(counts)
        raise UserError(
            f"block {spec.index}: matrices between what blocks emit, of which the largest leads from {list(above)} to "
            f"{list(below)}, have {count:,} numbers together, but at most {MOST_WEIGHTS:,} are allowed: cut the model "
            "where maps are small, as in an mlp or lenet, or choose another strategy"
        )


class Inverse(nn.Module):
    """g(h) = tanh(V h): what a block emits [B, *emits] -> the shape of what it reads [B, *reads]. V is uniform in
    +-bound, and fixed unless it `learns`."""

    matrix: Tensor

    def __init__(self, emits: Size, reads: Size, bound: float, learns: bool) -> None:
        super().__init__()
        matrix = (2 * torch.rand(math.prod(emits), math.prod(reads)) - 1) * bound
        if learns:
            self.matrix = nn.Parameter(matrix)
        else:
            self.register_buffer("matrix", matrix)
        self.reads = reads

    def of(self, h: Tensor) -> Tensor:
        """g(h)."""
        with unscaled(h):
            return torch.tanh(h.flatten(1).to(self.matrix.dtype) @ self.matrix).unflatten(1, self.reads)

    def forward(self, h: Tensor, away: Tensor) -> Tensor:
        """g(h + away) - g(h), to all digits where both are nearly equal."""
        with unscaled(h):
            below, step = (t.flatten(1).to(self.matrix.dtype) @ self.matrix for t in (h, away))
            return (torch.tanh(step) * (1 - torch.tanh(below + step) * torch.tanh(below))).unflatten(1, self.reads)


@dataclass(frozen=True)
class FixedWeightDTP(Strategy):
    """Fixed-weight difference target propagation, FW-DTP (Shibuya et al. 2023, arXiv 2212.10352).

    The target of the logits is z - step_size e, with e = dL_i/dz of each sample; that of what a block reads is

        tau_{k-1} = g_k(tau_k) + h_{k-1} - g_k(h_k),    g_k(h) = tanh(V_k h), V_k fixed and random.

    Block k minimises |h_k - tau_k|^2, a mean over the batch of sums over features, and the head |z - tau|^2. What a
    block reads is detached; tau_{k-1} - h_{k-1} goes down from block to block.

    step_size  alpha: how far the logits are moved
    bound      V is uniform in +-bound
    """

    step_size: Annotated[float, Gt(0)] = 0.04
    bound: Annotated[float, Gt(0)] = 1e-3
    route: ClassVar[Route] = Route.CHAIN
    tasks: ClassVar[frozenset[str]] = frozenset({CLASSIFICATION})
    needs: ClassVar[str] = "moves one answer for each sample"
    feedback_steps = 0

    def modules(self, spec: BlockSpec) -> Mapping[str, nn.Module]:
        matrices_fit(spec)
        learns = self.feedback_steps > 0
        modules = {"inverse": Inverse(spec.emits, spec.reads, self.bound, learns)} if spec.index else {}
        if spec.last:
            modules["head_inverse"] = Inverse((spec.classes,), spec.emits, self.bound, learns)
        return modules

    def step(self, block: Block, packet: Packet) -> Step:
        again = [block.again() for _ in range(self.feedback_steps)]
        out = packet.at(block.layers(packet.h))
        message = yield Send(out)
        h, count = out.h.detach(), block.spec.task.count(packet.y).clamp(min=1)
        for number, each in enumerate(again):
            self.fit_inverses(block, packet, h, each, number)
        loss: Tensor | None = None
        if block.spec.last:
            away, loss = self._of_head(block, h, packet.y)
        else:
            (away,) = message
        backward(loss, out, ((-2 / count * away).to(h.dtype),))
        block.update()
        with torch.no_grad():
            return (block.auxiliary["inverse"](h, away) if block.spec.index else None,)

    def fit_inverses(
        self, block: Block, packet: Packet, h: Tensor, again: AbstractContextManager[None], number: int
    ) -> None:
        """One update of the inverses of a block that has read `packet` and emits h, where they learn."""

    def _of_head(self, block: Block, h: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """How far from what the last block emits its target is, and the loss from which its head learns."""
        assert block.head is not None
        logits = block.head(h)
        true = block.spec.task.loss(logits, y)
        block.report(true, logits, y)
        with torch.no_grad():
            z = wide(logits.detach())
            error = block.spec.task.error(z, y) * block.spec.task.count(y)
            away = block.auxiliary["head_inverse"](z, -self.step_size * error)
        # |z - tau|^2 with tau = z - alpha e has the gradient 2 alpha e
        return away, 2 * self.step_size * true if true.requires_grad else None


@dataclass(frozen=True)
class DTP(FixedWeightDTP):
    """Difference target propagation with inverses that learn: by local difference reconstruction losses (Ernoult et al.
    2022, arXiv 2201.13415), or with reconstruction=dtp as at first (Lee, Zhang, Fischer & Bengio 2015, arXiv
    1412.7525).

    The targets of FW-DTP, with inverses g_k(h) = tanh(V_k h) that learn before targets are made, `feedback_steps` times
    in a batch, with an optimizer of their own, from x = h_{k-1}, q = x + sigma N(0, 1), r = h_k + sigma N(0, 1):

        dtp     |g(f(q)) - q|^2, which needs activations between -1 and 1
        l_drl   -(q - x)^T (g(f(q)) - g(h_k)) + |g(r) - g(h_k)|^2 / 2, least where g has the transposed Jacobian of f

    a mean over the batch of sums over features; f(q) is a constant. The head has an inverse, too.

    step_size, bound  as in FW-DTP; `bound` is that of the first V_k
    reconstruction    the loss of the inverses, l_drl or dtp
    noise             sigma
    feedback_steps    updates of the inverses in each batch
    """

    bound: Annotated[float, Gt(0)] = 1e-2
    reconstruction: Literal["l_drl", "dtp"] = "l_drl"
    noise: Annotated[float, Gt(0)] = 1e-2
    feedback_steps: Annotated[int, Ge(1)] = 5
    separate: ClassVar[frozenset[str]] = frozenset({"inverse", "head_inverse"})

    @property
    def repeats(self) -> bool:  # type: ignore[override]
        return self.feedback_steps > 1

    def fit_inverses(
        self, block: Block, packet: Packet, h: Tensor, again: AbstractContextManager[None], number: int
    ) -> None:
        x, states = packet.h, dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]()
        with torch.no_grad():
            q, q_head = (t + self.noise * seeds.noise_like(t, number, i) for i, t in enumerate((x, h)))
            z = h if block.head is None else block.head(h)
            with again:
                if block.spec.index:
                    states["inverse"] = x, q, h, block.layers(q)
                if block.head is not None:
                    states["head_inverse"] = h, q_head, z, block.head(q_head)
        known = (packet.y >= 0).to(x.dtype)
        for i, (name, of_part) in enumerate(states.items(), start=2):
            errors = self.reconstruction_errors(block.auxiliary[name], *of_part, (number, i))
            loss = (errors * known).sum() / block.spec.task.count(packet.y).clamp(min=1)
            block.note(f"{name}_loss", loss)
            backward(loss)
            block.update(name)

    def reconstruction_errors(
        self, inverse: nn.Module, x: Tensor, q: Tensor, h: Tensor, up: Tensor, number: tuple[int, int]
    ) -> Tensor:
        """Of each sample [B]: of what was read x, with noise q, and what came of both, h and `up`."""
        assert isinstance(inverse, Inverse)
        if self.reconstruction == "dtp":
            return _summed((inverse.of(up) - wide(q)).square())
        back = inverse(h, self.noise * seeds.noise_like(h, *number))
        return _summed(back.square() / 2 - wide(q - x) * inverse(h, up - h))


def _summed(errors: Tensor) -> Tensor:
    """Over features: [B, ...] -> [B]"""
    return errors.flatten(1).sum(1)


@dataclass(frozen=True)
class CounterCurrent(Strategy):
    """Counter-current learning (Kao & Hariharan 2024, arXiv 2409.19841).

    Beside the blocks runs a net in the other direction, from the classes to the input: c_{K+1} is the N x N identity
    and c_k = ELU(V_k c_{k+1}), N vectors as long as what block k of 1..K emits, whatever the batch. Block k minimises

        mean over samples and classes of (h_k c_k^T - [y = class])^2 * 128 / D_k,

    from which it and V_k learn; the head learns from the true loss. All that crosses a border is detached. Each block
    sends its c_k [N, D_k] down.
    """

    route: ClassVar[Route] = Route.CHAIN
    tasks: ClassVar[frozenset[str]] = frozenset({CLASSIFICATION})
    needs: ClassVar[str] = "has a vector for each class"

    def modules(self, spec: BlockSpec) -> Mapping[str, nn.Module]:
        matrices_fit(spec)
        above = spec.classes if spec.last else math.prod(spec.sizes[spec.index + 1])
        return {"feedback": nn.Sequential(nn.Linear(above, math.prod(spec.emits), bias=False), nn.ELU())}

    def step(self, block: Block, packet: Packet) -> Step:
        spec = block.spec
        h = block.layers(packet.h)
        message = yield Send(packet.at(h))
        if spec.last:
            above = torch.eye(spec.classes, dtype=h.dtype, device=h.device)
        else:
            (above,) = message
        c = block.auxiliary["feedback"](above)
        loss = self.local_loss(h, c, packet.y, spec)
        if spec.last:
            block.note("local_loss", loss)
            true = task_loss(block, h.detach(), packet.y)
            loss = loss + true
        else:
            block.report(loss)
        backward(loss)
        block.update()
        return (c.detach() if spec.index else None,)

    def local_loss(self, h: Tensor, c: Tensor, y: Tensor, spec: BlockSpec) -> Tensor:
        """Of what a block emits, h [B, ...], and the vectors of the classes, c [N, D]."""
        with unscaled(h):
            known = (y >= 0).to(h.dtype)[:, None]
            agree = wide(h.flatten(1)) @ wide(c).t()
        wanted = spec.task.context(y, spec.classes).to(agree.dtype)
        count = spec.task.count(y).clamp(min=1) * spec.classes
        return ((agree - wanted).square() * known).sum() / count * (128 / c.shape[1])
