"""Where a compiled graph ends; `uncompiled` imports it when one is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


@torch.compiler.disable
def called(function: Callable[..., Result], *arguments: Any) -> Result:
    """function(*arguments)."""
    return function(*arguments)
