"""What torch.compile leaves alone. Imported where it is called, as with it comes all of PyTorch's compiler, which takes
as long as PyTorch itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


@torch.compiler.disable
def called(function: Callable[..., Result], *arguments: Any) -> Result:
    """function(*arguments), outside any compiled graph."""
    return function(*arguments)
