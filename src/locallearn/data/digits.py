"""The 1797 handwritten digits that come inside scikit-learn: real data without a download, learnt in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from locallearn.data.source import DataSource, Part, Raw
from locallearn.data.split import stratified
from locallearn.data.store import Memory
from locallearn.seeds import generator


@dataclass(frozen=True)
class Digits(DataSource):
    """8x8 grey digits with 17 levels, scaled to 0-255 and enlarged to 32x32 so that every model of the zoo takes them.

    A fixed fifth (359 images), class by class, is the test set; it does not depend on the seed of a run.
    """

    name: ClassVar[str] = "digits"

    def unread(self) -> Mapping[str, str]:
        return {**super().unread(), "root": "data=NAME that has files"}

    def place(self) -> str:
        return "inside scikit-learn"

    def read(self, device: torch.device) -> Raw:
        from sklearn.datasets import load_digits

        found = load_digits()
        labels = torch.from_numpy(found.target).long()
        pixels = torch.from_numpy(found.images).float()[:, None] * (255 / 16)  # [1797, 1, 8, 8]
        images = F.interpolate(pixels, (32, 32), mode="bilinear").round().clamp(0, 255).to(torch.uint8)
        train, test = stratified(labels, len(labels) - len(labels) // 5, generator(0, "digits", "test"))
        return Raw(
            classes=tuple(map(str, range(10))),
            train=Part(Memory(images[train]), labels[train]),
            test=Part(Memory(images[test]), labels[test]),
        )
