"""Average precision by the size of objects, where faster-coco-eval is installed (the extra `detection`)."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

EDGES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, math.inf)}
"""COCO's, in square pixels of an image as it was taken."""
LARGEST = 1e10  # the area that faster-coco-eval takes for all


def by_size(images: Sequence[np.ndarray], classes: int, scale: float) -> dict[str, float]:
    """`ap_small`, `ap_medium` and `ap_large`, those of which there are objects; nothing without the package, or where
    nothing was found.

    Args:
        images: Of each one what was found and what is there, as `Detection.rows` has them [N, 6].
        scale: How large a pixel of an image as it was taken is to the net.
    """
    if importlib.util.find_spec("faster_coco_eval") is None:
        return {}
    from faster_coco_eval import COCO, COCOeval_faster

    objects: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, image in enumerate(images, 1):
        for which, x1, y1, x2, y2, score in image[image[:, 0] >= 0].tolist():
            box = {"image_id": number, "category_id": int(which) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            area = {"area": (x2 - x1) * (y2 - y1)}
            if score > 1:
                objects.append({"id": len(objects) + 1, "iscrowd": 0, **box, **area})
            else:
                found.append({**box, **area, "score": score})
    if not objects or not found:  # it cannot read an empty list
        return {}
    truth = COCO(
        {
            "images": [{"id": i + 1, "width": 1, "height": 1} for i in range(len(images))],
            "categories": [{"id": k + 1, "name": str(k)} for k in range(classes)],
            "annotations": objects,
        }
    )
    ranges = {name: [low * scale**2, min(high * scale**2, LARGEST)] for name, (low, high) in EDGES.items()}
    quiet = {"print_function": lambda *_: None}
    evaluation = COCOeval_faster(truth, truth.loadRes(found), iouType="bbox", ranges=ranges, **quiet)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    sizes = zip(EDGES, evaluation.stats[3:6].tolist(), strict=True)
    return {f"ap_{name}": value for name, value in sizes if value >= 0}  # -1 where there is no object
