"""How far ours is from a peer, and the row that says so in docs/parity.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from helpers import ROOT


class Parity:
    """Checks how far ours is from a peer, and puts down a row for docs/parity.md."""

    def __init__(self, properties: list[tuple[str, object]]) -> None:
        self._properties = properties

    def equal(self, peer: str, what: str, difference: float, within: float = 1e-10) -> None:
        """Ours does what the peer does: the largest difference that was measured is rounding."""
        assert difference <= within, f"{peer}, {what}: {difference:.3g} apart"
        self._row(peer, what, difference, "equal")

    def documented(self, peer: str, what: str, difference: float, page: str, words: str) -> None:
        """Ours differs, and `page`, a path below docs/ or conf/, says so in these words."""
        assert difference > 1e-9, f"{peer}, {what}: only {difference:.3g} apart; if ours is equal now, say so"
        text = " ".join((ROOT / page).read_text(encoding="utf-8").replace("\n#", "\n").split())
        assert words in text, f"{page} does not say: {words}"
        self._row(peer, what, difference, page)

    def _row(self, peer: str, what: str, difference: float, verdict: str) -> None:
        assert "|" not in peer + what, "a row of the table has no further columns"
        row = {"peer": peer, "what": what, "difference": difference, "verdict": verdict}
        self._properties.append(("parity", json.dumps(row)))


def apart(ours: object, theirs: object) -> float:
    """The largest absolute difference of two numbers or tensors, or of collections of them, matched by place or key."""
    if isinstance(ours, Mapping):
        assert isinstance(theirs, Mapping)
        assert ours.keys() == theirs.keys()
        return apart(ours.values(), [theirs[key] for key in ours])
    if isinstance(ours, Iterable) and not isinstance(ours, Tensor):
        assert isinstance(theirs, Iterable)
        return max(apart(a, b) for a, b in zip(ours, theirs, strict=True))
    a, b = (torch.as_tensor(t, dtype=torch.float64).detach() for t in (ours, theirs))
    assert a.shape == b.shape
    return (a - b).abs().max().item()
