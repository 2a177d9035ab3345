"""Run folders as they are found: whole, unfinished, failed, damaged, moved. One bad run never hides the others."""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from locallearn import paths, stored
from locallearn.errors import UserError, did_you_mean
from locallearn.runs import again

FILES = {"config.yaml", "overrides.yaml", "manifest.json", "status.json", "metrics.jsonl", "summary.json"}
"""A folder with two of them is taken for one of a run."""
CURVE_RECORDS = 10_000
"""Of a longer history as many are read, evenly spaced, and the last one: enough for any picture."""
STATES = ("done", "running", "failed", "interrupted", "unreadable")


@dataclass(frozen=True)
class Run:
    """One run folder.

    state     done, running, failed, interrupted (also: killed) or unreadable
    reason    why it is not done
    config    the resolved configuration, flattened: `optim.lr`
    names     the choice of each group: `strategy` -> `dgl`
    history   the records of metrics.jsonl, one per epoch
    summary   the final numbers; of an unfinished run the last record
    rows      what each probe saw
    overrides what was set on the command line
    ended     when its state was last written, as ISO text; empty if unknown
    problems  sentences on what is missing or damaged
    """

    path: Path
    name: str
    state: str
    reason: str
    config: dict[str, Any]
    names: dict[str, str]
    history: list[dict[str, Any]] = field(repr=False, default_factory=list)
    summary: dict[str, Any] = field(repr=False, default_factory=dict)
    manifest: dict[str, Any] = field(repr=False, default_factory=dict)
    rows: dict[str, list[dict[str, Any]]] = field(repr=False, default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    ended: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.state == "done"

    @property
    def seed(self) -> int | None:
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def strategy(self) -> str:
        return self.names.get("strategy", "")

    @property
    def repeat(self) -> str:
        """The command that does this run again."""
        return self.command(self.overrides)

    def command(self, words: Sequence[str]) -> str:
        """A command of these words that sees the user's code and data as this run did."""
        called, folder = (str(self.manifest.get(name, "")) for name in ("command", "directory"))
        return again.repeated(words, called, folder)


def read(folders: Sequence[Path]) -> list[Run]:
    """Every run in these folders and the folders below, hidden ones left out; each once, in the order of their paths.

    Raises UserError for a folder that is not there, or if there is no run at all.
    """
    seen: set[Path] = set()
    found: list[Path] = []
    for folder in folders:
        folder = paths.expanded(folder)
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}: {_hint(folder)}give folders with runs")
        found += _find(folder, seen)
    if not found:
        where = ", ".join(map(str, folders))
        raise UserError(
            f"no run was found in {where}: the folder of a run holds config.yaml, status.json and metrics.jsonl; give "
            "the out= of your runs, or a folder above it"
        )
    return [read_run(path) for path in found]


def one(folder: Path) -> Run:
    """The run in this folder. Raises UserError if it is not that of a run, or if nothing in it can be read."""
    folder = paths.expanded(folder)
    if not folder.is_dir():
        raise UserError(f"there is no run folder {folder}: {_hint(folder)}give the folder of a run")
    if not is_run(folder, [path.name for path in folder.iterdir()]):
        raise UserError(f"{folder} is not the folder of a run: it has no config.yaml and no metrics.jsonl")
    run = read_run(folder)
    if run.state == "unreadable":
        raise UserError(f"{folder} cannot be compared: {run.reason}; choose another run")
    return run


def _hint(folder: Path) -> str:
    try:
        return did_you_mean(folder.name, [p.name for p in folder.parent.iterdir() if p.is_dir()])
    except OSError:
        return ""


def _find(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Run folders at and below `folder`; links are followed, and no folder is entered twice."""
    for here, below, files in os.walk(folder, followlinks=True):
        true = Path(here).resolve()
        if true in seen:
            below.clear()
            continue
        seen.add(true)
        if is_run(Path(here), files):
            below.clear()
            yield Path(here)
        below[:] = sorted(name for name in below if not name.startswith("."))


def is_run(folder: Path, files: Sequence[str]) -> bool:
    """Whether a folder with these files is that of a run, perhaps of one killed before it had begun."""
    if len(FILES & set(files)) >= 2:
        return True
    try:
        return ".lock" in files and (folder / ".lock").read_bytes()[:8] == b"process "
    except OSError:
        return False


def read_run(path: Path) -> Run:
    """One run folder, whatever state it is in."""
    try:
        return _read(path)
    except Exception as error:  # a file that no rule here foresaw must not hide the other runs
        return Run(path, path.name, "unreadable", f"{type(error).__name__}: {error}", {}, {})


def _read(path: Path) -> Run:
    problems: list[str] = []
    config = _mapping(path / "config.yaml", problems)
    manifest = _mapping(path / "manifest.json", problems)
    status = _mapping(path / "status.json", problems)
    history = _lines(path / "metrics.jsonl", problems, CURVE_RECORDS)
    state, reason = _state(path, status, config, history)
    summary = _mapping(path / "summary.json", problems if state == "done" else [])
    if state == "done":
        problems += _cut_short(history, summary)
    rows = {file.parent.name: _lines(file, problems) for file in sorted(path.glob("probes/*/rows.jsonl"))}
    choices = manifest.get("choices")
    names = {group: part["_target_"].rsplit(".")[-1] for group, part in config.items() if _has_target(part)}
    names |= {str(k): str(v) for k, v in choices.items()} if isinstance(choices, Mapping) else {}
    return Run(
        path=path,
        name=path.resolve().name,
        state=state,
        reason=reason,
        config=flat(config),
        names=names,
        history=history,
        summary=summary or (history[-1] if history else {}),
        manifest=manifest,
        rows=rows,
        overrides=_overrides(path / "overrides.yaml"),
        ended=str(status.get("time", "")),
        problems=problems,
    )


def _has_target(part: Any) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("_target_"), str)


def flat(config: Mapping[Any, Any], above: str = "") -> dict[str, Any]:
    """{"optim": {"lr": 0.1}} -> {"optim.lr": 0.1}; lists and empty mappings stay as they are."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{above}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return found


def _state(
    path: Path, status: Mapping[str, Any], config: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> tuple[str, str]:
    """What became of a run, and why."""
    if not config:
        begun = any((path / name).exists() for name in FILES)
        return "unreadable", "config.yaml is missing or damaged" if begun else "killed before it had begun"
    state = status.get("state")
    reason = str(status.get("reason") or "")
    last = f"after epoch {history[-1].get('epoch')}" if history else "before the end of its first epoch"
    if state == "running" and not _written_now(path):
        return "interrupted", f"killed {last}"
    if state == "running":
        return "running", f"still running, {last}"
    if state in STATES:
        return state, "" if state == "done" else reason or last
    if (path / "summary.json").exists():  # written last of all
        return "done", ""
    return "interrupted", f"stopped {last}: its status.json is missing or damaged"


def _written_now(path: Path) -> bool:
    """Whether a process of this machine, or of another on the same file system, holds the lock of a run."""
    try:
        handle = os.open(path / ".lock", os.O_RDONLY)
    except OSError:
        return False  # copied without it, so copied while it ran
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _cut_short(history: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> list[str]:
    """A sentence if a finished run has lost records."""
    last = history[-1].get("epoch") if history else 0
    if not summary or last == summary.get("epoch"):
        return []
    return [f"metrics.jsonl ends with epoch {last}, the run with epoch {summary.get('epoch')}: its curve is cut short"]


def _mapping(file: Path, problems: list[str]) -> dict[str, Any]:
    """The content of a yaml or json file; empty, and a problem more, if there is none."""
    try:
        return stored.mapping(file)
    except FileNotFoundError:
        problems.append(f"{file.name} is missing")
    except OSError as error:
        problems.append(f"{file.name} cannot be read: {error.strerror}")
    except ValueError as error:
        problems.append(f"{file.name} is damaged: {error}")
    return {}


def _lines(file: Path, problems: list[str], most: int | None = None) -> list[dict[str, Any]]:
    """The records of a .jsonl file that are whole, or about `most` of them, evenly spaced; a problem more for each that
    is not."""
    try:
        count = sum(1 for _ in stored.lines(file))
        every = math.ceil(count / most) if most and count > most else 1
        lines = [(n, line) for n, line in enumerate(stored.lines(file), 1) if n % every == 0 or n == count]
    except FileNotFoundError:
        problems.append(f"{file.name} is missing")
        return []
    except OSError as error:
        problems.append(f"{file.name} cannot be read: {error.strerror}")
        return []
    except ValueError as error:
        problems.append(f"{file.name} is left out: {error}")
        return []
    if every > 1:
        problems.append(f"{file.name} has {count:,} records: curves show one of {every}")
    found = []
    for number, line in lines:
        record = stored.record(line)
        if record is not None and line.endswith(b"\n"):
            found.append(record)
        elif number == count:
            problems.append(f"{file.name} ends in the middle of line {number}")
        else:
            problems.append(f"{file.name} is damaged in line {number}")
    return found


def _overrides(file: Path) -> list[str]:
    try:
        return stored.texts(file)
    except (OSError, ValueError):
        return []
