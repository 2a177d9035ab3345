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

from locallearn.data.source import DataSource, Raw, with_fixed_test
from locallearn.errors import UserError


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
        return with_fixed_test(self.name, tuple(map(str, range(10))), images, labels, len(labels) // 5)


def _rows() -> np.ndarray:
    """The table that scikit-learn ships. Its file is read directly: importing scikit-learn takes ten times as long."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise UserError("data=digits lies inside scikit-learn, which is not installed: pip install scikit-learn")
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        with gzip.open(file, "rt", encoding="ascii") as lines:
            return np.loadtxt(lines, delimiter=",", dtype=np.int64)
    except OSError as error:
        raise UserError(f"data=digits: {file} cannot be read ({error}); install scikit-learn again") from error
