"""Gradients of numbers of 16 bits. float16 knows nothing below 6e-8, so that small gradients would become 0: inside a
block they are multiplied by a power of two, its scale, and whatever comes out is divided by it at once, exactly, in
float32 (Micikevicius et al. 2018, arXiv 1710.03740). Nobody outside the block sees a scaled number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from locallearn.errors import UserError

FIRST, LEAST = 2.0**16, 1.0
GROWTH_STEPS = 2000
"""The rule of `torch.amp.GradScaler`: halve the scale after an overflow, double it after this many steps without."""
_active: Scaler | None = None
_NO_CONTEXT = nullcontext()


class Scaler:
    """The scale of one block.

    state  float32 [2] on the CPU: the scale, and the steps since it last changed
    used   whether a gradient was ever scaled
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.state = torch.tensor([FIRST, 0.0])
        self.used = False
        self._now = 1.0

    @property
    def scale(self) -> float:
        return float(self.state[0])

    @property
    def exhausted(self) -> bool:
        """Whether no smaller scale is left to try."""
        return self.scale <= LEAST

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let `backward` and `grad` use this scale."""
        global _active  # one half of one block runs at a time
        before, _active = _active, self
        try:
            yield
        finally:
            _active = before

    @contextmanager
    def running(self) -> Iterator[float]:
        """Around the computation of gradients: those of the parameters come out divided by the scale, and are added to
        any that are there already."""
        before = [(p, p.grad) for p in self.parameters if p.grad is not None]
        for p, _ in before:
            p.grad = None
        self._now, self.used = self.scale, True
        try:
            yield self._now
            if found := [p.grad for p in self.parameters if p.grad is not None]:
                torch._foreach_mul_(found, 1 / self._now)
        finally:
            self._now = 1.0
            for p, grad in before:
                p.grad = grad if p.grad is None else p.grad.add_(grad)

    def divided(self, gradient: Tensor) -> Tensor:
        """A gradient that leaves the block."""
        return gradient if self._now == 1 else gradient / self._now

    def update(self, overflow: bool, grow: bool = True) -> None:
        """Halve the scale after an `overflow`, else count a step. Raises UserError for gradients that have none."""
        if not self.used and (overflow or grow):
            raise UserError(
                "precision=fp16 scales gradients in `locallearn.contract.backward`, and the strategy writes them "
                "without it: call backward(loss) instead of loss.backward(), or choose precision=bf16"
            )
        scale, steps = self.state.tolist()
        if overflow:
            scale, steps = max(scale / 2, LEAST), 0
        elif grow and (steps := steps + 1) == GROWTH_STEPS:
            scale, steps = scale * 2 if math.isfinite(scale * 2) else scale, 0
        self.state.copy_(torch.tensor([scale, steps]))


def under(scaler: Scaler | None) -> AbstractContextManager[None]:
    """To be entered around a half of a step of the block with this scale, or with none."""
    return scaler.active() if scaler is not None else _NO_CONTEXT


def scale() -> float:
    """By what gradients are multiplied at this moment of a backward pass."""
    return 1.0 if _active is None else _active._now


def leaf(t: Tensor) -> Tensor:
    """Let a leaf collect gradients without the scale of the block that reads it."""
    if _active is not None:
        t.register_hook(_active.divided)
    return t


def backward(
    roots: Sequence[Tensor], seeds: Sequence[Tensor | None], inputs: Sequence[nn.Parameter] | None = None
) -> None:
    """`torch.autograd.backward`, under the scale of the block whose half is running, if it has one."""
    if _active is None:
        torch.autograd.backward(roots, seeds, inputs=inputs)
        return
    with _active.running() as scale:
        ones = (torch.ones_like(root) if seed is None else seed for root, seed in zip(roots, seeds, strict=True))
        scaled = [(seed.float() * scale).to(root.dtype) for root, seed in zip(roots, ones, strict=True)]
        torch.autograd.backward(roots, scaled, inputs=inputs)


def grad(of: Tensor, at: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of `at`, a leaf, for the `gradient` of `of`, under the same scale; the graph is kept."""
    if _active is None:
        return torch.autograd.grad(of, at, gradient, retain_graph=True)[0]
    with _active.running() as scale:
        return torch.autograd.grad(of, at, (gradient.float() * scale).to(of.dtype), retain_graph=True)[0]


def unscaled(x: Tensor) -> AbstractContextManager[object]:
    """For gradients by forward mode, on the device of x: no autocast to float16, as no scale protects them."""
    half = torch.get_autocast_dtype(x.device.type) == torch.float16
    return torch.autocast(x.device.type, enabled=False) if half else _NO_CONTEXT


def widen(*modules: nn.Module | None) -> None:
    """Let modules hand out float32, whatever they compute in."""
    for module in modules:
        if module is not None:
            module.register_forward_hook(widened)


def widened(module: nn.Module, args: Any, output: Any) -> Any:
    """The forward hook that `widen` registers."""
    if isinstance(output, Tensor):
        return output.float() if output.is_floating_point() else output
    parts = [widened(module, args, part) for part in output] if isinstance(output, list | tuple) else None
    return output if parts is None else tuple(parts) if isinstance(output, tuple) else parts
