"""A block's units with some modules replaced, and all else shared."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn


def twin(layers: nn.Module, wanted: Callable[[nn.Module], bool]) -> nn.Module:
    """A copy of the modules that contain wanted ones, with the forward hooks of the true ones; of all else, those
    themselves. It shares parameters and buffers."""
    same: dict[int, Any] = {id(t): t for t in (*layers.parameters(), *layers.buffers())}
    for module in layers.modules():
        if wanted(module) or not any(wanted(m) for m in module.modules()):
            same[id(module)] = module
    copied = copy.deepcopy(layers, same)
    for name, module in copied.named_modules():
        hooks = {key: value for key, value in vars(layers.get_submodule(name)).items() if key.startswith("_forward_")}
        vars(module).update(hooks)
    return copied
