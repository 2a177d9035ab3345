"""The gradient that a strategy would apply, and the true one, at the same weights on one batch; nothing changes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from locallearn import seeds
from locallearn.engine.block import TrainedBlock, set_modes
from locallearn.engine.learner import Learner
from locallearn.engine.trial import Gradients, blocks_kept, trial_step


def unchanged(learner: Learner) -> AbstractContextManager[None]:
    """Put back buffers, modes, totals and positions; gradients are cleared."""
    return blocks_kept(learner.blocks, learner.model)


def strategy_gradients(learner: Learner, inputs: Tensor, labels: Tensor) -> list[Gradients]:
    """What each block would learn from: one step of the strategy on inputs [B, ...] and labels [B] without an update.

    In training mode, with the dropout that the next step would draw. Where a strategy updates several times in a batch
    (`repeats`), as if no earlier update had been.
    """
    total = learner.setup.total_steps
    return trial_step(learner.stage, learner.prepare(inputs), labels, learner.step_count, total)


def true_gradients(learner: Learner, inputs: Tensor, labels: Tensor) -> list[Gradients]:
    """Backpropagation's gradients at the same weights: one graph over the plain model, in training mode. Holds the
    activations of the whole model."""
    model = learner.model
    outputs: list[Tensor] = []
    parameters = [p for p in model.parameters() if p.requires_grad]
    with unchanged(learner), seeds.Undisturbed(learner.device):
        _training_mode(learner)
        with learner.stage.autocast() if learner.stage.half != torch.float16 else nullcontext():  # none is scaled
            h = learner.prepare(inputs)
            for block, units in zip(learner.blocks, learner.cut, strict=True):
                block.step, block.micro = learner.step_count, 0
                block.reseed("forward")
                for i in units:
                    h = model.units[i](h)
                outputs.append(h)
            loss = learner.setup.task.loss(model.head(h), labels)
        tensors = [*parameters, *(h for h in outputs if h.requires_grad)]  # not of frozen blocks at the bottom
        grads = dict(zip(map(id, tensors), torch.autograd.grad(loss, tensors, allow_unused=True), strict=True))
    return [
        Gradients({p: g for p in _own(block) if (g := grads[id(p)]) is not None}, grads.get(id(outputs[k])))
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
