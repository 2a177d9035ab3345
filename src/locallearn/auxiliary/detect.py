"""The auxiliary network for boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import nn

from locallearn.auxiliary.networks import Auxiliary, Size
from locallearn.errors import UserError
from locallearn.models.pyramid import DetectHead, Pyramid


@dataclass(frozen=True)
class Detect(Auxiliary):
    """The head of `model=detector` on one level: of a packed pyramid the newest.

    bins  distances that a side of a box can have; see `DetectHead`
    """

    bins: Annotated[int, Ge(2)] = 8

    def build(self, size: Size, classes: int) -> nn.Module:
        raise UserError(
            "auxiliary=detect answers with boxes, which this task does not ask for: choose another auxiliary network, "
            "such as mlp or linear"
        )

    def build_boxes(self, image: Size, levels: Sequence[Size], classes: int, every: bool = False) -> nn.Module:
        newest = levels[-1]
        if len(newest) != 3 or any(side % cells for side, cells in zip(image[1:], newest[1:], strict=True)):
            raise UserError(
                f"a block emits {list(newest)} for images {list(image)}, but boxes are found on maps whose sides "
                "divide those of the images: cut the model elsewhere, or choose model=detector"
            )
        return DetectHead(Pyramid(tuple(levels)), image, classes, self.bins, newest=not every)
