"""Strategies, losses and measures beside what the peers' code does.

Every test states a peer's published behaviour once more, in numpy or plain PyTorch and without code of ours or theirs,
runs ours beside it from the same weights and batches, and says what came of it with the fixture `parity`. The rows that
it puts down are the table of docs/parity.md, which `make parity` writes.
"""

from __future__ import annotations

import pytest

from helpers.parity import Parity


@pytest.fixture
def parity(request: pytest.FixtureRequest) -> Parity:
    return Parity(request.node.user_properties)
