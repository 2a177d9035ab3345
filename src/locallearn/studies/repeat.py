"""Run a finished run again, and compare every bit of what both left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from locallearn.errors import UserError
from locallearn.names import divided
from locallearn.runs import again, files
from locallearn.runs.folder import RunFolder
from locallearn.runtime.world import started_together
from locallearn.training.prepare import fingerprint_of_run
from locallearn.training.run import start
from locallearn.training.saved import model_tensors, saved_experiment

REPEATS = "repeats"
COST = ("seconds", "images_per_second", "peak_memory_bytes", "waiting")
"""Numbers that no run repeats: what it cost."""
DECIDE = (
    *("threads", "device", "device_type", "precision", "channels_last", "compile", "deterministic", "cut", "delays"),
    *("weights", "tf32"),
)


@dataclass(frozen=True)
class Repetition:
    """A run and its repetition: `differences` are sentences, none if every bit agrees; `causes` what was not the same
    in the machine, in the settings that decide the bits, or in the data, and `agree` what was."""

    path: Path
    tensors: int
    records: int
    differences: list[str]
    causes: list[str]
    agree: str = "machine, versions and settings"

    def __str__(self) -> str:
        if not self.differences:
            return f"the bits agree: {self.tensors} tensors of the model, {self.records} records of metrics.jsonl"
        causes = [f"  not the same: {cause}" for cause in self.causes] or [f"  {self.agree} agree"]
        return "\n".join(["the bits differ", *(f"  {text}" for text in self.differences), *causes])


def repeat(path: str | Path, allow: list[str], quiet: bool = False) -> Repetition:
    """Run the experiment of a finished run again, with its threads, on its kind of device and in its cut, into the
    folder `repeats` of that run; then compare the weights and every recorded number but time and memory.

    Raises UserError if the run is not done, RunError and Interrupted as any run.
    """
    if started_together():
        raise UserError(
            "torchrun starts the processes of one run: repeat a run without it; its stages start themselves"
        )
    folder = RunFolder.open(Path(path))
    state = folder.state
    if state != "done":
        first = again.resume(folder.path)
        raise UserError(f"{folder.path} is {state}, and only a finished run can be compared; first `{first}`")
    compare(folder, folder)  # what cannot be read is said before a long run, not after it
    known = folder.read_json(files.MANIFEST)
    if known.get("longer"):
        raise UserError(f"{folder.path} was extended while it trained, which no repetition can do: repeat another run")
    changes = {
        "threads": known.get("threads", "auto"),
        "blocks": [start for start, _ in known["cut"][1:]] or 1,  # not as a balance by measured time would cut now
        "record": {"wandb": None, "tensorboard": None},
        "out": str(folder.path / REPEATS),
    }
    exp, _ = saved_experiment(folder, allow, changes=changes)
    result = start(exp, quiet, first=known)
    assert result is not None  # only processes of torchrun have none
    return compare(folder, RunFolder.open(result.run_dir))


def compare(folder: RunFolder, again: RunFolder) -> Repetition:
    """What two finished runs left."""
    first, second = (f.read_json(files.MANIFEST) for f in (folder, again))
    causes = [f"{k} {first.get(k)}, now {second.get(k)}" for k in DECIDE if first.get(k) != second.get(k)]
    versions = first.get("versions", {}), second.get("versions", {})
    causes += [
        f"{name} {versions[0].get(name)}, now {versions[1].get(name)}"
        for name in versions[1]
        if versions[0].get(name) != versions[1].get(name)
    ]
    agree = "machine, versions and settings"
    before, now = fingerprint_of_run(first), fingerprint_of_run(second)
    if before and now:
        agree = "machine, versions, settings and data"
        causes += [f"the data differ: {before.change(now)}"] * (before != now)
    tensors = model_tensors(folder)
    records = folder.read_metrics()
    differences = [
        *_of_tensors(tensors, model_tensors(again)),
        *_of_records(records, again.read_metrics()),
    ]
    return Repetition(again.path, len(tensors), len(records), differences, causes, agree)


def _of_tensors(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> Iterator[str]:
    if odd := sorted(first.keys() ^ second.keys()):
        yield f"only one of the models has {', '.join(odd[:3])}"
    different = [name for name in first if name in second and not _same(first[name], second[name])]
    if different:
        worst = different[0]
        by = (first[worst].double() - second[worst].double()).abs().max().item()
        yield f"{len(different)} of {len(first)} tensors of the model, the first is {worst}: by {by:.3g} at most"


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def _of_records(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> Iterator[str]:
    """The first number that is another one."""
    if len(first) != len(second):
        yield f"metrics.jsonl has {len(first)} records, now {len(second)}"
    for a, b in zip(first, second, strict=False):
        for name in sorted(a.keys() | b.keys()):
            if divided(name)[1] not in COST and a.get(name) != b.get(name):
                yield f"metrics.jsonl, from epoch {a.get('epoch')}: {name} {a.get(name)}, now {b.get(name)}"
                return
