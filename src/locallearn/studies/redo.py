"""Do the runs of a result again, and hold their numbers against it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from locallearn.config.compose import compose
from locallearn.config.experiment import experiment
from locallearn.errors import UserError
from locallearn.runs.read import read_run
from locallearn.studies.definition import UNITS
from locallearn.studies.results import ABOUT
from locallearn.studies.runner import place, run


class Redone(NamedTuple):
    """One seed of a result: what it says, and what came of the same settings now."""

    seed: int
    before: float
    now: float
    causes: list[str]

    def __str__(self) -> str:
        if self.before == self.now:
            return f"seed {self.seed}: {self.now:.4f}, to the last bit"
        causes = "; not the same: " + ", ".join(self.causes) if self.causes else "; machine and versions agree"
        return f"seed {self.seed}: {self.now:.4f}, there {self.before:.4f}{causes}"


def redo(
    content: Mapping[str, Any],
    out: Path,
    data: Path | None = None,
    dirs: Sequence[Path] = (),
    allow: Sequence[str] = (),
) -> Iterator[Redone]:
    """Run every seed of a checked result, with its number of threads, into `out`; one that is done there is only read.

    Raises UserError where its settings do not compose here, RunError and Interrupted as any run.
    """
    for each in content["runs"]:
        where = [f"out={out}", *([f"allow=[{','.join(allow)}]"] if allow else [])]
        words = [*map(str, content["settings"]), f"seed={each['seed']}", *where]
        config, names = compose(words, dirs)
        exp = experiment(config, names, words, dirs)
        if data and "root" not in exp.source.unread():
            words.append(f"data.root={data}")
            config["data"]["root"] = str(data)
            exp = experiment(config, names, words, dirs)
        path = place(str(out), [content["row"], f"seed {each['seed']}"], config)
        _, summary = run(exp, path)
        if content["metric"] not in summary:
            raise UserError(f"{path} is another process's run: wait for it, or choose another folder: --out DIR")
        now = UNITS[content["unit"]] * summary[content["metric"]]
        yield Redone(each["seed"], each["value"], now, list(_causes(content, read_run(path).manifest)))


def _causes(content: Mapping[str, Any], manifest: Mapping[str, Any]) -> Iterator[str]:
    """What of machine, versions and data is not as it was."""
    before = content["machine"] | content["versions"]
    now = {key: manifest.get(key) for key in ABOUT} | manifest.get("versions", {})
    for key, value in before.items():
        if key in now and now[key] != value:
            yield key if isinstance(value, dict) else f"{key} {value}, now {now[key]}"
