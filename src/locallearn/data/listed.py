"""What a data set of Python says of itself: its labels, the names of its classes, its own name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from locallearn.data.items import drawing, reading
from locallearn.data.values import LABELS, as_targets, pair


def label_column(given: Any) -> str | None:
    """The column of the labels, where the set itself says which (`features` of Hugging Face's)."""
    features = getattr(given, "features", None)
    if not isinstance(features, Mapping):
        return None
    return next((name for name, feature in features.items() if hasattr(feature, "names")), None)


def labels_of(given: Any) -> Tensor | None:
    """The labels that a set has in a list, without a look at its samples; None if it has none."""
    if isinstance(given, Subset):
        whole = labels_of(given.dataset)
        return None if whole is None else whole[torch.as_tensor(given.indices)]
    if isinstance(given, ConcatDataset):
        parts = [labels_of(each) for each in given.datasets]
        return None if any(each is None for each in parts) else torch.cat([each for each in parts if each is not None])
    if hasattr(given, "column_names"):
        names = [label_column(given), *(name for name in LABELS if name in given.column_names)]
        return next((as_targets(list(given[n]), f"the labels of {name_of(given)}") for n in names if n), None)
    listed = getattr(given, "targets", getattr(given, "labels", None))
    if getattr(given, "target_transform", None) is not None or not isinstance(listed, Sequence | Tensor | np.ndarray):
        return None
    return as_targets(listed, f"the labels of {name_of(given)}")


def labels_read(given: Any, label: str | None, workers: int) -> Tensor:
    """The labels of a set that has no list of them: every sample is read once."""
    loader = DataLoader(_LabelsOf(given, label), 64, num_workers=workers, collate_fn=list, generator=torch.Generator())
    with drawing(0), reading(name_of(given)):
        values = [value for part in loader for value in part]
    return as_targets(values, f"the labels of {name_of(given)}")


def class_names(given: Any) -> tuple[str, ...]:
    """The names of the classes that a set knows."""
    if isinstance(given, DataLoader | Subset):
        return class_names(given.dataset)
    if isinstance(given, ConcatDataset):
        return class_names(given.datasets[0])
    if column := label_column(given):
        return tuple(map(str, given.features[column].names))
    names = getattr(given, "classes", None)
    return tuple(map(str, names)) if isinstance(names, list | tuple) else ()


def name_of(given: Any) -> str:
    return type(given.dataset if isinstance(given, DataLoader) else given).__name__


class _LabelsOf(Dataset[Any]):
    """The labels of a set, one after the other."""

    def __init__(self, dataset: Any, label: str | None) -> None:
        self.dataset, self.label = dataset, label

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: int) -> Any:
        return pair(self.dataset[place], f"sample {place} of {name_of(self.dataset)}", self.label)[1]
