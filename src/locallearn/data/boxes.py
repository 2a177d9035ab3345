"""Images with boxes: any folder in the layout of Pascal VOC, and BCCD, the blood cells."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Interval, MultipleOf
from torch import Tensor

from locallearn.data import pascal_voc
from locallearn.data.augment import FLIP, Augment
from locallearn.data.dataset import Data, Split
from locallearn.data.files import ALL_CHECKED, WHERE, checked_root, has_no, reading
from locallearn.data.folder import memory_bytes
from locallearn.data.normalise import NORMALISATIONS, Normalisation, normaliser
from locallearn.data.source import Source, require
from locallearn.data.split import divided
from locallearn.data.store import Memory
from locallearn.data.stream import read_image
from locallearn.errors import UserError, did_you_mean
from locallearn.options import OneOf
from locallearn.tasks import Detection

if TYPE_CHECKING:
    from PIL.Image import Image

GREY = 114
FLIP_VERTICAL, MOSAIC, CENTRE_X, CENTRE_Y = range(5, 9)
OTHERS = range(9, 12)
SHARE = 1 << 20  # in whose parts a share of images is drawn
LEAST_LEFT = 0.25


def fitted(image: Image, width: int, height: int) -> tuple[Image, float, int, int]:
    """An image in the middle of a grey one of this size, as large as fits, and what that does to a point: the scale,
    and how far it is moved to the right and down."""
    from PIL.Image import Resampling, new

    scale = min(width / image.width, height / image.height)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    whole = new("RGB", (width, height), (GREY, GREY, GREY))
    whole.paste(image.resize(inner, Resampling.BILINEAR), (left, top))
    return whole, scale, left, top


def mirrored(images: Tensor, y: Tensor, chosen: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Images [B, C, H, W] with boxes y [B, M, 5], the `chosen` [B] ones mirrored along axis 2 (upside down) or 3."""
    side, low = images.shape[axis], 1 if axis == 3 else 2
    high = low + 2
    turned = y.clone()
    turned[..., low], turned[..., high] = side - y[..., high], side - y[..., low]
    there = chosen[:, None, None] & (y[..., :1] >= 0)
    return torch.where(chosen[:, None, None, None], images.flip(axis), images), torch.where(there, turned, y)


def mosaic(images: Tensor, y: Tensor, chosen: Tensor, x: Tensor, down: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """In the `chosen` [B] images, the quarters around a point (x, down [B], in pixels) except the first are taken from
    three `others` [3, B], at the same place. Boxes [B, M, 5] -> [B, 4 M, 5] are cut to their quarter, and dropped if
    less than a fourth of their area is left."""
    height, width = images.shape[2:]
    row, column = torch.arange(height, device=y.device)[:, None], torch.arange(width, device=y.device)
    x, down = torch.where(chosen, x, width), torch.where(chosen, down, height)
    right, below = column >= x[:, None, None, None], row >= down[:, None, None, None]
    quarter = right.int() + 2 * below.int()  # [B, 1, H, W]
    result, boxes = images, []
    for k in range(4):
        source = torch.arange(len(y), device=y.device) if k == 0 else others[k - 1]
        result = torch.where(quarter == k, images[source], result)
        own, zero = y[source], torch.zeros_like(x)
        (x1, x2), (y1, y2) = ((zero, x), (x, zero + width))[k % 2], ((zero, down), (down, zero + height))[k // 2]
        low, high = (torch.stack(corner, dim=1)[:, None].to(y.dtype) for corner in ((x1, y1), (x2, y2)))
        cut = torch.cat([torch.maximum(own[..., 1:3], low), torch.minimum(own[..., 3:], high)], dim=2)
        before, left = ((box[..., 2:] - box[..., :2]).clamp(min=0).prod(2) for box in (own[..., 1:], cut))
        stays = (own[..., 0] >= 0) & (left >= LEAST_LEFT * before) & (left >= 1)
        boxes.append(torch.where(stays[..., None], torch.cat([own[..., :1], cut], dim=2), -1.0))
    return result, torch.cat(boxes, dim=1)


class BoxData(Data):
    """`Data` of images with boxes: targets are float32 [B, M, 5], class, x1, y1, x2, y2 in pixels, class -1 pads.

    flip, flip_vertical  whether half of the training images are mirrored left to right, upside down
    mosaic  share of training images that are made of four, see `mosaic`; there are 4 M boxes then
    """

    draws = 12
    flip = flip_vertical = False
    mosaic = 0.0

    def _prepare(self, images: Tensor, labels: Tensor, drawn: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
        if not (self.flip or self.flip_vertical or self.mosaic):
            return self._normalise(images), labels
        draws = next(drawn)
        if self.mosaic:
            height, width = images.shape[2:]
            chosen = draws[MOSAIC] % SHARE < self.mosaic * SHARE
            x, down = (s // 4 + draws[c] % (s // 2) for s, c in ((width, CENTRE_X), (height, CENTRE_Y)))
            images, labels = mosaic(images, labels, chosen, x, down, draws[OTHERS.start : OTHERS.stop] % len(labels))
        if self.flip:
            images, labels = mirrored(images, labels, draws[FLIP] % 2 == 1, axis=3)
        if self.flip_vertical:
            images, labels = mirrored(images, labels, draws[FLIP_VERTICAL] % 2 == 1, axis=2)
        return self._normalise(images), labels


@dataclass(frozen=True)
class Boxes(Source):
    """A folder in the layout of Pascal VOC: JPEGImages, Annotations (XML) and lists in ImageSets/Main.

    Images are scaled to fit `size`, bilinear with antialias, and stand in the middle of grey; boxes go with them. They
    lie in memory. Coordinates are taken as continuous (nothing is added to xmax and ymax); boxes are cut to their
    image, and those with a side below a pixel are left out and counted. Objects that VOC marks as difficult count as
    any other.

    size        height and width that the net sees, multiples of 32
    labels      names of the classes, in order; null: those of the training part, sorted
    validation  share of the training part that is held out, where there is no val.txt beside a test.txt
    fraction    share of the rest that is trained on
    normalise   see `DataSource`
    flip, flip_vertical, mosaic  see `BoxData`
    """

    name: ClassVar[str] = "voc"

    size: tuple[Annotated[int, Ge(32), MultipleOf(32)], ...] = (192, 256)
    labels: list[str] | None = None
    normalise: Annotated[str, OneOf(NORMALISATIONS)] = "standard"
    flip: bool = False
    flip_vertical: bool = False
    mosaic: Annotated[float, Interval(ge=0, le=1)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.size) == 2, "size", list(self.size), "a height and a width, such as [192, 256]")

    def folder(self) -> Path:
        if self.root is None:
            raise UserError("data=voc needs data.root=PATH, a folder with JPEGImages, Annotations and ImageSets/Main")
        return super().folder()

    def verify(self) -> str:
        images = [image for part in self._parts().values() for image in part]
        for image in images:
            self._read(image)
        checked = f"every one of {len(images)} images and annotations can be read"
        return ", ".join(filter(None, [checked, pascal_voc.dropped(images)]))

    def load(self, seed: int, device: torch.device, normalisation: Normalisation | None = None) -> BoxData:
        parts = self._parts()
        names = self._names(parts)
        height, width = self.size
        every = [image for part in parts.values() for image in part]
        if (needed := len(every) * 3 * height * width) > memory_bytes(device) // 4:
            raise UserError(
                f"data={self.name}: {len(every)} images of {height} x {width} take {needed >> 20} MB, more than a "
                f"quarter of the memory: choose a smaller data.size than {list(self.size)}"
            )
        most = max(1, *(len(image.boxes) for image in every))
        scales: list[float] = []
        splits = {name: self._part(part, names, most, device, scales) for name, part in parts.items() if part}
        whole = splits["train"]
        held_out = self.validation if "validation" not in splits else 0.0
        index, rest = divided(len(whole), held_out, self.fraction, seed)
        train, validation = whole.at(index), splits.get("validation", whole.at(rest))
        of_pixels = normaliser(self.name, self.normalise, train.store, train.index, device, normalisation)
        every_split, task = (train, validation, splits["test"]), Detection(names, scale=sum(scales) / len(scales))
        left_out = pascal_voc.dropped(every)
        data = BoxData(self.name, names, every_split, seed, Augment(), of_pixels, left_out=left_out, task=task)
        data.flip, data.flip_vertical, data.mosaic = self.flip, self.flip_vertical, self.mosaic
        return data

    def _parts(self) -> dict[str, list[pascal_voc.AnnotatedImage]]:
        root = checked_root(self.name, self.folder())
        with reading(self.name, root):
            return pascal_voc.parts(root)

    def _names(self, parts: Mapping[str, Sequence[pascal_voc.AnnotatedImage]]) -> tuple[str, ...]:
        """The classes. Raises UserError for an object of another one, and where there is none."""
        found = {box[0] for image in parts["train"] for box in image.boxes}
        names = tuple(self.labels) if self.labels else tuple(sorted(found))
        if not names:
            raise UserError(f"data={self.name}: no training image has an object to learn from: add some")
        for image in (image for part in parts.values() for image in part):
            if unknown := next((box[0] for box in image.boxes if box[0] not in names), None):
                source = "data.labels" if self.labels else "the training part"
                raise UserError(
                    f"{image.xml} has an object of the class {unknown!r}, but the classes of {source} are "
                    f"{', '.join(names)}: {did_you_mean(unknown, names)}correct it, or name it in data.labels"
                )
        return names

    def _part(
        self,
        images: Sequence[pascal_voc.AnnotatedImage],
        names: tuple[str, ...],
        most: int,
        device: torch.device,
        scales: list[float],
    ) -> Split:
        """The images of a part with their boxes; `scales` gets how much smaller each has become."""
        samples = torch.empty(len(images), 3, *self.size, dtype=torch.uint8)
        y = torch.full((len(images), most, 5), -1.0)
        for i, image in enumerate(images):
            samples[i], scale, moved = self._read(image)
            scales.append(scale)
            for j, (name, *corners) in enumerate(image.boxes):
                y[i, j, 0] = names.index(name)
                y[i, j, 1:] = torch.tensor(corners) * scale + moved
        return Split(Memory(samples.to(device)), torch.arange(len(images)), y.to(device))

    def _read(self, image: pascal_voc.AnnotatedImage) -> tuple[Tensor, float, Tensor]:
        """The pixels uint8 [3, H, W], and what happened to a box [4]: times the scale, and moved."""
        height, width = self.size
        done: list[Any] = []

        def fit(shown: Image) -> Image:
            if image.size is not None and shown.size != image.size:
                raise ValueError(f"it is {shown.size[0]} x {shown.size[1]}, and {image.xml.name} says {image.size}")
            inside, *how = fitted(shown, width, height)
            done.extend(how)
            return inside

        pixels = read_image(image.image, 0, fit)
        scale, left, top = done
        return pixels, scale, torch.tensor([left, top, left, top], dtype=torch.float32)


@dataclass(frozen=True)
class BCCD(Boxes):
    """Blood cells (Shenggan's BCCD_Dataset): 364 microscope images of 640 x 480 with 4,886 boxes of red and white cells
    and platelets; the published lists train 205, validation 87, test 72. Two boxes have no area."""

    name: ClassVar[str] = "bccd"
    verified: ClassVar[str] = ALL_CHECKED
    SUM: ClassVar[str] = "c272e71c8ee5e3de529379c8dfd0f991dba70bca3a0f8bfa5782cc9ddfa59303"
    FOLDERS: ClassVar[tuple[str, ...]] = ("Annotations/*.xml", "ImageSets/Main/*.txt", "JPEGImages/*.jpg")

    labels: list[str] | None = None

    def unread(self) -> Mapping[str, str]:
        return {"labels": "data=voc", "validation": "data=voc data.root=PATH without a val.txt"}

    def folder(self) -> Path:
        return Source.folder(self) / "BCCD"

    def verify(self) -> str:
        return f"{self.verified}; {super().verify()}"

    def _names(self, parts: Mapping[str, Sequence[pascal_voc.AnnotatedImage]]) -> tuple[str, ...]:
        return "RBC", "WBC", "Platelets"

    def _parts(self) -> dict[str, list[pascal_voc.AnnotatedImage]]:
        root, source = checked_root(self.name, self.folder()), "github.com/Shenggan/BCCD_Dataset"
        with reading(self.name, root):
            files = sorted(file for pattern in self.FOLDERS for file in root.glob(pattern))
            if not files:
                raise UserError(
                    f"{has_no(self.name, root, ['JPEGImages'])}: get BCCD of {source}, and {WHERE} the folder that has "
                    "BCCD"
                )
            digest = hashlib.sha256()
            for file in files:
                digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
        if digest.hexdigest() != self.SUM:
            raise UserError(
                f"{root} is not the published set: its {len(files)} files have the sha256 "
                f"{digest.hexdigest()[:16]}..., not {self.SUM[:16]}...: get {source} again, or take it as data=voc "
                f"data.root={root}"
            )
        return super()._parts()
