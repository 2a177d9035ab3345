"""Which modules a tracker watches, and the hooks that write what they emit. Hooks on forwards and on tensors only: the
backward hooks of modules break under in-place operations and several outputs."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.utils.rnn import PackedSequence

from locallearn.analysis.recording import EpochWriter
from locallearn.errors import UserError, did_you_mean

_SHOWN = 12


def choose(model: nn.Module, patterns: Iterable[str] | None) -> dict[str, nn.Module]:
    """The modules of `model` that match one of the patterns (see `Tracker`), in the model's order; None: those without
    children. The model itself goes by the name of its class, a module of several names by the first that matches."""
    known = {name or type(model).__name__: m for name, m in model.named_modules(remove_duplicate=False)}
    if patterns is None:
        return _once((name, m) for name, m in known.items() if not list(m.children()))
    matching: set[str] = set()
    for pattern in patterns:
        regex = "".join({"**": ".*", "*": "[^.]*"}.get(p, re.escape(p)) for p in re.split(r"(\*\*|\*)", pattern))
        matches = {name for name in known if re.fullmatch(regex, name)}
        if not matches:
            names = list(known)[1:] or list(known)
            more = f", ... ({len(names)} in all; `model.named_modules()` lists them)" if len(names) > _SHOWN else ""
            raise UserError(
                f"no module of the model matches {pattern!r}: {did_you_mean(pattern, names)}"
                f"its modules are {', '.join(names[:_SHOWN])}{more}"
            )
        matching |= matches
    if not matching:
        raise UserError("layers=[] tracks nothing: name a module, or leave layers out for all that have no children")
    return _once((name, m) for name, m in known.items() if name in matching)


def _once(named: Iterable[tuple[str, nn.Module]]) -> dict[str, nn.Module]:
    by_module: dict[nn.Module, str] = {}
    for name, module in named:
        by_module.setdefault(module, name)
    return {name: module for module, name in by_module.items()}


class Hooks:
    """The hooks of one epoch.

    named      the layers that the user named: what cannot be recorded of them is an error, of others a warning
    samples    size of the batch that runs, where it is known; what a layer emits must have a multiple of it as rows
    collect    keep the places of the outputs in the graph, for `back`
    """

    def __init__(self, writer: EpochWriter, named: set[str], dtype: torch.dtype, gradients: bool) -> None:
        self._writer, self._named, self._dtype, self._gradients = writer, named, dtype, gradients
        self._calls: dict[str, int] | None = None  # of each layer within the forward of the model that runs
        self._edges: list[Any] = []
        self._warned: set[str] = set()
        self.samples: int | None = None
        self.collect = False

    @contextmanager
    def attached(self, model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        with ExitStack() as stack:
            for name, module in modules.items():
                stack.callback(module.register_forward_hook(partial(self._saw, name)).remove)
            stack.callback(model.register_forward_pre_hook(self._begins).remove)
            stack.callback(model.register_forward_hook(self._ends, always_call=True).remove)
            yield

    def back(self, loss: Tensor, share: float) -> None:
        """Send `share` of the loss back to what the layers emitted since the last call, and to no parameter."""
        edges, self._edges = self._edges, []
        if loss.numel() != 1:
            raise UserError(f"the loss has shape {list(loss.shape)}: it must be one number, averaged over the samples")
        if not loss.requires_grad or not edges:
            raise UserError("the loss does not depend on what the tracked layers emit; choose others, or another loss")
        torch.autograd.grad(loss * share, edges, allow_unused=True)

    def _begins(self, module: nn.Module, args: object) -> None:
        self._calls = {}

    def _ends(self, module: nn.Module, args: object, output: object) -> None:
        self._calls = None

    def _saw(self, name: str, module: nn.Module, args: object, output: object) -> None:
        tensor = _first(output)
        if tensor is None:
            kind = f"a {type(output).__name__}" if output is not None else "nothing"
            return self._leave_out(name, f"emits {kind}, which holds no tensor")
        turned = isinstance(module, nn.RNNBase) and not module.batch_first and tensor.dim() == 3
        rows = tensor.transpose(0, 1) if turned else tensor
        if problem := self._problem(rows):
            return self._leave_out(name, problem)
        call = 1
        if self._calls is not None:
            call = self._calls[name] = self._calls.get(name, 0) + 1
        layer = name if call == 1 else f"{name}@{call}"
        try:
            start = self._writer.append(layer, self._numbers(layer, rows))
        except ValueError as error:
            raise UserError(
                f"layer {layer!r} emits samples of shape {error}: give samples of one shape, or leave the layer out"
            ) from error
        if self._gradients and tensor.requires_grad:
            tensor.register_hook(partial(self._arrived, layer, start, turned))
            if self.collect:
                self._edges.append(get_gradient_edge(tensor))

    def _arrived(self, layer: str, start: int, turned: bool, gradient: Tensor) -> None:
        if self._writer.open:
            rows = gradient.transpose(0, 1) if turned else gradient
            self._writer.put_gradients(layer, self._numbers(layer, rows), start)

    def _problem(self, rows: Tensor) -> str | None:
        """Why a tensor cannot be recorded."""
        if rows.layout is not torch.strided or rows.is_complex():
            return f"emits a {'complex' if rows.is_complex() else 'sparse or nested'} tensor"
        if not rows.dim() or (self.samples is not None and len(rows) % self.samples):
            of = f" for {self.samples} samples" if self.samples is not None else ""
            return f"emits shape {list(rows.shape)}{of}, whose first axis is not the sample"
        return None

    def _leave_out(self, name: str, problem: str) -> None:
        if name in self._named:
            raise UserError(f"layer {name!r} {problem}; track a module around it or inside it")
        if name not in self._warned:
            self._warned.add(name)
            warnings.warn(f"layer {name!r} {problem}: it is not recorded", stacklevel=2)

    def _numbers(self, layer: str, rows: Tensor) -> Any:
        numbers = rows.detach().to(self._dtype)
        if rows.dtype != self._dtype and layer not in self._warned and bool((numbers.isinf() & rows.isfinite()).any()):
            self._warned.add(layer)
            warnings.warn(
                f"layer {layer!r} holds numbers beyond {self._dtype}, recorded as infinity: choose a wider precision",
                stacklevel=2,
            )
        return numbers.cpu().numpy()


def _first(output: object) -> Tensor | None:
    """The first tensor of an output; None if it has none, or rows that are no samples (a packed sequence)."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, PackedSequence):
        return None
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return next((tensor for part in parts if (tensor := _first(part)) is not None), None)
