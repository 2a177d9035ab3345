"""Look at modules and leave no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode that it was in."""
    modes = [(m, m.training) for root in modules for m in root.modules()]
    for root in modules:
        root.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def undisturbed(*modules: nn.Module, gradients: bool = False) -> Iterator[None]:
    """Evaluation mode, with or without gradients; afterwards modes, buffers and the global random state are as
    before."""
    buffers = [(b, b.clone()) for root in modules for b in root.buffers()]
    gpus = {t.device for root in modules for t in (*root.parameters(), *root.buffers()) if t.is_cuda}
    with torch.random.fork_rng(devices=list(gpus)), evaluating(*modules), torch.set_grad_enabled(gradients):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    if not buffer.is_meta and not torch.equal(buffer, before):
                        buffer.copy_(before)
