"""Marks of parameters."""

from __future__ import annotations

from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """Parameters of a case that only `make test-all` runs."""
    return pytest.param(*values, marks=pytest.mark.slow)
