"""Weights from elsewhere, of a file or an earlier run: taken into a model by the names of its tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from locallearn import paths, stored
from locallearn.errors import UserError, in_one_line
from locallearn.models.base import BlockModel

NESTED = ("state_dict", "model", "model_state_dict")
"""Under these names programs keep a state dict beside other things."""
COUNTS = "num_batches_tracked"
"""Of a batch norm; older files have none."""


@dataclass(frozen=True)
class Taken:
    """What a model has of its weights from elsewhere: `text` says it in words."""

    source: str
    sha256: str
    text: str


def read(path: str | Path, said: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a state dict that torch has saved, of which nothing but tensors is read.
    Raises UserError, beginning with `said`."""
    file = paths.expanded(path)
    if not file.is_file():
        raise UserError(f"{said}: there is no such file; give one of safetensors, or a state dict that torch has saved")
    try:
        if file.suffix == ".safetensors":
            return stored.tensors(file)
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers have many of their own
        raise UserError(
            f"{said} cannot be read as weights alone ({in_one_line(error).partition('. ')[0]}): save it by "
            "torch.save(model.state_dict(), FILE), or as safetensors"
        ) from error
    for name in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    tensors = {k: t for k, t in content.items() if isinstance(t, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise UserError(f"{said} holds no state dict: save it by torch.save(model.state_dict(), FILE)")
    return tensors


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def take(
    model: BlockModel,
    tensors: Mapping[str, Tensor],
    source: str,
    units: Collection[int] | None = None,
    new_head: str = "",
) -> str:
    """Put tensors into a model, and say which of its parts have them.

    Units of a traced module, such as those of torchvision, are known by the names of the module itself, wherever it was
    cut; all others by their place, `units.0.`. A head of another shape stays as it is.

    Args:
        model: It is changed in place.
        tensors: Of a model that may be larger: what has no name here is left out, and counted.
        source: Where they are from, for the sentence.
        units: The units that take theirs, and nothing else does; None: all, and the head.
        new_head: Why the head stays as it is, in words; without it the shapes decide.

    Raises:
        UserError: For a unit that lacks a tensor, or has one of another shape; then nothing has changed.
    """
    traced = any(isinstance(unit, fx.GraphModule) for unit in model.units)
    there = {_plain(name) if traced else name: t for name, t in tensors.items()}
    pairs: dict[str, tuple[Tensor, Tensor | None]] = {
        name: (t, there.get(_plain(name) if traced else name)) for name, t in model.state_dict().items()
    }
    odd = {name: _odd(name, *pair) for name, pair in pairs.items()}
    wanted = range(len(model.units)) if units is None else units
    own = [name for i in wanted for name in pairs if name.startswith(f"units.{i}.")]
    if problems := [odd[name] for name in own if odd[name]]:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"{source} does not fit {model.name}: {'; '.join(problems[:3])}{more}; choose the same model, or give "
            "init.blocks= of the blocks that fit"
        )
    head = [name for name in pairs if name.startswith("head.")]
    if units is None and head and not new_head:
        new_head = next((odd[name] for name in head if odd[name]), "")
    if units is None and not new_head:
        own += head
    with torch.no_grad():
        for name in own:
            t, value = pairs[name]
            if value is not None:
                t.copy_(value)
    known = {_plain(name) if traced else name for name in pairs}
    return _said(model, source, wanted, units is None, new_head, len(there.keys() - known))


def _plain(name: str) -> str:
    """The name that a tensor has in the module that was cut: without `units.3.` or `head.`."""
    part, _, rest = name.partition(".")
    return rest.partition(".")[2] if part == "units" else rest if part == "head" and "." in rest else name


def _odd(name: str, here: Tensor, there: Tensor | None) -> str:
    """Why a tensor cannot be taken, if so."""
    if there is None:
        return "" if name.endswith(COUNTS) else f"{name} is not there"
    if here.shape != there.shape or here.is_floating_point() != there.is_floating_point():
        return f"{name} is {list(there.shape)} there and {list(here.shape)} here"
    return ""


def _said(model: BlockModel, source: str, units: Collection[int], with_head: bool, new_head: str, left: int) -> str:
    count = len(model.units)
    what = f"all {count} units" if len(units) == count else f"of {count} units {', '.join(map(str, sorted(units)))}"
    if not with_head:
        head = ", and nothing else"
    elif new_head:
        head = f"; the head is new ({new_head})"
    else:
        head = " and the head"
    rest = f"; {left} of its tensors have no place here" if left and with_head else ""
    return f"weights of {source}: {what}{head}{rest}"
