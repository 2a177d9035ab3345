"""Image files that worker processes read ahead of the training step, each upright, in colour, and square."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from locallearn.accelerator import is_cpu
from locallearn.data.distortion import Distorter
from locallearn.data.store import Size
from locallearn.errors import RunError, UserError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Only these decoders of Pillow look into a file, whatever its name: others run programs (PostScript)."""
ORIENTATION = 0x0112
"""The EXIF tag that says how a picture lies."""
TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")


class _Files(Dataset[Any]):
    """What the workers see. A fault is returned, not raised: raised in a worker it would come with its traceback."""

    def __init__(self, paths: list[Path], size: int, change: Distorter | None) -> None:
        self.paths, self.size, self.change = paths, size, change

    def __getitem__(self, index: int) -> Tensor | str:
        path, size, change = self.paths[index], self.size, self.change
        try:
            if change is None:
                return read_image(path, size)
            window = partial(change.cut, size=(size, size), place=index) if change.distortion.resized_crop else None
            return change.paint(read_image(path, size, window), index)
        except UserError as error:
            return str(error)


def _collate(items: list[Tensor | str]) -> tuple[Tensor, list[str]]:
    """The images that could be read, [B', 3, size, size], and a sentence for each that could not. PyTorch's own
    `default_collate` copies them into memory that the processes share, at once."""
    images = [item for item in items if isinstance(item, Tensor)]
    return default_collate(images) if images else torch.empty(0), [item for item in items if isinstance(item, str)]


class Stream:
    """Files in a fixed order. What `take` gives depends on the order asked for, not on the number of workers."""

    dtype = torch.uint8

    def __init__(self, paths: list[Path], size: int, workers: int, device: torch.device | None = None) -> None:
        self.paths, self.size, self.workers = paths, size, workers
        self.device = device or torch.device("cpu")

    @property
    def image(self) -> Size:
        return (3, self.size, self.size)

    def __len__(self) -> int:
        return len(self.paths)

    def to(self, device: torch.device) -> Stream:
        return Stream(self.paths, self.size, self.workers, device)

    def take(self, order: Tensor, batch_size: int, change: Distorter | None = None) -> Iterator[Tensor]:
        """See `Store.take`; the workers also `change` what they read. Raises UserError for the first file of a batch
        that cannot be read."""
        for images, faults in self._read(order, batch_size, change):
            if faults:
                raise UserError(faults[0])
            yield images.to(self.device, non_blocking=True)

    def identity(self) -> bytes:
        """The names and sizes of the files in their order; not where they lie, which differs from machine to machine,
        nor their times, which a copy changes."""
        files = [os.fspath(path) for path in self.paths]
        below = len(os.path.commonpath(files)) if files else 0
        digest = hashlib.sha256()
        for file in files:
            try:
                size = os.stat(file).st_size
            except OSError as error:
                raise UserError(
                    f"cannot read the image {file} ({error.strerror}); take it out of the folder"
                ) from error
            digest.update(os.fsencode(f"{file[below:]}\0{size}\n"))
        return digest.digest()

    def faults(self) -> list[str]:
        """A sentence for each file that cannot be read. Reads them all."""
        return [fault for _, faults in self._read(torch.arange(len(self)), 64) for fault in faults]

    def _read(
        self, order: Tensor, batch_size: int, change: Distorter | None = None
    ) -> Iterator[tuple[Tensor, list[str]]]:
        loader = DataLoader(
            _Files(self.paths, self.size, change),
            batch_sampler=[part.tolist() for part in order.split(batch_size)],
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=not is_cpu(self.device),
            generator=torch.Generator(),  # without one it would draw from PyTorch's global generator
        )
        try:
            yield from loader
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise RunError(
                f"a data worker was killed, most likely for lack of memory, with data.workers={self.workers}; "
                "use fewer, or data.workers=0 to read in the training process"
            ) from error


def read_image(path: Path, size: int, window: Callable[[Image], Image] | None = None) -> Tensor:
    """One file -> uint8 [3, size, size]: in colour, the shorter side scaled to `size`, the middle cut out; or a
    `window` of it, of that size.

    It is turned as its EXIF orientation says; what is transparent lies on white; of several frames or pages the first
    is taken; CMYK becomes RGB without a colour profile, and 16 bits of a colour their upper 8. Raises UserError that
    names the file, also for grey of more than 8 bits, whose range nothing tells.
    """
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        if not path.is_file():  # reading a pipe would wait for ever
            raise ValueError("it is gone, or not a file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of palettes with transparency, of very large images
            with Image.open(path, formats=FORMATS) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"it has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits")
                shown = _opaque(_upright(image))
                fitted = window(shown) if window else ImageOps.fit(shown, (size, size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.stack([np.asarray(band) for band in fitted.split()]))
    except Exception as error:  # Pillow raises whatever its readers raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = f"it is not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"
        raise UserError(f"cannot read the image {path} ({reason}); replace it or take it out of the folder") from error


def _upright(image: Image) -> Image:
    """The picture as a viewer shows it; most lie upright, and are not copied."""
    from PIL.ImageOps import exif_transpose

    image.load()
    try:
        return exif_transpose(image) if image.getexif().get(ORIENTATION, 1) != 1 else image
    except Exception:  # a damaged EXIF block tells nothing, and viewers show the picture as it lies
        return image


def _opaque(image: Image) -> Image:
    """The picture in RGB, laid on white: under what is transparent a file holds any colour."""
    from PIL.Image import alpha_composite, new

    if image.mode not in TRANSPARENT and "transparency" not in image.info:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema() != (255, 255):
        image = alpha_composite(new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
