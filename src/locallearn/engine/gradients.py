"""The gradient that a strategy would apply, and the true one, at the same weights on one batch; nothing changes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from locallearn import seeds
from locallearn.analysis.quiet import buffers_kept
from locallearn.contract import cross_entropy
from locallearn.engine.block import TrainedBlock
from locallearn.engine.learner import Learner
from locallearn.engine.modes import set_modes
from locallearn.engine.stage import Stage


class Gradients(NamedTuple):
    """Of one block: for its parameters (units and head, by identity), and for its output [B, ...] (None if nothing
    came back to it)."""

    parameters: dict[nn.Parameter, Tensor]
    output: Tensor | None


def strategy_gradients(learner: Learner, inputs: Tensor, labels: Tensor) -> list[Gradients]:
    """What each block would learn from: one step of the strategy on inputs [B, ...] and labels [B] without an update.

    In training mode, with the dropout that the next step would draw.
    """
    found: list[Gradients] = [Gradients({}, None) for _ in learner.blocks]
    stage = learner.stage
    with ExitStack() as stack:
        stack.enter_context(unchanged(learner))
        for k, block in enumerate(learner.blocks):
            stack.enter_context(_collecting(block, found, k))
        # at once, on this batch, whatever the runtime, and beside what is under way
        alone = {"micro_batches": 1, "delays": [0] * len(stage.blocks)}
        alone |= {name: [deque() for _ in stage.blocks] for name in ("_waiting", "_messages")}
        for name, value in alone.items():
            stack.callback(setattr, stage, name, getattr(stage, name))
            setattr(stage, name, value)
        Stage.step(stage, learner.prepare(inputs), labels, learner.step_count, learner.total_steps)
    return found


def true_gradients(learner: Learner, inputs: Tensor, labels: Tensor) -> list[Gradients]:
    """Backpropagation's gradients at the same weights: one graph over the plain model, in training mode. Holds the
    activations of the whole model."""
    model = learner.model
    outputs: list[Tensor] = []
    parameters = [p for p in model.parameters() if p.requires_grad]
    with unchanged(learner), seeds.Undisturbed(learner.device):
        _training_mode(learner)
        with learner.stage.autocast():
            h = learner.prepare(inputs)
            for block, units in zip(learner.blocks, learner.cut, strict=True):
                block.step, block.micro = learner.step_count, 0
                block.reseed("forward")
                for i in units:
                    h = model.units[i](h)
                outputs.append(h)
            loss = cross_entropy(model.head(h), labels)
        grads = torch.autograd.grad(loss, [*parameters, *outputs], allow_unused=True)
    by_parameter = dict(zip(parameters, grads, strict=False))
    return [
        Gradients({p: g for p in _own(block) if (g := by_parameter[p]) is not None}, grads[len(parameters) + k])
        for k, block in enumerate(learner.blocks)
    ]


def _training_mode(learner: Learner) -> None:
    """Of the plain model, but for modules that their user keeps in eval mode."""
    set_modes(learner.blocks, range(len(learner.cut)))
    modes = [(m, m.training) for block in learner.blocks for root in block.roots() for m in root.modules()]
    learner.model.train()
    for module, mode in modes:
        module.training = mode


def _own(block: TrainedBlock) -> list[nn.Parameter]:
    """The trainable parameters of a block's units and head."""
    modules = (block.layers, block.head) if block.head is not None else (block.layers,)
    return [p for module in modules for p in module.parameters() if p.requires_grad]


@contextmanager
def _collecting(block: TrainedBlock, found: list[Gradients], k: int) -> Iterator[None]:
    """While it lasts, `block.update` collects the gradients and applies nothing."""

    def update(part: str = "main") -> None:
        optimizer = block.optimizers[part]
        for group in optimizer.param_groups if optimizer is not None else ():
            for p in group["params"]:
                if part == "main" and p.grad is not None:
                    found[k].parameters[p] = p.grad
                p.grad = None

    def arrived(gradient: Tensor) -> None:
        found[k] = found[k]._replace(output=gradient.detach())

    def watch(module: nn.Module, args: tuple, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(arrived)

    handle = block.layers.register_forward_hook(watch)
    block.update = update  # type: ignore[method-assign]
    try:
        yield
    finally:
        del block.update
        handle.remove()


@contextmanager
def unchanged(learner: Learner) -> Iterator[None]:
    """Put back buffers, modes, totals and positions; gradients are cleared."""
    roots = [learner.model, *(m for b in learner.blocks for m in (b.layers, b.auxiliary))]
    modes = [(m, m.training) for root in roots for m in root.modules()]
    positions = [(b, b.running(), (b.step, b.micro, b.progress)) for b in learner.blocks]
    try:
        with buffers_kept(*roots):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for block, running, position in positions:
            block.step, block.micro, block.progress = position
            block.resume(running)
        for _, p in learner.parameters():
            p.grad = None
