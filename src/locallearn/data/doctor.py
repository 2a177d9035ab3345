"""A report on a data set, before hours are spent on training with it."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from locallearn.data.dataset import Data
from locallearn.data.source import DataSource
from locallearn.figures.text import table


def diagnose(source: DataSource, seed: int = 0, batch_size: int = 8) -> str:
    """Load a set on the CPU, take a batch and say what was found, in some lines of text.

    For a folder every file is read. Raises UserError for whatever would keep the set from being trained on.
    """
    checked = source.verify()
    began = time.perf_counter()
    data = source.load(seed, torch.device("cpu"))
    seconds = time.perf_counter() - began
    inputs, _ = next(data.batches(epoch=0, batch_size=batch_size))
    raw, _ = next(data.train.take(torch.arange(min(batch_size, len(data.train))), batch_size))
    lines = {
        "data": f"{data.name}, seed {seed}",
        "files": f"{source.place()}; {checked}",
        "loaded in": f"{seconds:.2f} seconds",
        "image": f"{' x '.join(map(str, data.image))}, {str(raw.dtype).removeprefix('torch.')}",
        "samples": f"{len(data.train)} training, {len(data.validation)} validation, {len(data.test)} test",
        **({} if data.graph is None else {"graph": f"{data.graph.shape[1]} directed edges"}),
        "raw batch": _range(raw),
        "training batch": _range(inputs),
        "normalised by": _normalised_by(data),
    }
    return f"{table([*lines.items()], left=(0, 1))}\n\n{_classes(data)}"


def _range(values: Tensor) -> str:
    values = values.double()
    low, high, mean = float(values.min()), float(values.max()), float(values.mean())
    kind = "images" if values.dim() == 4 else "samples"
    return f"{len(values)} {kind}, {low:.4g} to {high:.4g}, mean {mean:.4g}, std {float(values.std()):.4g}"


def _normalised_by(data: Data) -> str:
    if data.normaliser is None:
        return "nothing: the samples are used as they are"
    mean, std = (", ".join(f"{v:.4f}" for v in t.tolist()) for t in (data.normaliser.mean, data.normaliser.std))
    return f"mean {mean}; std {std} (of pixels from 0 to 1)"


def _classes(data: Data) -> str:
    """A table of the classes and how many samples of each there are in each part."""
    splits = (data.train, data.validation, data.test)
    counts = [torch.bincount(split.labels, minlength=len(data.classes)).tolist() for split in splits]
    rows = zip(data.classes, *(map(str, column) for column in counts), strict=True)
    return table([("class", "training", "validation", "test"), *rows])


def torchvision_version() -> str:
    """The version, or why it does not work."""
    try:
        import torchvision
    except Exception as error:  # a torchvision that does not match torch fails in many ways
        return f"torchvision does not work with this torch ({error}): install the pair named in constraints.txt"
    return f"torchvision {torchvision.__version__}"
