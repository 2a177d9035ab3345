"""Small pictures with bright squares in them, as a folder in the layout of Pascal VOC and as tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from locallearn.models import BlockModel
from locallearn.models.detector import detector
from locallearn.tasks import Detection

NAMES = ("dark", "light")
SIDE = 64


def scenes(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """uint8 images [N, 3, 64, 64] and boxes [N, 2, 5]: one or two squares, dark or light, on grey noise."""
    draws = torch.Generator().manual_seed(seed)
    images = torch.randint(100, 140, (count, 3, SIDE, SIDE), generator=draws).to(torch.uint8)
    boxes = torch.full((count, 2, 5), -1.0)
    for image, own in zip(images, boxes, strict=True):
        for k in range(int(torch.randint(1, 3, (), generator=draws))):
            which, side = int(torch.randint(2, (), generator=draws)), int(torch.randint(14, 26, (), generator=draws))
            x = SIDE // 2 * k + int(torch.randint(SIDE // 2 - side, (), generator=draws))  # one in each half
            y = int(torch.randint(SIDE - side, (), generator=draws))
            image[:, y : y + side, x : x + side] = (0, 255)[which]
            own[k] = torch.tensor([which, x, y, x + side, y + side])
    return images, boxes


def batch(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """float64 inputs [B, 3, 64, 64] and boxes [B, 2, 5]."""
    images, boxes = scenes(count, seed)
    return (images.double() - 120) / 60, boxes


def net(**options: object) -> BlockModel:
    """A thin detector of two classes in float64, with everything drawn from seed 0."""
    torch.manual_seed(0)
    return detector((3, SIDE, SIDE), 2, **{"width": 0.125, "bins": 4, "block": "conv", **options}).double()


TASK = Detection(NAMES)


def folder(root: Path, counts: tuple[int, int, int] = (12, 4, 4)) -> Path:
    """Write the parts train, val and test of a set."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    images, boxes = scenes(sum(counts))
    ids = [f"{i:03}" for i in range(len(images))]
    for name, image, own in zip(ids, images, boxes.tolist(), strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / "JPEGImages" / f"{name}.png")
        objects = "".join(
            f"<object><name>{NAMES[int(k)]}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax>"
            f"<ymax>{y2}</ymax></bndbox></object>"
            for k, x1, y1, x2, y2 in own
            if k >= 0
        )
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    start = 0
    for part, count in zip(("train", "val", "test"), counts, strict=True):
        (root / "ImageSets/Main" / f"{part}.txt").write_text("\n".join(ids[start : start + count]))
        start += count
    return root
