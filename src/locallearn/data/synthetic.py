"""Images made from nothing: for tests, for load experiments, and for runs of any number of classes and any size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional as F

from locallearn.data.source import DataSource, Raw, RawSplit, require
from locallearn.data.store import Memory
from locallearn.seeds import generator

CHUNK = 1024  # images made at a time: noise is float32 and would be four times the set


@dataclass(frozen=True)
class Synthetic(DataSource):
    """One smooth random pattern per class under noise that is stronger than the pattern.

    classes   number of classes
    images    training images, as many of each class as of another; a fifth as many are made for the test set
    size      side in pixels
    channels  1 for grey, 3 for colour, or any other number
    """

    name: ClassVar[str] = "synthetic"

    classes: Annotated[int, Ge(2)] = 10
    images: Annotated[int, Ge(2)] = 2000
    size: Annotated[int, Ge(1)] = 32
    channels: Annotated[int, Ge(1)] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.images >= self.classes, "images", self.images, f"at least {self.classes}, one for each class")

    def unread(self) -> Mapping[str, str]:
        return {**super().unread(), "root": "data=NAME that has files"}

    def place(self) -> str:
        return "made in memory"

    def read(self, device: torch.device) -> Raw:
        coarse = torch.randn(self.classes, self.channels, 4, 4, generator=generator(0, "synthetic", "patterns"))
        patterns = F.interpolate(coarse, (self.size, self.size), mode="bilinear")  # [classes, C, H, W]
        return Raw(
            classes=tuple(f"class {i}" for i in range(self.classes)),
            train=self._part("train", self.images, patterns),
            test=self._part("test", max(self.classes, self.images // 5), patterns),
        )

    def _part(self, part: str, images: int, patterns: Tensor) -> RawSplit:
        draws = generator(0, "synthetic", part)
        labels = torch.arange(images) % self.classes
        samples = torch.empty(images, *patterns.shape[1:], dtype=torch.uint8)
        for first in range(0, images, CHUNK):
            mine = patterns[labels[first : first + CHUNK]]
            noise = torch.randn(mine.shape, generator=draws)
            samples[first : first + CHUNK] = (127.5 + 32 * mine + 48 * noise).round().clamp(0, 255).to(torch.uint8)
        return RawSplit(Memory(samples), labels)
