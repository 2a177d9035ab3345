"""Runs as they are found on disk: whole, unfinished, failed, damaged, moved. One bad run never hides the others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from locallearn import paths, stored
from locallearn.config.registry import flat
from locallearn.errors import UserError
from locallearn.names import ACCURACY, VALIDATION, higher_is_better, on
from locallearn.runs import again, files
from locallearn.runs.folder import is_locked, similar

KNOWN = {files.CONFIG, files.OVERRIDES, files.MANIFEST, files.STATUS, files.METRICS, files.SUMMARY}
"""A folder with two of these files is taken for that of a run."""
CURVE_RECORDS = 10_000
"""Of a longer history as many are read, evenly spaced, and the last one: enough for any picture."""
UNREADABLE = "unreadable"
STATES = (*files.STATES, UNREADABLE)
Content = TypeVar("Content")


@dataclass(frozen=True)
class Run:
    """One run folder.

    state     done, running, failed, interrupted (also: killed) or unreadable
    reason    why it is not done
    config    the resolved configuration, flattened: `optim.lr`
    names     the choice of each group: `strategy` -> `dgl`
    history   the records of metrics.jsonl, one per epoch
    inside    those inside an epoch, whose `epoch` is a fraction: of the last steps, or of an evaluation
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
    inside: list[dict[str, Any]] = field(repr=False, default_factory=list)

    @property
    def done(self) -> bool:
        return self.state == "done"

    @property
    def seed(self) -> int | None:
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def score(self) -> str:
        """The metric that the run is judged by: its task says which."""
        score = self.manifest.get("score")
        return score if isinstance(score, str) else ACCURACY

    @property
    def selected_by(self) -> str:
        """The number that choices between runs are made by: never one of the test set."""
        return on(VALIDATION, self.score)

    @property
    def metrics(self) -> dict[str, str]:
        """The metrics of its task, "up" where more is better and "down" where less is."""
        metrics = self.manifest.get("metrics")
        return metrics if isinstance(metrics, dict) else {}

    @property
    def rank(self) -> float:
        """What runs are sorted by, the best first; 0 without a validation part."""
        value = self.summary.get(self.selected_by)
        sign = -1.0 if higher_is_better(self.selected_by, self.metrics) else 1.0
        return sign * value if isinstance(value, int | float) else 0.0

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
    runs: list[Path] = []
    for folder in map(paths.expanded, folders):
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}: {similar(folder)}give folders with runs")
        runs += _find(folder, seen)
    if not runs:
        where = ", ".join(map(str, folders))
        raise UserError(
            f"no run was found in {where}: the folder of a run holds config.yaml, status.json and metrics.jsonl; give "
            "the out= of your runs, or a folder above it"
        )
    return [read_run(path) for path in runs]


def one(folder: Path) -> Run:
    """The run in this folder. Raises UserError if it is not that of a run, or if nothing in it can be read."""
    folder = paths.expanded(folder)
    if not folder.is_dir():
        raise UserError(f"there is no run folder {folder}: {similar(folder)}give the folder of a run")
    if not is_run(folder, [path.name for path in folder.iterdir()]):
        raise UserError(f"{folder} is not the folder of a run: it has no config.yaml and no metrics.jsonl")
    run = read_run(folder)
    if run.state == UNREADABLE:
        raise UserError(f"{folder} cannot be compared: {run.reason}; choose another run")
    return run


def _find(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Run folders at and below `folder`; links are followed, and no folder is entered twice."""
    for here, below, names in os.walk(folder, followlinks=True):
        true = Path(here).resolve()
        if true in seen:
            below.clear()
            continue
        seen.add(true)
        if is_run(Path(here), names):
            below.clear()
            yield Path(here)
        below[:] = sorted(name for name in below if not name.startswith("."))


def is_run(folder: Path, names: Sequence[str]) -> bool:
    """Whether a folder with files of these names is that of a run, perhaps of one killed before it had begun."""
    if len(KNOWN & set(names)) >= 2:
        return True
    try:
        return files.LOCK in names and (folder / files.LOCK).read_bytes()[:8] == b"process "
    except OSError:
        return False


def read_run(path: Path) -> Run:
    """One run folder, whatever state it is in."""
    try:
        return _read(path)
    except Exception as error:  # a file that no rule here foresaw must not hide the other runs
        return Run(path, path.name, UNREADABLE, f"{type(error).__name__}: {error}", {}, {})


def _read(path: Path) -> Run:
    problems: list[str] = []
    config = _mapping(path / files.CONFIG, problems)
    manifest = _mapping(path / files.MANIFEST, problems)
    status = _mapping(path / files.STATUS, problems)
    history = _records(path / files.METRICS, problems, CURVE_RECORDS, inside=False)
    state, reason = _state(path, status, config, history)
    summary = _mapping(path / files.SUMMARY, problems if state == "done" else [])
    if state == "done":
        problems += _cut_short(history, summary)
    probes = sorted(path.glob(f"{files.PROBES}/*/{files.ROWS}"))
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
        rows={file.parent.name: _records(file, problems) for file in probes},
        overrides=_tried(stored.texts, path / files.OVERRIDES, [], []),
        ended=str(status.get("time", "")),
        problems=problems,
        inside=_records(path / files.METRICS, [], CURVE_RECORDS, inside=True),
    )


def _has_target(part: Any) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("_target_"), str)


def _state(
    path: Path, status: Mapping[str, Any], config: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> tuple[str, str]:
    """What became of a run, and why."""
    if not config:
        begun = any((path / name).exists() for name in KNOWN)
        return UNREADABLE, "config.yaml is missing or damaged" if begun else "killed before it had begun"
    state, reason = status.get("state"), str(status.get("reason") or "")
    last = f"after epoch {history[-1].get('epoch')}" if history else "before the end of its first epoch"
    if state == "running":
        return ("running", f"still running, {last}") if is_locked(path) else ("interrupted", f"killed {last}")
    if state in STATES:
        return state, "" if state == "done" else reason or last
    if (path / files.SUMMARY).exists():  # written last of all
        return "done", ""
    return "interrupted", f"stopped {last}: its status.json is missing or damaged"


def _cut_short(history: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> list[str]:
    """A sentence if a finished run has lost records."""
    last = history[-1].get("epoch") if history else 0
    if not summary or last == summary.get("epoch"):
        return []
    return [f"metrics.jsonl ends with epoch {last}, the run with epoch {summary.get('epoch')}: its curve is cut short"]


def _tried(read: Callable[[Path], Content], file: Path, empty: Content, problems: list[str]) -> Content:
    """What `read` gives for a file; `empty`, and a problem more, if it cannot be read."""
    try:
        return read(file)
    except FileNotFoundError:
        problems.append(f"{file.name} is missing")
    except (OSError, ValueError) as error:
        problems.append(f"{file.name} cannot be read: {files.reason(error)}")
    return empty


def _mapping(file: Path, problems: list[str]) -> dict[str, Any]:
    return _tried(stored.mapping, file, {}, problems)


def _records(file: Path, problems: list[str], most: int = 2**62, inside: bool | None = None) -> list[dict[str, Any]]:
    """The records of a .jsonl file that are whole, or about `most` of them, evenly spaced; a problem more for each that
    is not. `inside`: those that are, or are not, inside an epoch."""

    def read(file: Path) -> list[dict[str, Any]]:
        count, end = files.count_lines(file, inside), files.count_lines(file)
        every = -(-count // most) or 1
        if every > 1:
            problems.append(f"{file.name} has {count:,} records: curves show one of {every}")
        records = []
        for line in files.lines(file, every, count, inside):
            if line.torn or line.record is None:
                what = "ends in the middle of" if line.number == end else "is damaged in"
                problems.append(f"{file.name} {what} line {line.number}")
            else:
                records.append(line.record)
        return records

    return _tried(read, file, [], problems)
