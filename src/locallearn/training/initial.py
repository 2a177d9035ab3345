"""What a run starts from, if not from weights drawn by its seed: the model of an earlier run, or a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from locallearn import paths
from locallearn.config.experiment import Experiment
from locallearn.config.settings import InitSettings
from locallearn.data import Data
from locallearn.data.normalise import Normalisation
from locallearn.engine.setup import DTYPES
from locallearn.errors import UserError
from locallearn.models import BlockModel
from locallearn.models.weights import Taken, read, sha256, take
from locallearn.runs import files
from locallearn.runs.folder import RunFolder
from locallearn.task import CLASSIFICATION
from locallearn.training.saved import load, plain_tensors

PATHS = {"data": ("root",), "init": ("run", "weights", "teacher"), "model": ("weights",)}
"""The options that name files; `model.weights` may also be a name of the model's library."""


def fill(model: BlockModel, init: InitSettings, cut: Sequence[range], classes: Sequence[str]) -> None:
    """Give a model the weights that `init` names; `model.taken` says which. A head is taken only from a run with the
    same classes. Raises UserError for what does not fit; then nothing has changed."""
    if init.blocks is not None and max(init.blocks) >= len(cut):
        raise UserError(f"init.blocks={init.blocks}: the model is cut into blocks 0 to {len(cut) - 1}; choose of these")
    units = None if init.blocks is None else sorted({i for block in init.blocks for i in cut[block]})
    if init.run is not None:
        folder = RunFolder.open(Path(init.run))
        before = folder.read_json(files.MANIFEST).get("classes")
        new_head = "" if before == [*classes] else f"of {len(classes)} classes, which are others than there"
        source, file, tensors = f"init.run={folder.path}", folder.path / files.MODEL, plain_tensors(folder)
    elif init.weights is not None:
        file = paths.expanded(init.weights).resolve()
        new_head, source = "", f"init.weights={file}"
        tensors = read(file, source)
    else:
        return
    text = take(model, tensors, source, units, new_head)
    model.taken = (*model.taken, Taken(source, sha256(file), text))


def check_same(model: BlockModel, manifest: Mapping[str, Any]) -> None:
    """Raise UserError where a run that goes on would not have the teacher that it had, or begin with other weights."""
    before = {old["source"].partition("=")[0]: old["sha256"] for old in manifest.get("weights") or []}
    for taken in model.taken:
        if before.get(taken.source.partition("=")[0], taken.sha256) != taken.sha256:
            raise UserError(f"{taken.source} is not what the run began with: put it back as it was, or start a new run")


class Teacher(nn.Module):
    """A trained model in eval mode, for inputs [B, C, ...] that are normalised as those of its student."""

    scale: Tensor | None
    shift: Tensor | None

    def __init__(self, model: BlockModel, own: Normalisation | None, theirs: Normalisation | None) -> None:
        super().__init__()
        self.model = model
        scale = shift = None
        if own is not None and theirs is not None and own != theirs:
            mean, std, its_mean, its_std = (
                torch.tensor(numbers, dtype=torch.float64).view(-1, 1, 1)
                for numbers in (theirs.mean, theirs.std, own.mean, own.std)
            )
            scale, shift = std / its_std, (mean - its_mean) / its_std
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x if self.scale is None or self.shift is None else x * self.scale + self.shift)


def with_teacher(exp: Experiment, model: BlockModel, data: Data, device: torch.device) -> Experiment:
    """The experiment with the teacher in its objective; `model.taken` says which. Raises UserError for a teacher of
    other inputs or classes."""
    assert exp.settings.init.teacher is not None, "checked with the settings"
    folder = RunFolder.open(Path(exp.settings.init.teacher))
    source, manifest = f"init.teacher={folder.path}", folder.read_json(files.MANIFEST)
    plain, digest = load(folder.path, exp.settings.allow), sha256(folder.path / files.MODEL)
    numbers = manifest.get("normalisation")
    own = None if numbers is None else Normalisation(**numbers)
    theirs = data.normaliser.normalisation if data.normaliser else None
    here = data.task.kind, data.image, [*data.classes], theirs is None
    if (manifest.get("task", CLASSIFICATION), plain.image, manifest["classes"], own is None) != here:
        raise UserError(
            f"{source} was trained on {list(plain.image)} inputs of {len(manifest['classes'])} classes, which are not "
            f"those of data={data.name} ({list(data.image)}, {len(data.classes)} classes): choose a teacher of these"
        )
    teacher = Teacher(plain, own, theirs).to(device, DTYPES[exp.settings.precision])
    count = sum(p.numel() for p in teacher.parameters())
    text = f"learns from {source}, of {count:,} parameters, which answers once for each batch"
    model.taken = (*model.taken, Taken(source, digest, text))
    strategy: Any = exp.strategy
    return replace(exp, strategy=replace(strategy, objective=replace(strategy.objective, teacher=teacher)))


def absolute(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration whose paths are found from any directory."""
    groups = {group: dict(config[group]) for group in PATHS if isinstance(config.get(group), Mapping)}
    for group, part in groups.items():
        for name in PATHS[group]:
            if isinstance(path := part.get(name), str) and (group != "model" or paths.expanded(path).exists()):
                part[name] = str(paths.expanded(path).resolve())
    return {**config, **groups}
