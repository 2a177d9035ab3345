"""What a forward changes besides its output: attributes of its modules, and generators of random numbers."""

from __future__ import annotations

import inspect
import random
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

CONTAINERS = (list, dict, set, deque)
OF_TORCH = ("_parameters", "_buffers", "_modules")
OTHERS = frozenset(nn.Module().__dict__) - {*OF_TORCH}  # hooks and modes
OF_FX = re.compile(r"_.*(constant|obj)_?\d+")
"""Names of attributes under which fx leaves constants in the module that it traces."""


class Watch:
    """The state of a module, to see whether its forward changes it, and to put it back. The numbers of parameters and
    buffers are not part of it (see `quiet.undisturbed`), nor are modes."""

    def __init__(self, module: nn.Module) -> None:
        self.modules = list(module.named_modules())
        self.attributes = [{key: (value, _inside(value)) for key, value in _items(m)} for _, m in self.modules]
        self.random = [(get, put, get()) for get, put in _generators([m for _, m in self.modules])]

    def change(self) -> str | None:
        """What has changed, as the end of a sentence that begins with "its forward"; None if nothing has."""
        if any(_numbers(get()) != _numbers(before) for get, _, before in self.random):
            return "draws random numbers"
        for (path, module), before in zip(self.modules, self.attributes, strict=True):
            now = {key: (value, _inside(value)) for key, value in _items(module) if not OF_FX.fullmatch(key)}
            if key := _difference(before, now):
                if key in OF_TORCH:  # the dictionaries of parameters, buffers and submodules
                    key = _difference(before[key][1], now[key][1]) or key
                return f"changes self.{f'{path}.' if path else ''}{key}"
        return None

    def put_back(self) -> None:
        for _, put, before in self.random:
            put(before)
        for (_, module), before in zip(self.modules, self.attributes, strict=True):
            for key in [key for key, _ in _items(module) if key not in before]:
                del module.__dict__[key]
            for key, (value, inside) in before.items():
                module.__dict__[key] = value
                if isinstance(value, CONTAINERS):
                    value.clear()
                    value.update(inside) if isinstance(value, dict | set) else value.extend(inside)
                elif isinstance(value, Tensor) and not _same(inside, _inside(value)):
                    with torch.no_grad():
                        value.copy_(inside)


@contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Afterwards attributes and generators of random numbers are as before."""
    watch = Watch(module)
    try:
        yield
    finally:
        watch.put_back()


def _items(module: nn.Module) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in module.__dict__.items() if key not in OTHERS]


def _inside(value: Any) -> Any:
    """What can change in an object that stays: the items of a container, the numbers of a tensor."""
    if isinstance(value, CONTAINERS):
        return value.copy()
    return value.detach().clone() if isinstance(value, Tensor) else None


def _difference(a: dict[str, Any], b: dict[str, Any]) -> str | None:
    """The first key whose values differ."""
    differ = (key for key in sorted(a.keys() | b.keys()) if key not in a or key not in b or not _same(a[key], b[key]))
    return next(differ, None)


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if type(a) is torch.Tensor:
        return torch.equal(a, b)
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(map(_same, a.values(), b.values()))
    return isinstance(a, int | float | complex | str | bytes | set) and a == b


def _numbers(state: Any) -> Any:
    """The state of a generator in a form that can be compared."""
    if isinstance(state, dict):
        return {key: _numbers(value) for key, value in state.items()}
    if isinstance(state, tuple):
        return tuple(part if isinstance(part, int) else _numbers(part) for part in state)
    return state.tolist() if hasattr(state, "tolist") else state


def _generators(modules: list[nn.Module]) -> Iterator[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """How to read and to set the position of each generator of random numbers that a forward can reach: the global
    ones, those that are attributes, and those of the file where the forward is written."""
    yield random.getstate, random.setstate
    yield torch.get_rng_state, torch.set_rng_state
    if "numpy" in sys.modules:
        yield sys.modules["numpy"].random.get_state, sys.modules["numpy"].random.set_state
    places = {id(m.__dict__): m.__dict__ for m in modules}
    for m in modules:
        if not isinstance(m, torch.jit.ScriptModule):
            names = getattr(inspect.unwrap(type(m).forward), "__globals__", {})
            places[id(names)] = names
    for generator in {id(value): value for place in places.values() for value in list(place.values())}.values():
        kind = type(generator)
        if isinstance(generator, random.Random):
            yield generator.getstate, generator.setstate
        elif isinstance(generator, torch.Generator) or kind.__name__ == "RandomState":
            yield generator.get_state, generator.set_state
        elif kind.__name__ == "Generator" and hasattr(generator, "bit_generator"):
            bits = generator.bit_generator
            yield partial(getattr, bits, "state"), partial(setattr, bits, "state")
