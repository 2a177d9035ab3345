"""A step that changes nothing: the gradients that a strategy would apply."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from torch import Tensor, nn

from locallearn.analysis.quiet import buffers_kept, modes_kept
from locallearn.engine.block import TrainedBlock
from locallearn.engine.stage import Stage


class Gradients(NamedTuple):
    """Of one block: for its parameters (units and head, by identity), and for its output [B, ...] (None if nothing
    came back to it)."""

    parameters: dict[nn.Parameter, Tensor]
    output: Tensor | None


def trial_step(stage: Stage, inputs: Tensor, labels: Tensor, step: int, total: int | None) -> list[Gradients]:
    """What each block of a stage would learn from in `step` of `total` on inputs [B, ...] and labels [B].

    In training mode, with the dropout that the step would draw; at once, on the whole batch, whatever the runtime."""
    gradients = [Gradients({}, None) for _ in stage.blocks]
    with ExitStack() as stack:
        stack.enter_context(blocks_kept(stage.blocks))
        for k, block in enumerate(stage.blocks):
            stack.enter_context(_collecting(block, gradients, k))
        stage.published.publish_first()
        Stage(stage.blocks, stage.strategy, half=stage.half, micro_batches=1).step(inputs, labels, step, total)
    return gradients


@contextmanager
def blocks_kept(blocks: Sequence[TrainedBlock], *modules: nn.Module) -> Iterator[None]:
    """Put back buffers, modes, totals and positions of blocks and of the other `modules`; gradients are cleared."""
    roots = [*modules, *(root for block in blocks for root in block.roots())]
    positions = [(block, block.running(), (block.step, block.micro, block.progress)) for block in blocks]
    try:
        with modes_kept(*roots), buffers_kept(*roots):
            yield
    finally:
        for block, running, position in positions:
            block.step, block.micro, block.progress = position
            block.resume(running)
            block.clear_meters()
        for root in roots:
            root.zero_grad()


@contextmanager
def _collecting(block: TrainedBlock, gradients: list[Gradients], k: int) -> Iterator[None]:
    """While it lasts, `block.update` collects the gradients and applies nothing."""

    def update(part: str = "main") -> None:
        optimizer = block.optimizers[part]
        for group in optimizer.param_groups if optimizer is not None else ():
            for p in group["params"]:
                if part == "main" and p.grad is not None:
                    gradients[k].parameters[p] = p.grad
                p.grad = None

    def arrived(gradient: Tensor) -> None:
        gradients[k] = gradients[k]._replace(output=gradient.detach())

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
