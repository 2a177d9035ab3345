"""Run modules to look at them, and leave no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def undisturbed(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards modes, buffers and the global random state are as before."""
    modes = [(m, m.training) for root in modules for m in root.modules()]
    buffers = [(b, b.clone()) for root in modules for b in root.buffers()]
    gpus = {t.device for root in modules for t in (*root.parameters(), *root.buffers()) if t.is_cuda}
    with torch.random.fork_rng(devices=list(gpus)), torch.no_grad():
        for root in modules:
            root.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for buffer, before in buffers:
                if not buffer.is_meta and not torch.equal(buffer, before):
                    buffer.copy_(before)
