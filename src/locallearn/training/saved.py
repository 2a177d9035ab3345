"""What a run folder gives back: its experiment, its model, its result, and another look at its test accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from locallearn import seeds, stored
from locallearn.config.experiment import Experiment, experiment
from locallearn.data.fingerprint import Fingerprint
from locallearn.data.normalise import Normalisation
from locallearn.errors import UserError
from locallearn.models import BlockModel
from locallearn.options import convert, fields_of
from locallearn.probes import Moment, Probe, Seen
from locallearn.runs import again, checkpoint
from locallearn.runs.console import warn
from locallearn.runs.folder import RunFolder
from locallearn.training.environment import process_settings
from locallearn.training.evaluate import evaluate
from locallearn.training.loop import EVALUATION_BATCH
from locallearn.training.prepare import prepare
from locallearn.training.probing import START, ProbeFolder, first_looks, look
from locallearn.training.readout import linear_readout
from locallearn.training.run_data import check_data
from locallearn.training.train import Result

LARGEST = 1_000_000


def finished(folder: RunFolder, allow: list[str]) -> Result:
    """What a run has left in its folder."""
    return Result(folder.read_json("summary.json"), load(folder.path, allow), folder.path, folder.read_metrics())


def saved_experiment(
    folder: RunFolder,
    allow: list[str],
    runtime: tuple[str, dict[str, Any]] | None = None,
    changes: Mapping[str, Any] = MappingProxyType({}),
    said: Sequence[str] = (),
) -> tuple[Experiment, dict[str, Any]]:
    """The experiment of a run folder, perhaps with another runtime, and its manifest. Targets outside locallearn must
    be in `allow`. `said`: the settings from which `runtime` or `changes` were made; what of these is not read is
    refused, what the folder has saved never is."""
    known = folder.read_json("manifest.json")
    try:
        config = stored.mapping(folder.path / "config.yaml")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder.path / 'config.yaml'} cannot be read: {error}") from error
    _check(known, folder.path)
    if runtime is not None:
        changes = {**changes, "runtime": _elsewhere(config.get("runtime"), *runtime)}
        known["choices"] = known["choices"] | {"runtime": runtime[0]}
    return experiment({**config, "dry_run": False, "allow": allow, **changes}, known["choices"], said), known


def _check(known: Mapping[str, Any], path: Path) -> None:
    """Refuse a manifest that no run has written."""
    facts = {name: has_default for name, (_, has_default) in fields_of(Manifest).items()}
    if not known.keys() >= {name for name, has_default in facts.items() if not has_default}:
        raise UserError(f"{path} is not the folder of a run: config.yaml or manifest.json is incomplete")
    convert({name: known[name] for name in facts if name in known}, Manifest, "manifest.json")


@dataclass(frozen=True)
class Manifest:
    """What is read back from `manifest.json`: the choice of each group, the units of each block, the shape of one
    input, the names of the classes, the versions that trained, and, but for older runs, normalisation and data."""

    choices: dict[str, str]
    cut: list[list[int]]
    image: list[int]
    classes: list[str]
    versions: dict[str, Any]
    normalisation: Normalisation | None = None
    data: Fingerprint | None = None

    def __post_init__(self) -> None:
        blocks = [pair for pair in self.cut if len(pair) == 2 and pair[0] < pair[1]]
        starts = [0, *(stop for _, stop in blocks)]
        if not blocks or len(blocks) < len(self.cut) or [start for start, _ in blocks] != starts[:-1]:
            raise UserError(f"manifest.json: cut={self.cut!s:.100}: must be pairs of units, one after another from 0")
        if not 1 <= len(self.image) <= 4 or not all(1 <= size <= LARGEST for size in self.image):
            raise UserError(f"manifest.json: image={self.image}: must be one to four sizes of 1-{LARGEST}")
        if self.normalisation is not None and len(self.normalisation.mean) != self.image[0]:
            raise UserError(f"manifest.json: normalisation: must have a mean for each of {self.image[0]} channels")


def _elsewhere(before: Any, name: str, now: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of another runtime, with the part of the saved one that decides what is learned."""
    if not isinstance(before, Mapping):
        raise UserError("runtime is missing in the config.yaml of the run: it is not complete")
    if any("staleness" not in config for config in (before, now)):  # asynchronous: another algorithm
        raise UserError(
            f"a run under runtime=replay goes on only as such, and no other run does; leave runtime={name} out"
        )
    return {**now, "staleness": before["staleness"]}


def load(path: str | Path, allow: list[str] | None = None) -> BlockModel:
    """The trained plain model of a finished run, in eval mode, on the CPU; no auxiliary parameter is in it."""
    folder = RunFolder.open(Path(path))
    exp, known = saved_experiment(folder, allow or [])
    tensors = model_tensors(folder)
    # a graph is no part of the model's weights
    graph = exp.source.load(exp.settings.seed, torch.device("cpu")).graph if exp.model.reads_graph else None
    with seeds.stream(0, "load"):
        model = exp.model(tuple(known["image"]), len(known["classes"]), graph)
    model.to(dtype=next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32))
    shapes, found = ({name: list(t.shape) for name, t in named.items()} for named in (model.state_dict(), tensors))
    if names := sorted(name for name in shapes | found if shapes.get(name) != found.get(name)):
        raise UserError(f"{folder.path}: model.safetensors does not fit its config.yaml: {', '.join(names[:3])}")
    model.load_state_dict(tensors)
    return model.eval()


def model_tensors(folder: RunFolder) -> dict[str, Tensor]:
    """The weights of the plain model that a finished run has left. Raises UserError."""
    file = folder.path / "model.safetensors"
    if not file.is_file():
        raise UserError(f"{folder.path} has no model.safetensors: first end it, `{again.resume(folder.path)}`")
    try:
        return stored.tensors(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}; copy the run folder again, or repeat the run") from error


def evaluate_run(
    path: str | Path, allow: list[str], data_config: dict[str, Any] | None = None, linear: bool = False
) -> dict[str, float]:
    """Test loss and accuracy of a run, at every block that can predict, on its own data or on another set, whose images
    are normalised as those of the run; with `linear` also those of a linear classifier on each block's frozen
    features."""
    folder = RunFolder.open(Path(path))
    exp, known = saved_experiment(folder, allow, changes={"data": data_config} if data_config else {})
    with process_settings(exp.settings):
        saved = checkpoint.newest(folder.path / "checkpoints", warn)
        if saved is None:
            raise UserError(f"{folder.path} has no checkpoint to evaluate; `{again.resume(folder.path)}` goes on")
        learner, data = prepare(exp, [range(*pair) for pair in known["cut"]], known=known)
        if data_config is None:
            check_data(data, known)
        elif "normalisation" not in known:
            warn("the run is of an older version, which did not note its normalisation: that of this set is used")
        learner.load_state(saved.tensors)
        found = evaluate(learner, data.evaluation(data.test, EVALUATION_BATCH))
        return found | (linear_readout(learner, data) if linear else {})


def probe_run(
    path: str | Path, allow: list[str], probes: dict[str, Any], said: Sequence[str] = ()
) -> list[tuple[ProbeFolder, list[Path]]]:
    """Let probes look at the initial weights and at every checkpoint of a run. `probes` is their configuration, `said`
    the settings from which it was made.

    Returns for each its new folder under the run's `probes/` and the pictures in it. Raises UserError.
    """
    folder = RunFolder.open(Path(path))
    exp, known = saved_experiment(folder, allow, changes={"probe": probes}, said=said)
    with process_settings(exp.settings):
        folder.lock()
        try:
            learner, data = prepare(exp, [range(*pair) for pair in known["cut"]], known=known)
            check_data(data, known)
            found = [(START, first_looks(exp.probes, learner, data))]
            for saved in checkpoint.sound(folder.path / "checkpoints", warn):
                learner.load_state(saved.tensors)
                learner.step_count = saved.state["step"]
                at = Moment(saved.state["epoch"], saved.state["step"])
                found.append((at, {name: look(name, p, learner, data, at) for name, p in exp.probes.items()}))
            return [_kept(folder, name, p, [(at, seen[name]) for at, seen in found]) for name, p in exp.probes.items()]
        finally:
            folder.release()


def _kept(
    folder: RunFolder, name: str, probe: Probe, looks: list[tuple[Moment, Seen]]
) -> tuple[ProbeFolder, list[Path]]:
    place = ProbeFolder.unused(folder, name)
    for at, seen in looks:
        place.add(seen, at)
    return place, place.draw(probe)
