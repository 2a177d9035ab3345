"""What a sample or a batch of a data set of Python holds: its inputs, one tensor or several, and its targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from locallearn.errors import UserError
from locallearn.inputs import Inputs, named, several

LABELS = ("label", "labels", "target", "targets", "y")
"""What the column of the labels may be called."""


def pair(item: Any, what: str, label: str | None = None) -> tuple[Any, Any]:
    """Input and label of a sample or a batch. `label` is the name of the column, where the set itself says it."""
    if isinstance(item, Mapping):
        labels = [label] if label in item else [name for name in LABELS if name in item]
        inputs = [name for name in item if name not in labels]
        if len(labels) == 1 and inputs:
            return item[inputs[0]] if len(inputs) == 1 else {name: item[name] for name in inputs}, item[labels[0]]
        raise UserError(
            f"{what} has the columns {', '.join(map(str, item))}: it must have what the model reads, and one label, "
            f"which is called {' or '.join(LABELS)}"
        )
    if isinstance(item, list | tuple) and len(item) == 2:
        return item[0], item[1]
    kind = f"{len(item)} values" if isinstance(item, list | tuple) else f"a {type(item).__name__}"
    raise UserError(
        f"{what} is {kind}; it must be a pair (input, label), with several tensors ((first, second), label), or a "
        "mapping with a label"
    )


def as_input(x: Any, what: str) -> Tensor:
    """One input, or a batch of them, as uint8 (pixels), float32, or the integers that it is. Pictures become [C, H, W].
    Raises UserError."""
    if hasattr(x, "getbands"):  # a picture of Pillow's
        x = np.array(x if x.mode in ("L", "RGB") else x.convert("RGB"))
        x = x[None] if x.ndim == 2 else x.transpose(2, 0, 1)
    try:
        x = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{what} is a {type(x).__name__}, which is not a tensor: make it one, or an array") from error
    if x.is_complex():
        raise UserError(f"{what} holds complex numbers; give real ones, such as torch.view_as_real(x)")
    if x.is_floating_point() or x.dtype == torch.bool:
        return x.float()
    return x if x.dtype == torch.uint8 else x.long()


def inputs_of(x: Any, what: str, batch: bool = False) -> Inputs | None:
    """What the tensors are where an input, or a `batch` of them, has several. Raises UserError."""
    return Inputs.of(_tensors(x, what), what, batch) if several(x) else None


def one_tensor(x: Any, what: str, inputs: Inputs | None, batch: bool = False) -> Tensor:
    """An input, or a batch of them, as one tensor. Raises UserError for one of another kind than the first."""
    if inputs is None:
        return as_input(x, what)
    return inputs.pack(_tensors(x, what) if several(x) else (as_input(x, what),), what, batch)


def _tensors(x: Any, what: str) -> Any:
    """The tensors of an input of several, in a mapping or a list; truths stay truths, such as a mask is."""
    tensors = {}
    for name, t in named(x).items():
        called = f"{name if isinstance(name, str) else f'tensor {name}'} of {what}"
        tensors[name] = torch.as_tensor(t) if _is_truth(t) else as_input(t, called)
    return tensors if isinstance(x, Mapping) else [*tensors.values()]


def _is_truth(t: Any) -> bool:
    return "bool" in str(getattr(t, "dtype", ""))


def as_targets(y: Any, what: str) -> Tensor:
    """Labels as int64, whatever integers they were; other numbers as float32, which only some tasks take. Raises
    UserError."""
    if isinstance(y, list | tuple) and y and isinstance(y[0], Tensor):
        y = torch.stack(tuple(torch.as_tensor(each) for each in y))
    try:
        y = torch.as_tensor(np.asarray(y) if isinstance(y, list | tuple) else y)
    except (TypeError, ValueError, RuntimeError) as error:
        shown = y[0] if isinstance(y, list | tuple | np.ndarray) and len(y) else y
        raise UserError(
            f"{what} are not numbers ({shown!r:.40}): number the classes from 0, as numpy.unique(..., "
            "return_inverse=True)[1] does"
        ) from error
    return y.float() if y.is_floating_point() else y.long()
