"""The tables of docs/reliability.md, from what the tests of faults put down: `make test-faults` calls it.

python scripts/reliability.py JUNIT.xml [MORE.xml] [--page docs/reliability.md]

Of a test that was run again, as `pytest --last-failed` does, the last file counts.
"""

from __future__ import annotations

import argparse
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from locallearn.studies.page import machine, write_between

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
COMMAND = "make test-faults"
LISTS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
GOALS, FAULTS = LISTS["goals"], LISTS["faults"]


class Case(NamedTuple):
    """A test: its properties in their order, and passed, failure, error or skipped."""

    properties: list[tuple[str, str]]
    outcome: str


def cases(files: Iterable[Path]) -> Iterator[Case]:
    """Every test of the files once, with its group (@disk) or without; of one that ran again, the last run counts."""
    found = [case for file in files for case in ElementTree.parse(file).iter("testcase")]
    for case in {(case.get("classname"), case.get("name", "").partition("@")[0]): case for case in found}.values():
        properties = [(p.get("name", ""), p.get("value", "")) for p in case.iter("property")]
        ends = [kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None]
        yield Case(properties, ends[0] if ends else "passed")


OUTCOMES = {"trained": "trained", "refused": "were refused in a sentence", "diverged": "diverged and said so"}
"""What may become of a run that is tried."""


class Test(NamedTuple):
    """One test of the JUnit file: which faults it injects, how often, and what came of it."""

    faults: list[str]
    injected: int
    lost: str
    became: dict[str, int]
    load: list[str]
    outcome: str

    @property
    def ran(self) -> bool:
        return self.outcome != "skipped"


def tests(files: Iterable[Path]) -> Iterator[Test]:
    for said, outcome in cases(files):
        known = dict(said)
        faults = [fault for name, value in said if name == "faults" for fault in value.split()]
        loads = [value for name, value in said if name == "load"]
        became = {how: int(known[how]) for how in OUTCOMES if how in known}
        injected = int(known.get("injected", 1))
        yield Test(faults, injected, known.get("lost", ""), became, loads, outcome)


def rows(named: dict[str, str], found: list[Test]) -> Iterator[str]:
    yield "| | what was done | tests | times injected | failed | lost |"
    yield "|---|---|---|---|---|---|"
    for key, what in named.items():
        own = [test for test in found if key in test.faults]
        ran = [test for test in own if test.ran]
        failed = sum(test.outcome in ("failure", "error") for test in own)
        lost = "; ".join(dict.fromkeys(test.lost for test in ran if test.lost)) or "nothing"
        if failed:
            lost = "not known: a test failed"
        counts = {how: sum(test.became.get(how, 0) for test in ran) for how in OUTCOMES}
        if any(counts.values()):
            lost += "; of the runs " + ", ".join(f"{count} {OUTCOMES[how]}" for how, count in counts.items())
        if not ran:
            lost = "not tried on this machine" if own else "no test"
        yield f"| {key} | {what} | {len(ran)} | {sum(test.injected for test in ran)} | {failed} | {lost} |"


def load_rows(found: Iterable[Test]) -> Iterator[str]:
    yield "| what | outcome | seconds | peak MiB of one process |"
    yield "|---|---|---|---|"
    for test in found:
        for line in test.load:
            yield f"| {' | '.join(line.split('|'))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("junit", type=Path, nargs="+", help="JUnit files of the tests of faults")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page whose tables to write")
    given = parser.parse_args()
    found = list(tests(given.junit))
    ran = [test for test in found if test.ran]
    failed = sum(test.outcome in ("failure", "error") for test in found)
    injected = sum(test.injected for test in ran if test.faults != ["load"])
    lines = [
        f"Made by `{COMMAND}` on {time.strftime('%Y-%m-%d')}: {len(ran)} tests, {injected:,} faults injected, "
        f"{failed} failed, {len(found) - len(ran)} skipped. {machine()}.",
        "",
        *rows(GOALS, found),
        "",
        *rows(FAULTS, found),
        "",
        "### Load",
        "",
        "Each in a process of its own, with one thread; the seconds include importing torch.",
        "",
        *load_rows(found),
    ]
    write_between(given.page, COMMAND, lines)
    print(f"{given.page}: {len(ran)} tests, {injected:,} faults injected, {failed} failed")


if __name__ == "__main__":
    main()
