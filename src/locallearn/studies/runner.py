"""Many runs: each in a folder named by its settings, so that whoever starts them again goes on with them.

A finished run is only read, one that was interrupted or killed is resumed, and one that failed is repeated from the
start; the folder of the failed attempt is kept beside it under a hidden name. Sweeps, searches and studies all stand on
this module.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple

from locallearn.config.experiment import Experiment, experiment
from locallearn.config.settings import WHERE
from locallearn.errors import RunError, UserError, described
from locallearn.names import TEST, in_words, on
from locallearn.runs.console import Console
from locallearn.runs.files import SUMMARY, strict_json
from locallearn.runs.folder import Busy, RunFolder, safe_name
from locallearn.runs.read import read_run
from locallearn.training.later import evaluate_run
from locallearn.training.run import resume, start
from locallearn.training.stopping import Interrupted

READOUT = "linear_readout.json"
"""The file of a run folder with the accuracy of linear classifiers on frozen features, where a study asks for it."""
STATES_TO_RESUME = ("running", "interrupted")
NAME_LIMIT = 80


def identity(config: Mapping[str, Any]) -> str:
    """Eight digits that two configurations share if they mean the same run, wherever it runs and its data lie."""
    meant = {key: value for key, value in config.items() if key not in WHERE}
    if not meant.get("callback"):  # older configurations have none
        meant.pop("callback", None)
    meant["data"] = {key: value for key, value in meant.get("data", {}).items() if key != "root"}
    same = json.loads(json.dumps(meant, default=str), parse_int=float)  # lr=1 is lr=1.0
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:8]


def place(out: str, differs: Iterable[str], config: Mapping[str, Any]) -> Path:
    """The folder of a run in `out`: the one that has its identity, whoever has made it, else a new one named by what
    differs from the other runs."""
    folder, digits = Path(out).expanduser(), identity(config)
    name = "_".join(differs).replace("e+", "e")  # 1e+30 without its sign is not 1e-30
    known = sorted(path for path in folder.glob(f"*_{digits}") if not path.name.startswith("."))
    return known[0] if known else folder / f"{safe_name(name or 'run')[:NAME_LIMIT].rstrip('-.')}_{digits}"


def state_of(path: Path) -> str | None:
    """What the folder of a run says became of it; None if it was killed before it had begun, or is not there."""
    try:
        return RunFolder.open(path).state
    except UserError:
        return None


def run(exp: Experiment, path: Path, quiet: bool = False) -> tuple[str, dict[str, Any]]:
    """Do what is left to do of one run in the folder `path`.

    Returns how it went (new, resumed, repeated, done or busy) and the numbers of its summary. Raises UserError,
    RunError and Interrupted as any run.
    """
    folder = RunFolder(path)
    try:
        if not path.exists():
            how = "new"
        else:
            folder.lock()
            try:
                how = _what_to_do(folder)
            finally:
                folder.release()
        if how == "done":
            Console(quiet).line(f"{path} is done")
        elif how == "resumed":
            resume(path, exp.settings.allow, quiet)
        else:
            start(exp, quiet, path.name)
    except Busy as error:
        Console(quiet).line(f"{error}: left to that process")
        return "busy", {}
    return how, folder.read_json(SUMMARY)


def _what_to_do(folder: RunFolder) -> str:
    """Done, resumed or repeated; for the last the old folder, which the caller has locked, is set aside."""
    state = state_of(folder.path)
    if state == "done":
        return "done"
    if state in STATES_TO_RESUME:
        return "resumed"
    number = 1
    while (hidden := folder.path.with_name(f".{folder.path.name}.failed-{number}")).exists():
        number += 1
    folder.path.rename(hidden)
    return "repeated" if state else "new"


@dataclass(frozen=True)
class PlannedRun:
    """One run of many.

    title    what it is called in a line of progress
    config, names, overrides   as composed
    folder   where it lies
    config_dirs   the user's own yaml files
    readout  also fit a linear classifier to the frozen features of every block
    """

    title: str
    config: dict[str, Any]
    names: dict[str, str]
    overrides: list[str]
    folder: Path
    config_dirs: tuple[Path, ...] = ()
    readout: bool = False

    @property
    def done(self) -> bool:
        return state_of(self.folder) == "done" and (not self.readout or (self.folder / READOUT).is_file())

    @property
    def command(self) -> str:
        dirs = [f"--config-dir={folder}" for folder in self.config_dirs]
        return shlex.join(["python", "-m", "locallearn", *self.overrides, *dirs])


class Outcome(NamedTuple):
    """How a task went: as `run` says it, failed or interrupted; and a word on its result, or the reason."""

    how: str
    text: str


def run_all(tasks: Sequence[PlannedRun], jobs: int) -> list[str]:
    """Do every task that is not done, `jobs` at a time, with one thread each, in processes that stay: to start Python
    and import PyTorch takes longer than many a run.

    Prints a line for each run as it ends. Returns a sentence for each that failed, with its command; the others go on.
    Raises KeyboardInterrupt after SIGINT, once the running ones have saved their state.
    """
    missing = sorted((task for task in tasks if not task.done), key=lambda task: task.readout)
    todo = list({task.folder: task for task in missing}.values())  # equal settings are one run
    if not todo:
        return []
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of what probes call beside PyTorch
    failures = []
    with ProcessPoolExecutor(min(jobs, len(todo)), get_context("spawn"), _begin_worker) as pool:
        waiting = {pool.submit(_do, task): task for task in todo}
        try:
            for number, future in enumerate(as_completed(waiting), 1):
                task, (how, text) = waiting[future], future.result()
                print(f"[{number}/{len(todo)}] {task.title}: {how}: {text}", flush=True)
                if how == "interrupted":
                    raise KeyboardInterrupt
                if how in ("failed", "busy"):
                    failures.append(f"{task.title}: {text}\n  {task.command}")
        except BrokenProcessPool:
            raise RunError(
                "a process was killed, perhaps for lack of memory; start the study again, and it goes on"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return failures


def _begin_worker() -> None:
    """A worker ends with its parent: were that killed, its run would go on beside the one that is started next."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # while it waits for work

    def wait() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _do(task: PlannedRun) -> Outcome:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        exp = experiment(task.config, task.names, task.overrides, task.config_dirs)
        how, numbers = run(exp, task.folder, quiet=True)
        if how == "busy":
            return Outcome(how, "left to another process")
        if task.readout:
            readout = evaluate_run(task.folder, exp.settings.allow, linear=True)
            RunFolder.open(task.folder).write_text(READOUT, strict_json(readout))
    except (Interrupted, KeyboardInterrupt) as error:
        return Outcome("interrupted", str(error) or "stopped at once")
    except Exception as error:
        known = isinstance(error, UserError | RunError)
        return Outcome("failed", " ".join((str(error) if known else described(error)).split()))
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    name = on(TEST, read_run(task.folder).score)
    shown = f"{in_words(name)} {numbers[name]:.4f}, " if name in numbers else ""
    return Outcome(how, f"{shown}{numbers['seconds']:.0f} s")
