"""What the studies share: runs of `locallearn` that are done once, their numbers, tables and verdicts."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import statistics
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TypeVar

Key = TypeVar("Key")
DONE, SECONDS = "done.json", "seconds.json"


class Failed(Exception):
    """A run ended with an error; its command and what it said."""


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
    """Do `locallearn SETTINGS` for each key, `options.jobs` at a time with one thread each, in processes that stay: to
    start Python and import PyTorch takes longer than many a run.

    A run that is done is only read, one that was killed is resumed, and equal settings are one run. Ends the program
    with the command and its message if one fails.
    """
    texts = list(dict.fromkeys(settings.values()))
    todo = [text for text in texts if not (folder(text, options.out) / DONE).is_file()]
    if todo:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # of what probes call beside PyTorch
        with ProcessPoolExecutor(options.jobs, get_context("spawn"), _end_with_parent) as pool:
            waiting = [pool.submit(_do, text, options.data, options.out) for text in todo]
            try:
                for number, future in enumerate(as_completed(waiting), 1):
                    print(f"{number}/{len(todo)} {future.result()}", flush=True)
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                raise SystemExit(str(error)) if isinstance(error, Failed) else error from None
    options.seconds += sum(_spent(folder(text, options.out)) for text in texts)
    found = {text: _read(folder(text, options.out)) for text in texts}
    return {key: found[text] for key, text in settings.items()}


def _end_with_parent() -> None:
    """A worker whose parent was killed would go on with its run, beside the one that is started next."""

    def wait() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def folder(text: str, out: Path) -> Path:
    """Where the runs of some settings lie: other settings are another folder."""
    readable = re.sub(r"[^\w.]+", "-", text)[:80]
    return out / f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def _do(text: str, data: str | None, out: Path) -> str:
    """One run, or the rest of it; returns a line about it. Raises Failed."""
    from locallearn.cli import main as cli

    place = folder(text, out)
    place.mkdir(parents=True, exist_ok=True)
    given = [f"data.root={data}"] if data else []
    begun = _newest(place)
    command = ["resume", str(begun)] if begun else [*text.split(), "threads=1", f"out={place}", *given]
    started, said = time.perf_counter(), io.StringIO()
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(said):
            code = cli.main(command)
    finally:  # also of a part that was interrupted
        seconds = _spent(place) + time.perf_counter() - started
        (place / SECONDS).write_text(json.dumps(seconds))
    if code:
        raise Failed(f"python -m locallearn {' '.join(command)}\n{said.getvalue()}")
    run = _newest(place)
    assert run is not None
    (place / DONE).write_text(json.dumps({"settings": text, "run": run.name}))
    accuracy = _read(place).summary.get("test/accuracy")
    shown = "" if accuracy is None else f"test accuracy {accuracy:.4f}, "
    return f"{text}: {shown}{seconds:.0f} s"


def _read(place: Path) -> Run:
    run = place / json.loads((place / DONE).read_text())["run"]
    return Run(run, _lines(run / "metrics.jsonl"), json.loads((run / "summary.json").read_text()))


def _newest(place: Path) -> Path | None:
    return max((file.parent for file in place.glob("*/status.json")), key=lambda p: p.stat().st_mtime, default=None)


def _spent(place: Path) -> float:
    file = place / SECONDS
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


def averaged(repeats: Sequence[Sequence[dict]], digits: int = 4) -> list[dict]:
    """Rows of a probe about layers as one: the mean over the seeds of every number that all of them have, by epoch and
    layer; texts are those of the first seed."""
    places = [{(row["epoch"], row["layer"]): row for row in rows if "layer" in row} for rows in repeats]
    found = []
    for place, first in places[0].items():
        if any(place not in rows for rows in places):
            continue
        row = dict(first)
        for key, value in first.items():
            values = [rows[place].get(key) for rows in places]
            if isinstance(value, float) and all(isinstance(v, int | float) for v in values):
                row[key] = round(mean(values), digits)
        found.append(row)
    return found


def path(rows: Iterable[dict], layer: int, key: str) -> tuple[list[int], list[float]]:
    """The epochs at which a layer has a number, and its values."""
    found = [(row["epoch"], row[key]) for row in rows if row["layer"] == layer and row.get(key) is not None]
    return [epoch for epoch, _ in found], [value for _, value in found]
