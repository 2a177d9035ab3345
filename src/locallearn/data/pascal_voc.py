"""Folders in the layout of Pascal VOC: lists of images, and an XML file with the objects of each."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from locallearn.data.scan import SUFFIXES
from locallearn.errors import UserError

LISTS = Path("ImageSets", "Main")
XML_BYTES = 1 << 20
LEAST = 1.0  # pixels of a side

Box = tuple[str, float, float, float, float]


@dataclass
class AnnotatedImage:
    """An image file and the objects in it: class, x1, y1, x2, y2 in its pixels, within it. `dropped` counts objects
    that are left out, by what is wrong with them; `size` is (width, height), or None where the file does not say it."""

    image: Path
    xml: Path
    boxes: list[Box] = field(default_factory=list)
    size: tuple[int, int] | None = None
    dropped: Counter[str] = field(default_factory=Counter)


class _Plain(ElementTree.TreeBuilder):
    """A document type could define entities that grow without end, or name other files."""

    def doctype(self, *_: Any) -> None:
        raise ValueError("it has a document type (DTD), which annotations do not need: take the line out")


def parts(root: Path) -> dict[str, list[AnnotatedImage]]:
    """The parts train, test and validation of a folder with JPEGImages, Annotations and ImageSets/Main. With both a
    val.txt and a test.txt the former is the validation part; with one of them that is the test part. Raises UserError,
    and OSError for a file that cannot be read."""
    ids = {name: _ids(root, name) for name in ("train", "val", "test") if (root / LISTS / f"{name}.txt").is_file()}
    if "train" not in ids or len(ids) < 2:
        missing = "train.txt" if "train" not in ids else "test.txt and no val.txt"
        raise UserError(
            f"{root} has no {LISTS / missing}: the folder must have JPEGImages, Annotations, and in {LISTS} lists "
            "train.txt and test.txt (and val.txt, for validation) with the name of an image in each line"
        )
    if "test" not in ids:
        ids["test"] = ids.pop("val")
    seen: dict[str, str] = {}
    for part, own in ids.items():
        for name in own:
            if name in seen:
                twice = f"twice in {part}" if seen[name] == part else f"in {seen[name]} and in {part}"
                raise UserError(f"{root / LISTS}: {name} is {twice}: what is trained on must not be tested on")
            seen[name] = part
    images = {part: [_annotated(root, name) for name in own] for part, own in ids.items()}
    return {"train": images["train"], "validation": images.get("val", []), "test": images["test"]}


def _ids(root: Path, part: str) -> list[str]:
    file = root / LISTS / f"{part}.txt"
    try:
        lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not a text in UTF-8: it must have the name of an image in each line") from error
    ids = [words[0] for words in lines if words]
    if not ids:
        raise UserError(f"{file} is empty: it must have the name of an image in each line")
    if wrong := next((name for name in ids if Path(name).name != name or "\\" in name), None):
        raise UserError(f"{file} names {wrong!r:.80}: give the name of a file in JPEGImages, without its suffix")
    return ids


def _annotated(root: Path, name: str) -> AnnotatedImage:
    folder = root / "JPEGImages"
    images = (folder / f"{name}{suffix}" for suffix in (".jpg", *sorted(SUFFIXES - {".jpg"})))
    image, xml = next((file for file in images if file.is_file()), None), root / "Annotations" / f"{name}.xml"
    if image is None:
        raise UserError(f"{folder} has no {name}.jpg, which {LISTS} names: add the image, or take it from the list")
    if not xml.is_file():
        raise UserError(f"{xml} is missing: add it (without any object if the image shows none), or drop the image")
    return read(xml, image)


def read(xml: Path, image: Path) -> AnnotatedImage:
    """The objects of an image. Raises UserError that names the file."""
    try:
        if xml.stat().st_size > XML_BYTES:
            raise ValueError(f"it has more than {XML_BYTES >> 20} MB")
        tree = ElementTree.fromstring(xml.read_bytes(), ElementTree.XMLParser(target=_Plain()))
        found = AnnotatedImage(image, xml, size=_size(tree))
        for each in tree.iter("object"):
            _add(found, each)
    except (ValueError, ElementTree.ParseError, LookupError) as error:
        raise UserError(
            f"cannot read the annotation {xml} ({error}); correct it, or take its image off the list"
        ) from error
    return found


def _size(tree: ElementTree.Element) -> tuple[int, int] | None:
    texts = [tree.findtext(f"size/{side}") for side in ("width", "height")]
    return None if None in texts else (int(texts[0] or 0), int(texts[1] or 0))


def _add(found: AnnotatedImage, each: ElementTree.Element) -> None:
    """Add an object, within the image, or count why it is left out."""
    name, texts = each.findtext("name"), [each.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    if not name or None in texts:
        raise ValueError("an object has no name or no bndbox with xmin, ymin, xmax and ymax")
    x1, y1, x2, y2 = corners = [float(text or "nan") for text in texts]
    if not all(map(math.isfinite, corners)):
        raise ValueError(f"a box of {name} has a side that is not a number")
    width, height = found.size or (math.inf, math.inf)
    if x2 < x1 or y2 < y1:
        found.dropped["with swapped corners"] += 1
    elif x2 - x1 < LEAST or y2 - y1 < LEAST:
        found.dropped["without an area"] += 1
    else:
        x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)
        if min(x2 - x1, y2 - y1) < LEAST:
            found.dropped["outside of the image"] += 1
        else:
            found.boxes.append((name.strip(), x1, y1, x2, y2))


def dropped(images: Sequence[AnnotatedImage]) -> str:
    """Such as `2 boxes without an area left out, the first in NAME.xml`; an empty text if none is."""
    reasons: Counter[str] = sum((image.dropped for image in images), Counter())
    if not reasons:
        return ""
    first = next(image.xml.name for image in images if image.dropped)
    kinds = " and ".join(f"{count} box{'es' * (count > 1)} {reason}" for reason, count in sorted(reasons.items()))
    return f"{kinds} left out, the first in {first}"
