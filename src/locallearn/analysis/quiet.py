"""Look at modules and leave no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from locallearn.seeds import Undisturbed


@contextmanager
def modes_kept(*modules: nn.Module) -> Iterator[None]:
    """Afterwards every module is in the mode that it was in. A user's own `train` is not called: what else it does
    could not be undone."""
    modes = [(vars(m), m.training) for m in _all(modules)]  # `vars`, for setting an attribute of a module is slow
    try:
        yield
    finally:
        for attributes, mode in modes:
            attributes["training"] = mode


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode; see `modes_kept`."""
    with modes_kept(*modules):
        for m in _all(modules):
            vars(m)["training"] = False
        yield


@contextmanager
def buffers_kept(*modules: nn.Module) -> Iterator[None]:
    """Afterwards every buffer is what it was before, whether it was written to or replaced by another tensor."""
    buffers = [(m, name, b, b.clone()) for m in _all(modules) for name, b in m.named_buffers(recurse=False)]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                if getattr(module, name) is not buffer:
                    setattr(module, name, buffer)
                if not buffer.is_meta and not torch.equal(buffer, before):
                    buffer.copy_(before)


@contextmanager
def undisturbed(*modules: nn.Module, gradients: bool = False) -> Iterator[None]:
    """Evaluation mode, with or without gradients; modes, buffers and the global random state are put back."""
    devices = {t.device for root in modules for t in (*root.parameters(), *root.buffers())}
    with ExitStack() as stack:
        for device in devices or {torch.device("cpu")}:
            stack.enter_context(Undisturbed(device))
        stack.enter_context(buffers_kept(*modules))
        stack.enter_context(evaluating(*modules))
        stack.enter_context(torch.set_grad_enabled(gradients))
        yield


class Rerun:
    """A second forward that computes what the first one did and moves no buffer; may be entered several times.

    It keeps the buffers as they are when it is made, which is before the first forward where that moves what it
    computes with (spectral norm). While it is entered, modules read and write copies of these; a graph that is made
    meanwhile stays valid, for nothing is written back. PyTorch's batch norms, most of all buffers, do not compute with
    what they move: they are told not to, which needs no copy.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self._norms: list[_BatchNorm] = []
        self._buffers: list[tuple[nn.Module, str, Tensor]] = []
        copies: dict[int, Tensor] = {}  # a buffer of two modules stays one
        for module in _all(modules):
            if isinstance(module, _BatchNorm) and type(module).forward is _BatchNorm.forward:
                self._norms.append(module)
                continue
            for name, buffer in module._buffers.items():  # `named_buffers` takes ten times as long
                if buffer is None:
                    continue
                if id(buffer) not in copies:
                    copies[id(buffer)] = buffer.detach().clone()
                self._buffers.append((module, name, copies[id(buffer)]))

    def __enter__(self) -> None:
        now = {id(kept): kept.clone() for _, _, kept in self._buffers}
        self._own = [getattr(module, name) for module, name, _ in self._buffers]
        for module, name, kept in self._buffers:
            setattr(module, name, now[id(kept)])
        self._tracking = [m.track_running_stats for m in self._norms]
        for m in self._norms:
            m.track_running_stats = False

    def __exit__(self, *exception: object) -> None:
        for (module, name, _), own in zip(self._buffers, self._own, strict=True):
            setattr(module, name, own)
        for m, tracks in zip(self._norms, self._tracking, strict=True):
            m.track_running_stats = tracks


def _all(roots: tuple[nn.Module, ...]) -> list[nn.Module]:
    """Every module of these, once."""
    return list({m: None for root in roots for m in root.modules()})
