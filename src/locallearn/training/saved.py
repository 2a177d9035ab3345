"""What a run folder gives back: its experiment, its model and its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from locallearn import seeds, stored
from locallearn.config.compose import compose
from locallearn.config.experiment import Experiment, experiment
from locallearn.config.given import in_place
from locallearn.config.objects import compared, marks, missing
from locallearn.config.targets import model_for
from locallearn.data.fingerprint import Fingerprint
from locallearn.data.normalise import Normalisation, Normaliser
from locallearn.engine.answer import AnsweringModel, answering_blocks
from locallearn.engine.assemble import specs_of
from locallearn.engine.setup import Setup
from locallearn.errors import UserError
from locallearn.inputs import InputPart, Inputs
from locallearn.models import BlockModel
from locallearn.models.weights import Taken
from locallearn.names import ACCURACY
from locallearn.options import convert, fields_of
from locallearn.runs import again, files
from locallearn.runs.console import warn
from locallearn.runs.folder import RunFolder
from locallearn.task import CLASSES, CLASSIFICATION, SAMPLE, Task
from locallearn.tasks import TASKS

LARGEST = 1_000_000
NONE_GIVEN: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Result:
    """What a finished run gives back.

    metrics   final values by the names used in metrics.jsonl, plus parameters, auxiliary_parameters and seconds
    model     the trained model, in eval mode
    run_dir   where everything was written
    history   the records of metrics.jsonl at the end of each epoch, in order: `pandas.DataFrame(result.history)`
    """

    metrics: dict[str, float]
    model: BlockModel
    run_dir: Path
    history: list[dict[str, Any]] = field(repr=False, default_factory=list)


def finished(folder: RunFolder, allow: list[str], objects: Mapping[str, Any] = NONE_GIVEN) -> Result:
    """What a run has left in its folder."""
    return Result(folder.read_json(files.SUMMARY), load(folder.path, allow, objects), folder.path, folder.history())


def saved_experiment(
    folder: RunFolder,
    allow: list[str],
    runtime: tuple[str, dict[str, Any]] | None = None,
    changes: Mapping[str, Any] = NONE_GIVEN,
    overrides: Sequence[str] = (),
    objects: Mapping[str, Any] = NONE_GIVEN,
    same: bool = False,
) -> tuple[Experiment, dict[str, Any]]:
    """The experiment of a run folder, perhaps with another runtime or other `changes`, and its manifest.

    Targets outside locallearn must be in `allow`. `overrides` are the settings from which the changes were made: what
    is not read of these is refused, what the folder has saved never is. `objects` are Python's own: where they are not
    known to be the `same` as those of the run, another class is refused, and of changed source it warns.
    """
    config, manifest = _read(folder)
    if runtime is not None:
        changes = {**changes, "runtime": _elsewhere(config.get("runtime"), *runtime)}
        manifest["choices"] = manifest["choices"] | {"runtime": runtime[0]}
    now = {**config, "dry_run": False, "allow": allow, **changes}
    exp = experiment(now, manifest["choices"], overrides, objects=objects)
    if same:  # of a class that came by value nobody can read the source
        return replace(exp, config={key: config[key] for key in exp.config}), manifest
    for change in compared(config, exp.config, objects.keys() - changes.keys()):
        warn(f"{change} since {folder.path} began: not bit-exact with its first part")
    return exp, manifest


def _read(folder: RunFolder) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration and manifest of a run. Raises UserError."""
    manifest = folder.read_json(files.MANIFEST)
    try:
        config = stored.mapping(folder.path / files.CONFIG)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder.path / files.CONFIG} cannot be read: {error}") from error
    _check(manifest, folder.path)
    return config, manifest


def _check(manifest: Mapping[str, Any], path: Path) -> None:
    """Refuse a manifest that no run has written."""
    facts = {name: has_default for name, (_, has_default) in fields_of(Manifest).items()}
    if not manifest.keys() >= {name for name, has_default in facts.items() if not has_default}:
        raise UserError(f"{path} is not the folder of a run: config.yaml or manifest.json is incomplete")
    convert({name: manifest[name] for name in facts if name in manifest}, Manifest, "manifest.json")


@dataclass(frozen=True)
class Longer:
    """How a run was made longer after `step` steps: from `before` epochs to `epochs`; see `training.longer`."""

    before: int
    epochs: int
    schedule: str
    step: int = 0


@dataclass(frozen=True)
class Manifest:
    """What is read back from `manifest.json`: the choice of each group, the units of each block, the shape of one
    input, the names of the classes, the versions that trained, and, but for older runs, normalisation and data, the
    task, the form of its answers, its score and its metrics ("up" or "down"), and how many tokens there are; how it was
    made longer, what of its weights was from elsewhere, and whether the plain model answers."""

    choices: dict[str, str]
    cut: list[list[int]]
    image: list[int]
    classes: list[str]
    versions: dict[str, Any]
    normalisation: Normalisation | None = None
    data: Fingerprint | None = None
    task: str = CLASSIFICATION
    form: Literal["sample", "position", "boxes"] = "sample"
    score: str = ACCURACY
    metrics: dict[str, str] | None = None
    vocabulary: int | None = None
    inputs: list[InputPart] | None = None
    plain: bool = True
    task_options: dict[str, Any] | None = None
    longer: list[Longer] = field(default_factory=list)
    weights: list[Taken] = field(default_factory=list)

    def __post_init__(self) -> None:
        blocks = [pair for pair in self.cut if len(pair) == 2 and pair[0] < pair[1]]
        starts = [0, *(stop for _, stop in blocks)]
        if not blocks or len(blocks) < len(self.cut) or [start for start, _ in blocks] != starts[:-1]:
            raise UserError(f"manifest.json: cut={self.cut!s:.100}: must be pairs of units, one after another from 0")
        if not 1 <= len(self.image) <= 4 or not all(1 <= size <= LARGEST for size in self.image):
            raise UserError(f"manifest.json: image={self.image}: must be one to four sizes of 1-{LARGEST}")
        numbers = self.normalisation
        if numbers is not None and {len(numbers.mean), len(numbers.std)} != {self.image[0]}:
            raise UserError(
                f"manifest.json: normalisation: needs a mean and a std for each of {self.image[0]} channels"
            )


def _elsewhere(before: Any, name: str, now: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of another runtime, with the part of the saved one that decides what is learned."""
    if not isinstance(before, Mapping):
        raise UserError("runtime is missing in the config.yaml of the run: copy the run folder again")
    if any("staleness" not in config for config in (before, now)):  # asynchronous: another algorithm
        raise UserError(
            f"a run under runtime=replay goes on only under it, and no other run does; leave runtime={name} out"
        )
    return {**now, "staleness": before["staleness"]}


def ranges(pairs: Any) -> list[range]:
    """The cut or the stages that a manifest holds."""
    return [range(*pair) for pair in pairs]


def load(path: str | Path, allow: list[str], objects: Mapping[str, Any] = NONE_GIVEN, own: bool = False) -> BlockModel:
    """The model that a finished run has trained, in eval mode, on the CPU. Of its objects only the model must be given,
    the data if it reads a graph, and a strategy that answers in a way of its own; `own` puts the weights into the very
    module that is given. Raises UserError."""
    folder = RunFolder.open(Path(path))
    config, _ = _read(folder)
    marked = marks(config)
    unasked = {place.partition(".")[0] for place in marked} - {"model", *objects}
    changes = {group: compose([])[0].get(group) for group in sorted(unasked)}
    exp, manifest = saved_experiment(folder, allow, changes=changes, objects=objects)
    plain = manifest.get("plain", True)
    needed = {"data": "graph" in exp.model.asks, "strategy": not plain}
    if lacking := {group: marked[group] for group, wanted in needed.items() if wanted and group in unasked}:
        raise missing(lacking)
    tensors = model_tensors(folder)
    # a graph is no part of the model's weights
    graph = exp.source.load(exp.settings.seed, torch.device("cpu")).graph if "graph" in exp.model.asks else None
    with seeds.stream(0, "load"):
        form, vocabulary = manifest.get("form", SAMPLE), manifest.get("vocabulary")
        inputs = Inputs.saved(manifest.get("inputs"))
        build = in_place(exp.model, objects["model"]) if own else exp.model.bare
        model = model_for(build, tuple(manifest["image"]), len(manifest["classes"]), form, graph, vocabulary, inputs)
    if not plain:
        numbers = manifest.get("normalisation")
        pixels = Normaliser.of(Normalisation(**numbers), torch.device("cpu")).pixels if numbers else None
        chosen = exp.settings.train_blocks
        trained = None if chosen is None else frozenset(chosen)
        setup = Setup(seed=exp.settings.seed, task=task_of(manifest), pixels=pixels)
        cut = ranges(manifest["cut"])
        blocks = answering_blocks(model, exp.strategy, cut, specs_of(model, cut, setup), trained)
        model = AnsweringModel(model, exp.strategy, blocks)
    model.to(dtype=next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32))
    built, saved = ({name: list(t.shape) for name, t in named.items()} for named in (model.state_dict(), tensors))
    if names := sorted(name for name in built | saved if built.get(name) != saved.get(name)):
        raise UserError(f"{folder.path}: model.safetensors does not fit its config.yaml: {', '.join(names[:3])}")
    model.load_state_dict(tensors)
    if own:
        objects["model"].eval()  # what holds the layers of the model, too
    return model.eval()


def plain_tensors(folder: RunFolder) -> dict[str, Tensor]:
    """`model_tensors` without those of modules that a strategy ships with the model."""
    return {name: t for name, t in model_tensors(folder).items() if not name.startswith("auxiliary.")}


def task_of(manifest: Mapping[str, Any]) -> Task:
    """What was asked of the model of a run."""
    task, options = TASKS.get(manifest.get("task", CLASSIFICATION)), manifest.get("task_options") or {}
    return convert(options, task, "manifest.json: task_options") if task is not None else CLASSES


def model_tensors(folder: RunFolder) -> dict[str, Tensor]:
    """The weights that a finished run has left. Raises UserError."""
    file = folder.path / files.MODEL
    if not file.is_file():
        raise UserError(f"{folder.path} has no model.safetensors: first end it, `{again.resume(folder.path)}`")
    try:
        return stored.tensors(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}; copy the run folder again, or repeat the run") from error
