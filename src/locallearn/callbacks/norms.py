"""Norms of gradients and activations of every block."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from locallearn import names
from locallearn.callbacks.base import Callback, RunView
from locallearn.engine.block import TrainedBlock
from locallearn.errors import UserError


@dataclass
class Norms(Callback):
    """Adds to every record, that of `log_every` and that of the epoch, two numbers of each block in the last step:

    block/00/gradient_norm    the Euclidean norm of the gradient of a block's units, as the optimizer gets it
    block/00/activation_norm  the mean over samples of the Euclidean norm of what the block hands on

    Only these steps cost something. A block that does not learn in a step has no gradient.
    """

    _hooks: list[RemovableHandle] = field(init=False, default_factory=list, repr=False)
    _seen: dict[str, Tensor] = field(init=False, default_factory=dict, repr=False)

    def check(self, run: RunView, known: Callable[[], Collection[str]]) -> None:
        if run.learner.setup.compiled:
            raise UserError("callback=norms hooks into blocks, which compile=true would compile anew: leave one out")

    def start(self, run: RunView) -> None:
        self._watch(run)

    def step(self, run: RunView) -> None:
        if self._hooks:
            run.log(self._seen)
            self.end(run)
        self._watch(run)

    def end(self, run: RunView) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._seen = [], {}

    def _watch(self, run: RunView) -> None:
        if run.records:
            for block in run.learner.blocks:
                self._hooks += [*self._hooks_on(block)]

    def _hooks_on(self, block: TrainedBlock) -> list[RemovableHandle]:
        name = partial(names.at, names.BLOCK, block.spec.index)

        def emitted(module: nn.Module, args: Any, output: Tensor) -> None:
            if module.training:  # an evaluation may come before the step
                self._seen[name("activation_norm")] = output.detach().flatten(1).float().norm(dim=1).mean()

        def updated(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            norms = torch._foreach_norm([p.grad for p in block.layers.parameters() if p.grad is not None])
            if norms:
                self._seen[name("gradient_norm")] = torch.stack(norms).norm()

        main = block.optimizers["main"]
        hooks = [block.layers.register_forward_hook(emitted)]
        return hooks + ([main.register_step_pre_hook(updated)] if main is not None else [])
