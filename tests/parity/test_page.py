"""The table of docs/parity.md, and what a test must show before it may put down a row."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
import torch

from helpers import ROOT
from helpers.parity import Parity, apart

sys.path.insert(0, str(ROOT / "scripts"))
spec = importlib.util.spec_from_file_location("parity_script", ROOT / "scripts" / "parity.py")
assert spec is not None
assert spec.loader is not None
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)

from reliability import Case  # noqa: E402

from locallearn.studies.page import marks  # noqa: E402

ROW = {"peer": "DFA", "what": "seeds", "difference": 3.14e-14, "verdict": "equal"}


def case(**changed: object) -> Case:
    return Case([("parity", json.dumps(ROW | changed))], "passed")


def test_a_line_has_the_largest_difference_of_its_rows() -> None:
    found = [case(), case(difference=0.0), case(peer="b", verdict="conf/strategy/fa.yaml", difference=0.123)]
    lines = script.table([*found, case(peer="a", verdict="docs/strategies/fa.md", difference=4.0)])
    assert lines[2:] == [
        "| a | seeds | 4 | differs, see [fa.md](strategies/fa.md) |",
        "| b | seeds | 0.12 | differs, see [fa.yaml](../conf/strategy/fa.yaml) |",
        "| DFA | seeds | 3e-14 | equal |",
    ]


def test_a_row_is_put_down_only_for_what_is_shown() -> None:
    rows: list[tuple[str, object]] = []
    held = Parity(rows)
    held.equal("Peer", "loss", 1e-16)
    held.documented("Peer", "loss", 0.5, "docs/parity.md", "in plain PyTorch or numpy")  # two lines of the page
    assert [json.loads(str(value))["verdict"] for _, value in rows] == ["equal", "docs/parity.md"]
    with pytest.raises(AssertionError, match=r"Peer, loss: 0\.1 apart"):
        held.equal("Peer", "loss", 0.1)
    with pytest.raises(AssertionError, match=r"Peer, loss: nan apart"):
        held.equal("Peer", "loss", float("nan"))
    with pytest.raises(AssertionError, match="if ours is equal now, say so"):
        held.documented("Peer", "loss", 0.0, "docs/parity.md", "in plain PyTorch or numpy")
    with pytest.raises(AssertionError, match=r"docs/parity\.md does not say: in plain English"):
        held.documented("Peer", "loss", 0.5, "docs/parity.md", "in plain English")
    assert len(rows) == 2


def test_apart_is_the_largest_difference_and_knows_what_has_none() -> None:
    ours = {"a": torch.zeros(2), "b": torch.tensor([1.0, -3.0])}
    assert apart(ours, {"b": torch.tensor([1.0, 1.0]), "a": torch.zeros(2)}) == 4
    assert apart([1, 2.5], (1, 2)) == 0.5
    for theirs in ({"a": torch.zeros(2)}, {"a": torch.zeros(1), "b": torch.zeros(2)}):
        with pytest.raises(AssertionError):
            apart(ours, theirs)
    with pytest.raises(ValueError, match="shorter"):
        apart([1, 2], [1])


def test_the_page_has_a_place_for_the_table() -> None:
    text = script.PAGE.read_text(encoding="utf-8")
    begin, end = marks(script.COMMAND)
    assert text.count(begin) == text.count(end) == 1
    assert text.index(begin) < text.index(end)
    assert "undocumented" not in text
