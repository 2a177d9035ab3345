"""What the studies share: runs of `python -m locallearn` that are done once, their numbers, tables and verdicts."""

from __future__ import annotations

import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

Key = TypeVar("Key")
DONE = "done.json"


@dataclass
class Options:
    """How a study is run.

    data    folder of the data sets, or None
    jobs    runs at a time
    out     where run folders are kept
    quick   only to see that it works, in seconds
    seconds  spent by the runs so far, one thread each, also those that were done before
    """

    data: str | None = None
    jobs: int = 2
    out: Path = Path("runs/experiments")
    quick: bool = False
    seconds: float = field(default=0.0, init=False)


@dataclass(frozen=True)
class Run:
    """A finished run. `history`: the records of `metrics.jsonl`; `summary`: the last one and parameter counts."""

    folder: Path
    history: list[dict]
    summary: dict

    def rows(self, probe: str) -> list[dict]:
        """Every row of a probe, with `epoch` and `step`; epoch 0 is the initial weights."""
        return _lines(self.folder / "probes" / probe / "rows.jsonl")

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """The epochs whose record has `name`, and its values."""
        found = [(record["epoch"], record[name]) for record in self.history if name in record]
        return [epoch for epoch, _ in found], [value for _, value in found]


def runs(settings: Mapping[Key, str], options: Options) -> dict[Key, Run]:
    """Do `python -m locallearn SETTINGS` for each key, `options.jobs` at a time with one thread each.

    A run that is done is only read, one that was killed is resumed, and equal settings are one run. Ends the program
    with the command and its message if one fails.
    """
    texts = list(dict.fromkeys(settings.values()))
    failed = threading.Event()

    def one(text: str) -> tuple[Run, float]:
        if failed.is_set():
            raise SystemExit(1)
        try:
            return _run(text, options)
        except BaseException:
            failed.set()  # those that wait need not begin
            raise

    found = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        for number, (text, (run, seconds)) in enumerate(zip(texts, pool.map(one, texts), strict=True), 1):
            found[text] = run
            options.seconds += seconds
            accuracy = run.summary.get("test/accuracy")
            shown = "" if accuracy is None else f"test accuracy {accuracy:.4f}, "
            print(f"{number}/{len(texts)} {text}: {shown}{seconds:.0f} s", flush=True)
    return {key: found[text] for key, text in settings.items()}


def folder(text: str, out: Path) -> Path:
    """Where the runs of some settings lie: other settings are another folder."""
    readable = re.sub(r"[^\w.=]+", "-", text)[:80]
    return out / f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def _run(text: str, options: Options) -> tuple[Run, float]:
    """One run and the seconds it took, all its parts together."""
    place = folder(text, options.out)
    spent = _spent(place)
    if not (place / DONE).is_file():
        started = time.perf_counter()
        given = [f"data.root={options.data}"] if options.data else []
        command = [*text.split(), "threads=1", f"out={place}", *given]
        if begun := _newest(place):
            command = ["resume", str(begun)]
        try:
            _call(command)
        finally:  # also of a part that was interrupted
            spent += time.perf_counter() - started
            place.mkdir(parents=True, exist_ok=True)
            (place / "seconds.json").write_text(json.dumps(spent))
        (place / DONE).write_text(json.dumps({"settings": text, "run": _newest(place).name}))
    run = place / json.loads((place / DONE).read_text())["run"]
    return Run(run, _lines(run / "metrics.jsonl"), json.loads((run / "summary.json").read_text())), spent


def _call(command: Sequence[str]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "locallearn", *command]
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"python -m locallearn {' '.join(command)}\n{done.stderr}")


def _newest(place: Path) -> Path | None:
    return max((file.parent for file in place.glob("*/status.json")), key=lambda p: p.stat().st_mtime, default=None)


def _spent(place: Path) -> float:
    file = place / "seconds.json"
    return json.loads(file.read_text()) if file.is_file() else 0.0


def _lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Markdown; the cells are text."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def verdicts(claims: Iterable[tuple[bool, str]]) -> Iterator[str]:
    """What was published, in words with our numbers, and whether the numbers say so, too."""
    yield ""
    for holds, text in claims:
        yield f"- {'agrees' if holds else '**differs**'}: {text}"


def mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and, of several, standard deviation."""
    text = f"{statistics.fmean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {statistics.stdev(values):.{digits}f}"
