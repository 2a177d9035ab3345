"""A picture as a function: which colour is at a place? The pixels are the samples."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from locallearn import paths
from locallearn.data.augment import Augment
from locallearn.data.dataset import Data, Split
from locallearn.data.normalise import Normalisation
from locallearn.data.source import Source
from locallearn.data.split import divided
from locallearn.data.store import Memory
from locallearn.data.stream import read_image
from locallearn.errors import UserError
from locallearn.tasks import Regression

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class OnePicture(Source):
    """The colours of one picture by place, for coordinate networks: float32 [2 + 4 frequencies] -> 3 numbers.

    A place (u, v) in [-1, 1]^2 comes with the sines and cosines of 2^k pi u and 2^k pi v, k = 0 ... frequencies - 1
    (Mildenhall et al. 2020, NeRF). Pixels in odd rows and odd columns, counted from 0, are the test set: a quarter, to
    be found between what was seen. The PSNR is -20 log10 of the RMSE, as colours are from 0 to 1.

    file         any picture; empty: flower.jpg, which scikit-learn ships
    side         pixels of its shorter side, to which it is resized
    frequencies  of the encoding; 0: the place alone
    """

    name: ClassVar[str] = "picture"

    file: str = ""
    side: Annotated[int, Ge(4)] = 96
    frequencies: Annotated[int, Interval(ge=0, le=16)] = 6

    def unread(self) -> Mapping[str, str]:
        return {"root": "data=NAME that has files; data.file=PATH names a picture"}

    def path(self) -> Path:
        """The file. Raises UserError where there is none."""
        if self.file:
            return paths.expanded(self.file)
        package = importlib.util.find_spec("sklearn")
        if package is None or package.origin is None:
            raise UserError(
                "data=picture takes its picture from scikit-learn, which is not installed: give data.file=PATH"
            )
        return Path(package.origin).parent / "datasets" / "images" / "flower.jpg"

    def place(self) -> str:
        return str(self.path())

    def load(self, seed: int, device: torch.device, normalisation: Normalisation | None = None) -> Data:
        colours = _read(self.path(), self.side)  # [H, W, 3]
        height, width, _ = colours.shape
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        tested = ((rows % 2 == 1) & (columns % 2 == 1)).flatten()
        x = encoded(torch.stack([_centred(rows), _centred(columns)], -1).flatten(0, 1), self.frequencies)
        train, test = (~tested).nonzero().flatten(), tested.nonzero().flatten()
        kept, held_out = divided(len(train), self.validation, self.fraction, seed)
        y = colours.flatten(0, 1)
        try:
            task = Regression.of(y[train[kept]])
        except UserError as error:
            raise UserError(f"data={self.name}: {self.path()}: {error}; or give a picture that has colours") from error
        store, targets = Memory(x.float().to(device)), task.standardised(y).to(device)

        def split(index: Tensor) -> Split:
            return Split(store, index, targets[index.to(device)])

        splits = split(train[kept]), split(train[held_out]), split(test)
        return Data(self.name, ("red", "green", "blue"), splits, seed, Augment(), None, task=task)


def encoded(places: Tensor, frequencies: int) -> Tensor:
    """Places [N, 2] with sines and cosines of 2^k pi times each number: [N, 2 + 4 frequencies]"""
    angles = math.pi * 2.0 ** torch.arange(frequencies, dtype=places.dtype) * places[..., None]  # [N, 2, frequencies]
    return torch.cat([places, angles.sin().flatten(1), angles.cos().flatten(1)], 1)


def _centred(places: Tensor) -> Tensor:
    """Numbers from 0 to n - 1 -> the middles of pixels in [-1, 1]."""
    return (2 * places.double() + 1) / (places.max() + 1) - 1


def _read(path: Path, side: int) -> Tensor:
    """The colours [H, W, 3] from 0 to 1, float64. Raises UserError."""

    def resized(image: Image) -> Image:
        scale = side / min(image.size)
        return image.resize((max(side, round(image.width * scale)), max(side, round(image.height * scale))))

    return read_image(path, side, resized).movedim(0, 2).double() / 255
