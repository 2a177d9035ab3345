"""A report on a data set, before hours are spent on training with it."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from locallearn.data.dataset import Data
from locallearn.data.source import DataSource
from locallearn.figures.text import table
from locallearn.task import DETECTION, MULTILABEL, TOKENS
from locallearn.tasks import Regression


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
        "task": f"{data.task.kind}: {data.task.wanted}",
        "samples": f"{len(data.train)} training, {len(data.validation)} validation, {len(data.test)} test",
        **({} if data.graph is None else {"graph": f"{data.graph.shape[1]} directed edges"}),
        "raw batch": _range(raw),
        "training batch": _range(inputs),
        "normalised by": _normalised_by(data),
    }
    return f"{table([*lines.items()], left=(0, 1))}\n\n{_targets(data)}"


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


def _targets(data: Data) -> str:
    """A table of what is answered: of numbers mean and deviation in each part, else how many of each there are."""
    splits = [split.labels for split in (data.train, data.validation, data.test)]
    if isinstance(data.task, Regression):
        head, columns = "number", [_moments(data.task.original(y), len(data.classes)) for y in splits]
    else:
        head = {TOKENS: "token", MULTILABEL: "label", DETECTION: "boxes of"}.get(data.task.kind, "class")
        if data.task.kind == DETECTION:
            splits = [y[..., 0].long() for y in splits]
        columns = [_counts(y, len(data.classes), data.task.kind == MULTILABEL) for y in splits]
    named = (repr(name)[1:-1] if not name.strip() else name for name in data.classes)  # a space, a newline
    return table([(head, "training", "validation", "test"), *zip(named, *columns, strict=True)])


def _counts(y: Tensor, classes: int, multilabel: bool) -> list[str]:
    counts = (y > 0.5).sum(0) if multilabel else torch.bincount(y[y >= 0].flatten(), minlength=classes)
    return [str(count) for count in counts.tolist()]


def _moments(y: Tensor, outputs: int) -> list[str]:
    if not len(y):
        return ["-"] * outputs
    pairs = zip(y.mean(0).tolist(), y.std(0, correction=0).tolist(), strict=True)
    return [f"{mean:.4g} ± {deviation:.4g}" for mean, deviation in pairs]


def torchvision_version() -> str:
    """The version, or why it does not work."""
    try:
        import torchvision
    except Exception as error:  # a torchvision that does not match torch fails in many ways
        return f"torchvision does not work with this torch ({error}): install the pair named in constraints.txt"
    return f"torchvision {torchvision.__version__}"
