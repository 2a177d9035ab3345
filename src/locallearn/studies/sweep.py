"""What Hydra's `-m` needs beside `runner`: the plan of a sweep, and a journal in which every job leaves a line.

The process that began a sweep hears through the journal of jobs in other processes.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from locallearn.config.settings import GROUPS
from locallearn.errors import UserError
from locallearn.runs import again
from locallearn.runs.files import strict_json
from locallearn.runtime.world import started_together

JOURNALS = ".multirun"
BEGUN = "begun"
"""Of a job that has a line in the journal before it has ended."""


@dataclass(frozen=True)
class Job:
    """What became of one job: `how` is new, resumed, repeated, done, busy, failed, interrupted or skipped, or begun for
    one that has not ended."""

    number: int
    name: str
    how: str
    folder: str = ""
    reason: str = ""
    code: int = 0


@dataclass(frozen=True)
class Plan:
    """What a sweep is: the folder of its runs, the keys it varies with their values, how many runs it has (0: not
    known), how it was called, and where modules of the user's are."""

    out: str
    varies: dict[str, list[str]]
    total: int
    command: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)


class Journal:
    """The plan of one sweep and the lines that its jobs leave, whatever process they ran in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan = Plan(**json.loads(path.read_text().splitlines()[0]))

    @classmethod
    def create(cls, plan: Plan) -> Journal:
        """A new one in the folder of the runs. Raises UserError."""
        if started_together():
            raise UserError("torchrun starts the processes of one run: start a sweep (-m) without it, as one process")
        stamp = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{os.getpid()}"
        path = Path(plan.out).expanduser().resolve() / JOURNALS / f"{stamp}.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(strict_json(vars(plan)) + "\n")
        except OSError as error:
            reason = "it is a file" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
            raise UserError(f"cannot write into {plan.out}: {reason}; choose a folder you can write: out=") from None
        return cls(path)

    def discard(self) -> None:
        """Leave nothing behind of a sweep that has begun no job."""
        self.path.unlink()
        with suppress(OSError):  # there are others
            if not list(self.path.parent.glob("*.jsonl")):
                (self.path.parent / "multirun.yaml").unlink(missing_ok=True)  # Hydra's
            self.path.parent.rmdir()
            self.path.parent.parent.rmdir()

    def differs(self, overrides: Iterable[str]) -> list[str]:
        """The overrides of a job that are not those of every job."""
        return [text for text in overrides if text.lstrip("+~").partition("=")[0] in self.plan.varies]

    def started(self, number: int, name: str) -> None:
        """Say which job begins here, such as `[5/12] seed=4`; a launcher counts from 0."""
        print(self.label(number, name), flush=True)
        self.add(Job(number, name, BEGUN))

    def label(self, number: int, name: str) -> str:
        total = f"/{self.plan.total}" if self.plan.total else ""
        return f"[{number + 1}{total}] {name}"

    def add(self, job: Job) -> None:
        line = (strict_json(vars(job)) + "\n").encode()
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(handle, line)  # one call: lines of several processes do not mix
        finally:
            os.close(handle)

    def jobs(self) -> list[Job]:
        """In the order in which they ended."""
        return [job for job in self._lines() if job.how != BEGUN]

    def _lines(self) -> list[Job]:
        return [Job(**json.loads(line)) for line in self.path.read_text().splitlines()[1:]]

    @contextmanager
    def printed(self) -> Iterator[None]:
        """Print a line for every job that begins or ends meanwhile; for launchers whose jobs do not write to this
        terminal."""
        over = threading.Event()

        def follow() -> None:
            shown, last = 0, False
            while not last:
                last = over.wait(1.0)
                jobs = self._lines()
                for job in jobs[shown:]:
                    how = "" if job.how == BEGUN else f": {job.how}" + (f": {job.reason}" if job.reason else "")
                    print(f"{self.label(job.number, job.name)}{how}", flush=True)
                shown = len(jobs)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    @property
    def failed(self) -> bool:
        return any(job.code for job in self.jobs())


def shared(config: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The configuration of a job that runs beside others: one thread, and of several GPUs its own, by job number from
    the first that may be taken. One whose blocks are divided over several processes has the next of them for these,
    which the environment says. Raises UserError."""
    from locallearn import accelerator
    from locallearn.runtime.launch import FIRST_DEVICE

    config = dict(config)
    if config.get("threads") == "auto":
        config["threads"] = 1
    if config.get("device") in ("auto", accelerator.KIND) and (count := accelerator.count()) > 1:
        runtime = config.get("runtime") or {}
        processes = runtime.get("stages", 1) * runtime.get("replicas", 1)
        if processes > 1:
            os.environ[FIRST_DEVICE] = str((given_first_device() + number * processes) % count)
        else:
            config["device"] = f"{accelerator.KIND}:{(given_first_device() + number) % count}"
    return config


@cache
def given_first_device() -> int:
    """What the environment said before `shared` changed it in this process, which may do several jobs."""
    from locallearn.training.processes import first_device

    return first_device()


def grouped(config: Mapping[str, Any], strategy: str, differs: Iterable[str]) -> dict[str, Any]:
    """The configuration of a job; at W&B it stands in a group with the other runs of its folder and is called by what
    differs from them, such as `dgl lr=0.1 s1`, unless the settings or the environment have other names."""
    config = dict(config)
    if wandb := (config.get("record") or {}).get("wandb"):
        ours = {"group": Path(config["out"]).expanduser().resolve().name, "name": display_name(strategy, differs)}
        variables = {"group": "WANDB_RUN_GROUP", "name": "WANDB_NAME"}
        free = {key: value for key, value in ours.items() if not os.environ.get(variables[key])}
        given = {key: value for key, value in wandb.items() if value is not None}
        config["record"] = {**config["record"], "wandb": {**wandb, **free, **given}}
    return config


def display_name(strategy: str, differs: Iterable[str]) -> str:
    """The strategy, choices by their name, options by the last word of their key, the seed as s1."""
    words = [strategy]
    for text in differs:
        key, _, value = text.lstrip("+~").partition("=")
        if key == "seed":
            words.append(f"s{value}")
        elif key != "strategy":
            words.append(value if key in GROUPS else f"{key.rpartition('.')[2]}={value}")
    return " ".join(words)


def summary(jobs: Sequence[Job], plan: Plan, rest: str = "not begun") -> str:
    """A line on a whole sweep, and one for each job that did not end well. `rest`: what is said of those without a line
    in the journal, and of those that were left out after a failure."""
    words = {"new": "new", "resumed": "resumed", "repeated": "repeated", "done": "done before"}
    words |= {"busy": "left to another process", "failed": "failed", "interrupted": "interrupted"}
    counts = {word: sum(job.how == how for job in jobs) for how, word in words.items()}
    begun = sum(counts.values())
    total = max(plan.total, len(jobs))
    counts[rest] = total - begun
    counted = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    lines = [f"{total} {'run' if total == 1 else 'runs'}: {counted}"]
    ended_badly = sorted((job for job in jobs if job.code), key=lambda job: job.number)
    lines += [f"  {job.how}: {job.name}: {job.reason}" for job in ended_badly]
    if counts["interrupted"] or counts[rest]:
        lines.append("run the same command again to go on")
    return "\n".join([*lines, f"pictures and a page of them: {again.command('report', plan.out, '--to', 'report')}"])
