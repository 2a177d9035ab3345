"""What torch.compile leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def called(function: Callable[..., Result], *arguments: Any) -> Result:
    """function(*arguments), outside any compiled graph. Only where there is such a graph is PyTorch's compiler
    imported, which takes as long as PyTorch itself."""
    if not torch.compiler.is_compiling():
        return function(*arguments)
    from locallearn import graph_break

    return graph_break.called(function, *arguments)
