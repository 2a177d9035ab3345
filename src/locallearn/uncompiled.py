"""What torch.compile leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def called(function: Callable[..., Result], *arguments: Any) -> Result:
    """function(*arguments), outside any compiled graph. PyTorch's compiler, whose import takes as long as that of
    PyTorch itself, is imported only where there is such a graph."""
    if not torch.compiler.is_compiling():
        return function(*arguments)
    from locallearn import graph_break

    return graph_break.called(function, *arguments)
