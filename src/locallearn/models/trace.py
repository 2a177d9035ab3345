"""Trace a user's module into one straight line of operations that serves training and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from locallearn import accelerator
from locallearn.analysis.quiet import undisturbed
from locallearn.errors import UserError
from locallearn.inputs import Inputs
from locallearn.models.watch import Watch

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Call(NamedTuple):
    """One call of a submodule: its first node's position and what it returned (None if not one tensor)."""

    start: int
    value: fx.Node | None


class Frozen(Exception):
    """A trace would freeze what the module does anew in every forward; says what that is."""


class Tracer(fx.Tracer):
    """fx's tracer, which follows only the first argument, from which it takes several `inputs`, keeps as one piece any
    submodule that fx cannot look into or would freeze, and reads `self.training` when the graph runs: one graph serves
    training and evaluation."""

    proxy_buffer_attributes = True  # a buffer is read when the graph runs

    def __init__(self, inputs: Inputs | None = None) -> None:
        super().__init__()
        self.inputs = inputs
        self.calls: dict[str, list[Call]] = {}
        self.opaque: dict[str, str] = {}  # submodules kept whole, and why
        self.asked_mode = False  # the outermost forward makes a decision on self.training
        self.modes = _modes()

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        x = self.create_proxy("placeholder", "x", (), {})
        if self.inputs is None:
            return root_fn, [self.root, x]
        placed, by_name = self.inputs.unpack(x)

        def called(root: nn.Module) -> Any:
            return root_fn(root, *placed, **by_name)

        return called, [self.root]

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        path, start, stack = self.path_of_module(m), len(self.graph.nodes), self.module_stack.copy()
        leaf = self.is_leaf_module(m, path)
        watch = None if leaf else Watch(m)
        try:
            if watch is not None and any(getattr(m, hooks, None) for hooks in HOOKS):
                raise Frozen("it has hooks")
            out = super().call_module(m, forward, args, kwargs)
            if watch is not None and (change := watch.change()):
                raise Frozen(f"its forward {change}")
        except Exception as error:  # whatever a forward does with a proxy that it would not do with a tensor
            if watch is None:
                raise
            watch.put_back()
            self.module_stack = stack
            self._forget(path, start)
            self.opaque[path] = reason(error)
            out = self.create_proxy("call_module", path, args, kwargs)
        value = out.node if isinstance(out, fx.Proxy) else None
        self.calls.setdefault(path, []).append(Call(start, value))
        return out

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        if kind.startswith("call") and _modes() != self.modes:
            raise Frozen("its forward switches gradients or autocast for a part of it")
        return super().create_node(kind, *args, **kwargs)

    def to_bool(self, obj: fx.proxy.Proxy) -> bool:
        node = obj.node
        if node.op == "get_attr" and not self.module_stack and str(node.target).split(".")[-1] == "training":
            self.asked_mode = True
            return bool(self.root._buffers["training"])
        return super().to_bool(obj)

    def _forget(self, path: str, start: int) -> None:
        for node in reversed(list(self.graph.nodes)[start:]):
            self.graph.erase_node(node)
        for inner in [p for p in self.calls if p.startswith(f"{path}.")]:
            self.calls[inner] = [call for call in self.calls[inner] if call.start < start]
            if not self.calls[inner]:
                del self.calls[inner]


def _modes() -> tuple[bool, ...]:
    """What decides how PyTorch runs an operation, and is not part of a graph."""
    kinds = "cpu", accelerator.KIND
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *map(torch.is_autocast_enabled, kinds)


class _NoDraws(TorchDispatchMode):
    """What is drawn while a module is traced would be the same for ever."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Frozen("its forward draws random numbers")
        return func(*args, **kwargs or {})


def reason(error: Exception) -> str:
    """Why fx gave up, in the user's words."""
    if isinstance(error, Frozen):
        return str(error)
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    reasons = {
        "control flow": "its forward makes a decision on the values of a tensor",
        "cannot be iterated": "its forward loops over a tensor",
        "'len' is not supported": "its forward asks for the length of a tensor",
    }
    return next((why for part, why in reasons.items() if part in text), f"torch.fx cannot follow its forward ({text})")


@contextmanager
def _mode_as_value(root: nn.Module) -> Iterator[None]:
    """While it lasts, the mode of each module is a buffer named `training`, which the tracer reads like any other."""
    traced = [m for m in root.modules() if not isinstance(m, torch.jit.ScriptModule)]
    modes = [(m, m.__dict__.pop("training")) for m in traced]
    for module, mode in modes:
        module._buffers["training"] = torch.tensor(mode)
    try:
        yield
    finally:
        for module, mode in modes:
            module._buffers.pop("training", None)
            module.__dict__["training"] = mode


def trace(module: nn.Module, name: str, inputs: Inputs | None = None) -> tuple[Tracer, fx.Graph]:
    """The graph of `module`, whose modes are left as they were; a UserError where it has none. Constants that the graph
    reads are left in the module as attributes."""
    graphs: list[fx.Graph] = []
    watch = Watch(module)
    for mode in (True, False):
        with undisturbed(module, gradients=True):
            module.train(mode)
            watch.put_back()  # what the other trace left
            tracer = Tracer(inputs)
            try:
                if any(getattr(module, hooks) for hooks in HOOKS):
                    raise Frozen("it has hooks")
                with _mode_as_value(module), _NoDraws():
                    graphs.append(tracer.trace(module))
                if change := watch.change():
                    raise Frozen(f"its forward {change}")
            except Exception as error:
                watch.put_back()
                raise UserError(
                    f"{name} cannot be cut: {reason(error)}; move that part into a submodule, which then stays in one "
                    "piece, or write the model as a locallearn.BlockModel"
                ) from error
        if not tracer.asked_mode:
            break
    if len(graphs) == 2 and str(graphs[0]) != str(graphs[1]):
        raise UserError(
            f"{name} cannot be cut: its forward takes another path in training than in evaluation; switch that off "
            "(aux_logits=False in torchvision), or move it into a submodule"
        )
    return tracer, graphs[-1]
