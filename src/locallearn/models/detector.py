"""GELAN as a detector: the trunk, a neck that goes down and up again, and a head on three levels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.errors import UserError
from locallearn.models.base import BlockModel, Size
from locallearn.models.gelan import BLOCKS, ELAN, WIDTHS, conv
from locallearn.models.layers import check_image
from locallearn.models.pyramid import DetectHead, Pyramid, Scale, published_norms
from locallearn.options import OneOf, within_ranges
from locallearn.task import BOXES

COARSEST = 32  # pixels of a position of the last stage


class Join(nn.Module):
    """Brings a map to twice (nearest) or half (strided 3x3 convolution) its sides, joins another one, and computes:
    [B, C, H, W] and [B, C', 2H, 2W] or [B, C', H/2, W/2] -> [B, outputs, ...], the sides of the second."""

    def __init__(self, first: int, second: int, outputs: int, unit: nn.Module, up: bool) -> None:
        super().__init__()
        self.down = None if up else conv(first, first, 3, 2)
        self.join, self.unit = conv(first + second, outputs), unit

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        first = F.interpolate(first, scale_factor=2.0) if self.down is None else self.down(first)
        return self.unit(self.join(torch.cat([first, second], dim=1)))


@within_ranges("model")
def detector(
    image: Size,
    classes: int,
    *,
    block: Annotated[str, OneOf(BLOCKS)] = "csp",
    elan_depth: Annotated[int, Ge(1)] = 1,
    csp_depth: Annotated[int, Ge(1)] = 1,
    width: Annotated[float, Gt(0)] = 0.25,
    bins: Annotated[int, Ge(2)] = 8,
) -> BlockModel:
    """A detector in the manner of YOLOv9 (Wang, Yeh & Liao, 2024): the trunk of `gelan` at strides 4 to 32, of whose
    last three stages P3, P4 and P5 a path down (P5 to N4 to N3) and one up again (N3 to B4 to B5) make N3, B4 and B5,
    which the head reads. [B, C, H, W], sides of multiples of 32 -> [B, positions, 3 + 4 bins + classes].

    block, elan_depth, csp_depth, width  see `gelan`; those of the neck are the same
    bins  distances that a side of a box can have, 0 to bins - 1 cells: 7 cells reach 56 pixels at stride 8

    blocks=[4,6,8] ends blocks at P3, P4 and P5. What blocks hand on from there is a packed pyramid. The authors' net
    also has average pools before strided convolutions, a pyramid of pools after P5, and 16 bins.
    """
    channels, height, width_ = check_image(image, "detector")
    if height % COARSEST or width_ % COARSEST:
        raise UserError(
            f"detector needs sides divisible by {COARSEST}, not {height} x {width_}: choose data.size=[192,256]"
        )
    widths = [max(8, round(width * w / 8) * 8) for w in WIDTHS]
    elan = partial(ELAN, block=block, elan_depth=elan_depth, csp_depth=csp_depth)
    units = _trunk(channels, widths, (height, width_), elan)
    units |= _neck(widths, (height, width_), elan)
    found = Pyramid(units["bottom5"].levels)  # type: ignore[arg-type]
    for unit in units.values():
        published_norms(unit)
    model = BlockModel(units, DetectHead(found, image, classes, bins), image=image, classes=classes, name="detector")
    model.form = BOXES
    return model


def _trunk(
    channels: int, widths: list[int], sides: tuple[int, int], elan: Callable[[int], nn.Module]
) -> dict[str, nn.Module]:
    """Stem and stages 1 to 4; from the third on what they emit is a pyramid."""
    stem = nn.Sequential(conv(channels, widths[0] // 2, 3, 2), conv(widths[0] // 2, widths[0], 3, 2))
    units: dict[str, nn.Module] = {"stem": stem, "elan1": elan(widths[0])}
    units |= {"down2": conv(widths[0], widths[1], 3, 2), "elan2": elan(widths[1])}
    given = Pyramid((_level(widths, sides, 1),))
    for stage in (2, 3):
        size, below = _level(widths, sides, stage), range(stage - 1)
        down = Scale(conv(widths[stage - 1], widths[stage], 3, 2), given, [stage - 2], below, size)
        unit = Scale(elan(widths[stage]), Pyramid(down.levels), [stage - 1], below, size)
        units |= {f"down{stage + 1}": down, f"elan{stage + 1}": unit}
        given = Pyramid(unit.levels)
    return units


def _neck(widths: list[int], sides: tuple[int, int], elan: Callable[[int], nn.Module]) -> dict[str, nn.Module]:
    """From (P3, P4, P5) by (P3, P5, N4) and (P5, N4, N3) and (P5, N3, B4) to (N3, B4, B5)."""
    p3, p4, p5 = (_level(widths, sides, stage) for stage in (1, 2, 3))

    def join(first: Size, second: Size, up: bool) -> nn.Module:
        return Join(first[0], second[0], second[0], elan(second[0]), up)

    units = {"top4": Scale(join(p5, p4, up=True), Pyramid((p3, p4, p5)), [2, 1], [0, 2], p4)}
    units["top3"] = Scale(join(p4, p3, up=True), Pyramid((p3, p5, p4)), [2, 0], [1, 2], p3)
    units["bottom4"] = Scale(join(p3, p4, up=False), Pyramid((p5, p4, p3)), [2, 1], [0, 2], p4)
    units["bottom5"] = Scale(join(p4, p5, up=False), Pyramid((p5, p3, p4)), [2, 0], [1, 2], p5)
    return dict(units)


def _level(widths: list[int], sides: tuple[int, int], stage: int) -> Size:
    """The size of what a stage emits, from 0."""
    return (widths[stage], *(side // (4 << stage) for side in sides))
