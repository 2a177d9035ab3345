"""The 1797 handwritten digits that come inside scikit-learn: real data without a download, learnt in seconds."""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from locallearn.data.source import DataSource, Raw, RawSplit, with_fixed_test
from locallearn.data.store import Memory
from locallearn.errors import UserError
from locallearn.tasks import Multilabel, Segmentation


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
        rows = torch.from_numpy(_rows())  # [1797, 65]: the pixels, then the label
        labels = rows[:, 64].long()
        pixels = rows[:, :64].float().view(-1, 1, 8, 8) * (255 / 16)
        images = F.interpolate(pixels, (32, 32), mode="bilinear").round().clamp(0, 255).to(torch.uint8)
        return with_fixed_test("digits", tuple(map(str, range(10))), images, labels, len(labels) // 5)


SEGMENTS = ("abcdef", "bc", "abdeg", "abcdg", "bcfg", "acdfg", "acdefg", "abc", "abcdefg", "abcdfg")
"""Which of the seven segments of a display are lit for a digit."""
INK, PAPER = 128, 64


@dataclass(frozen=True)
class DigitSegments(Digits):
    """The digits again, asked for the segments a to g that a display lights for them: several labels for each image.
    All segments lit gives F1 0.812."""

    name: ClassVar[str] = "digit_segments"

    def read(self, device: torch.device) -> Raw:
        digits = super().read(device)
        lit = torch.tensor([[float(segment in own) for segment in "abcdefg"] for own in SEGMENTS])
        train, test = (RawSplit(part.images, lit[part.labels]) for part in (digits.train, digits.test))
        return Raw(tuple("abcdefg"), train, test, task=Multilabel())


@dataclass(frozen=True)
class DigitInk(Digits):
    """The digits again, asked at every pixel: the class of the digit where there is ink (128 or more), the eleventh
    class where there is paper (below 64), none between. Paper everywhere gives a mean IoU of 0.058."""

    name: ClassVar[str] = "digit_ink"

    def read(self, device: torch.device) -> Raw:
        digits = super().read(device)

        def masked(part: RawSplit) -> RawSplit:
            assert isinstance(part.images, Memory)
            pixels = part.images.samples[:, 0]  # [N, 32, 32]
            ink = torch.where(pixels >= INK, part.labels[:, None, None], -1)
            return RawSplit(part.images, torch.where(pixels < PAPER, 10, ink))

        return Raw((*digits.classes, "paper"), masked(digits.train), masked(digits.test), task=Segmentation())


def _rows() -> np.ndarray:
    """The table that scikit-learn ships. Its file is read directly: importing scikit-learn takes ten times as long."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise UserError("data=digits is part of scikit-learn, which is not installed: pip install scikit-learn")
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        with gzip.open(file, "rt", encoding="ascii") as lines:
            return np.loadtxt(lines, delimiter=",", dtype=np.int64)
    except OSError as error:
        raise UserError(f"data=digits: {file} cannot be read ({error}); install scikit-learn again") from error
