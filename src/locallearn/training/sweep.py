"""The runs of a sweep. Each has a folder named by what it is, so that starting a sweep again goes on with it.

What was done is not repeated, what was interrupted or killed is resumed, and what failed is done again from the start;
the folder of the failed attempt is kept beside it under a hidden name. Every job leaves a line in the sweep's journal,
which is how the process that began the sweep hears of jobs in other processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from locallearn.config.experiment import Experiment
from locallearn.errors import UserError
from locallearn.training import session
from locallearn.training.console import Console
from locallearn.training.run_folder import RunFolder, safe_name, strict_json
from locallearn.training.saved import finished
from locallearn.training.train import Result

JOURNALS = ".multirun"
WHERE = ("out", "record", "threads", "device", "allocator", "checkpoint", "sweep")
"""Settings that say where a run runs and what is kept, not what it is."""


def identity(config: Mapping[str, Any]) -> str:
    """Eight digits that two configurations share if they mean the same run, wherever it runs and its data lie."""
    meant = {key: value for key, value in config.items() if key not in WHERE}
    meant["data"] = {key: value for key, value in meant.get("data", {}).items() if key != "root"}
    return hashlib.sha256(json.dumps(meant, sort_keys=True, default=str).encode()).hexdigest()[:8]


def folder_name(differs: Iterable[str], config: Mapping[str, Any]) -> str:
    """The name of a run in a sweep: what differs from the other runs, and its identity."""
    return f"{safe_name('_'.join(differs) or 'run')[:80]}_{identity(config)}"


@dataclass(frozen=True)
class Job:
    """What became of one job: `how` is new, resumed, repeated, done, busy, failed or skipped."""

    number: int
    name: str
    how: str
    folder: str = ""
    reason: str = ""
    code: int = 0


class Journal:
    """The lines that the jobs of one sweep leave, whatever process they ran in."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, out: Path, varies: Sequence[str]) -> Journal:
        """A new one in `out`, of a sweep over these keys. Raises UserError."""
        journal = cls(out.expanduser() / JOURNALS / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{os.getpid()}.jsonl")
        try:
            journal.path.parent.mkdir(parents=True, exist_ok=True)
            journal.path.write_text(strict_json({"varies": list(varies)}) + "\n")
        except OSError as error:
            raise UserError(f"cannot write into {out}: {error.strerror}; choose a folder you can write: out=") from None
        return journal

    def differs(self, overrides: Iterable[str], also: Iterable[str] = ()) -> list[str]:
        """The overrides of a job that are not those of every job: of the journal's keys, and of those `also` varied."""
        varies = {*json.loads(self.path.read_text().splitlines()[0])["varies"], *also}
        return [override for override in overrides if override.lstrip("+~").partition("=")[0] in varies]

    def add(self, job: Job) -> None:
        line = (strict_json(vars(job)) + "\n").encode()
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(handle, line)  # one call: lines of several processes do not mix
        finally:
            os.close(handle)

    def jobs(self) -> list[Job]:
        lines = self.path.read_text().splitlines()[1:]
        return sorted((Job(**json.loads(line)) for line in lines), key=lambda job: job.number)

    @property
    def failed(self) -> bool:
        return any(job.code for job in self.jobs())


def run(exp: Experiment, name: str, quiet: bool = False) -> tuple[str, Result | None]:
    """One run of a sweep in the folder `name`, and how it went: new, resumed, repeated, done or busy."""
    path = Path(exp.settings.out).expanduser() / name
    if not path.exists():
        return "new", session.start(exp, quiet, name)
    try:
        folder = RunFolder.open(path)
        state = folder.read_json("status.json").get("state")
        folder.lock()
    except UserError as error:
        if "is being written by" in str(error):
            Console(quiet).line(f"{error}: left to that process")
            return "busy", None
        state = "failed"  # killed before it had begun
    else:
        folder.release()
    if state == "done":
        Console(quiet).line(f"{path} is done")
        return "done", finished(folder, exp.settings.allow)
    if state != "failed":
        return "resumed", session.resume(path, exp.settings.allow, quiet)
    _set_aside(path)
    return "repeated", session.start(exp, quiet, name)


def _set_aside(path: Path) -> None:
    number = 1
    while (hidden := path.with_name(f".{path.name}.failed-{number}")).exists():
        number += 1
    path.rename(hidden)


def shared_out(config: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The configuration of a job that runs beside others: one thread, and of several GPUs its own, by job number."""
    import torch

    config = dict(config)
    if config.get("threads") == "auto":
        config["threads"] = 1
    if config.get("device") in ("auto", "cuda") and torch.cuda.device_count() > 1:
        config["device"] = f"cuda:{number % torch.cuda.device_count()}"
    return config


def summary(jobs: Sequence[Job], out: str) -> str:
    """A line on a whole sweep, and one for each job that failed."""
    counts = {how: sum(job.how == how for job in jobs) for how in ("new", "resumed", "repeated", "done", "busy")}
    words = {"done": "done before", "busy": "left to another process"}
    said = ", ".join(f"{count} {words.get(how, how)}" for how, count in counts.items() if count)
    failed = [job for job in jobs if job.code]
    lines = [f"{len(jobs)} runs: {said or 'none finished'}" + (f", {len(failed)} failed" if failed else "")]
    lines += [f"  failed: {job.name}: {job.reason}" for job in failed]
    return "\n".join([*lines, f"look at them with: locallearn report {out}"])
