"""What tests put down in a JUnit file, and the part of a page that is made of it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple


class Case(NamedTuple):
    """A test: its properties in their order, and passed, failure, error or skipped."""

    properties: list[tuple[str, str]]
    outcome: str


def cases(files: Iterable[Path]) -> Iterator[Case]:
    """Every test of the files once; of one that was run again, the last run counts."""
    found = [case for file in files for case in ElementTree.parse(file).iter("testcase")]
    for case in {(case.get("classname"), case.get("name")): case for case in found}.values():
        properties = [(p.get("name", ""), p.get("value", "")) for p in case.iter("property")]
        ends = [kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None]
        yield Case(properties, ends[0] if ends else "passed")


def marks(command: str) -> tuple[str, str]:
    """The comments between which a page has what a command writes."""
    return f"<!-- begin: {command} -->", f"<!-- end: {command} -->"


def write_between(page: Path, command: str, lines: Iterable[str]) -> None:
    """Replace what stands between the marks of a command."""
    begin, end = marks(command)
    made = "\n".join([begin, "", *lines, "", end])
    text = page.read_text(encoding="utf-8")
    pattern = f"{re.escape(begin)}.*{re.escape(end)}"
    page.write_text(re.sub(pattern, lambda _: made, text, flags=re.DOTALL), encoding="utf-8")
