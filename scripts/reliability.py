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

from locallearn.studies.page import machine, write_between

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
COMMAND = "make test-faults"
GOALS = {
    "R1": "killed at 50 random moments: the bits of the undisturbed run",
    "R2": "killed while a checkpoint is written: there is always one that can be read",
    "R3": "a flipped bit, a zeroed block, a truncation is noticed, and an older checkpoint used",
    "R4": "SIGTERM: state saved after the running step, exit code 143, exact resume",
    "R5": "a dead or frozen process ends the others in time",
    "R6": "a run repeats, and a pipeline gives the bits of the serial run",
    "R7": "no file and no configuration that is read runs code",
    "R8": "a full disk is said, earlier checkpoints stay, nothing half-written is left",
    "R9": "whatever W&B does: the same numbers, and no waiting",
    "R10": "a number that is not finite stops the run before it is saved",
    "R11": "the order of the data follows from seed, epoch and step alone",
}
FAULTS = {
    "F1": "kill -9 at random and at chosen moments: in a step, in evaluation, in a line of the record, at the ends",
    "F2": "kill -9 inside a save: before, in and after the tensors, the sums, the sync, the rename, the removal",
    "F3": "a bit flipped, a block zeroed, a file cut, emptied or gone, in each file of a checkpoint",
    "F4": "foreign files, half names, a loop of links among the checkpoints",
    "F5": "a run folder moved elsewhere",
    "F6": "a checkpoint of another model, cut, strategy or optimizer",
    "F7": "a checkpoint of a newer format",
    "F8": "hostile pickles under every name that is read",
    "F9": "hostile headers of safetensors",
    "F10": "a disk that is full or fills up, a limit on the size of files",
    "F11": "a run folder that is read-only, becomes so, or is deleted",
    "F12": "SIGINT, SIGTERM, SIGHUP, once and twice",
    "F13": "a stage that is killed, stopped or raises, each in turn",
    "F14": "a stage that never comes; two pipelines at once",
    "F15": "the process that started the stages is killed",
    "F16": "NaN and infinity in input, activation, loss, gradient, feedback, synthesizer target, of every strategy",
    "F17": "labels out of range, of another type or number; classes and splits without samples",
    "F18": "a batch of one, a batch larger than the set, an empty set",
    "F19": "images that are grey, have alpha, 16 bits, another size",
    "F20": "files that are missing, truncated, changed, not what they say; archives that climb out or explode",
    "F21": "W&B: no package, no key, no network, refused, failing, slow, dying half way, hanging at the end",
    "F22": "settings that mean nothing, and random compositions of every file of conf/",
    "F23": "configurations that name code, secrets, other folders, or explode",
    "F24": "a strategy that forgets a detach, an optimizer or a yield",
    "F25": "resume with other threads, versions, devices",
    "F26": "resume under another runtime",
    "F27": "a clock that runs backwards, odd places, names, locales and time zones",
    "F28": "no terminal, a closed or broken one, a reader that goes away",
    "F29": "a run of a sweep that fails or is killed",
    "F30": "optional packages that are missing",
    "F31": "memory that runs out",
    "F32": "two processes that write one run folder",
}


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
    yield "| what | outcome | seconds | MiB at most, of one process |"
    yield "|---|---|---|---|"
    for test in found:
        for line in test.load:
            yield f"| {' | '.join(line.split('|'))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("junit", type=Path, nargs="+")
    parser.add_argument("--page", type=Path, default=PAGE)
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
        "A process of its own each, one thread; the seconds include what it takes to import torch.",
        "",
        *load_rows(found),
    ]
    write_between(given.page, COMMAND, lines)
    print(f"{given.page}: {len(ran)} tests, {injected:,} faults injected, {failed} failed")


if __name__ == "__main__":
    main()
