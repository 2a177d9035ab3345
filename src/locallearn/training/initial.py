"""What a run starts from, if not from weights drawn by its seed: the model of an earlier run, or a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from locallearn import paths
from locallearn.config.settings import InitSettings
from locallearn.errors import UserError
from locallearn.models import BlockModel
from locallearn.models.weights import Taken, read, sha256, take
from locallearn.runs import files
from locallearn.runs.folder import RunFolder
from locallearn.training.saved import model_tensors

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
        source, file, tensors = f"init.run={folder.path}", folder.path / files.MODEL, model_tensors(folder)
    elif init.weights is not None:
        file = paths.expanded(init.weights).resolve()
        new_head, source = "", f"init.weights={file}"
        tensors = read(file, source)
    else:
        return
    text = take(model, tensors, source, units, new_head)
    model.taken = (*model.taken, Taken(source, sha256(file), text))


def check_same(model: BlockModel, manifest: Mapping[str, Any]) -> None:
    """Raise UserError where a run that begins again would not begin with the weights that it had."""
    before = manifest.get("weights", [])
    for taken, old in zip(model.taken, before, strict=False):
        if taken.sha256 != old.get("sha256"):
            raise UserError(f"{taken.source} is not what the run began with: put it back as it was, or start a new run")


def absolute(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration whose paths are found from any directory."""
    groups = {group: dict(config[group]) for group in PATHS if isinstance(config.get(group), Mapping)}
    for group, part in groups.items():
        for name in PATHS[group]:
            if isinstance(path := part.get(name), str) and (group != "model" or paths.expanded(path).exists()):
                part[name] = str(paths.expanded(path).resolve())
    return {**config, **groups}
