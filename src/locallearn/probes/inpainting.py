"""What each block puts in place of what was hidden of an image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from locallearn import seeds
from locallearn.analysis.features import as_pixels
from locallearn.contract import Packet
from locallearn.errors import UserError
from locallearn.figures.style import gallery, spaced
from locallearn.objectives import Objective
from locallearn.probes import Arrays, Curve, Data, Every, Learner, Moment, Pictures, Probe, Row, Seen, outputs, sample
from locallearn.strategies.man import MAN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREY = 0.5
"""How what is hidden looks in a picture."""
LOOKS = 8
"""Columns of the picture over epochs."""


@dataclass(frozen=True)
class InpaintingProbe(Probe):
    """Hides a part of the same test images at each look, as the objective does in training, and lets each block's own
    decoder fill it, in eval mode. For each block that has one:

    hole_psnr       10 log10(peak^2 / mean squared error) over what was hidden of all images, in dB; pixels are from 0
                    to 1, to which the answer is clamped, and the peak is 1 (of other inputs, their range)
    mean_fill_psnr  the same where the mean colour of the training images is put there: by their variance about it
    hidden          the share of the pixels that was hidden

    Pictures: the whole image, what the network read and what each block made of it, at the first and at the last look;
    and the first image over the looks, a line for each block.

    samples  of the test split
    images   of them in the picture
    """

    every: Every = field(default="log", kw_only=True)
    samples: Annotated[int, Ge(1)] = 256
    images: Annotated[int, Ge(1)] = 6
    curves = (Curve("hole_psnr", "PSNR in the hole [dB]", level="mean_fill_psnr"),)

    @torch.no_grad()
    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        objective = _that_fills(learner)
        images, labels = sample(data, "test", self.samples)
        with seeds.stream(0, "inpainting", device=images.device):
            packet = objective.begin(Packet(learner.prepare(images), labels))
        whole, hidden = as_pixels(images, data.pixels).double(), packet.side[1]
        peak = 1.0 if data.pixels is not None else float(whole.max() - whole.min())
        colour = as_pixels(sample(data, "train", 2000)[0], data.pixels).double().mean((0, 2, 3), keepdim=True)
        by_mean = _psnr(colour.expand_as(whole), whole, hidden, peak)
        blocks = {units.stop - 1: block for units, block in zip(learner.cut, learner.blocks, strict=True)}
        rows: list[Row] = []
        arrays = {"whole": whole[: self.images].half(), "hidden": hidden[: self.images]}
        for i, h in enumerate(outputs(learner, packet.h)):
            if i not in blocks or "decoder" not in blocks[i].auxiliary:
                continue
            with learner.stage.autocast():
                filled = objective.fill(blocks[i].auxiliary.eval(), h, packet)
            assert filled is not None
            pixels = as_pixels(filled, data.pixels).double()
            pixels = torch.where(hidden, pixels.clamp(0, 1) if data.pixels is not None else pixels, whole)
            row: Row = {"block": blocks[i].spec.index, "layer": i, "name": learner.model.names[i]}
            row |= {"hole_psnr": _psnr(pixels, whole, hidden, peak), "mean_fill_psnr": by_mean}
            rows.append({**row, "hidden": float(hidden.double().mean())})
            arrays[f"{i:03d}"] = pixels[: self.images].half()
        return Seen(rows, arrays)

    def draw(self, rows: Sequence[Row], arrays: Arrays) -> Pictures:
        pictures = super().draw(rows, arrays)
        looks = spaced(sorted(epoch for epoch in arrays if arrays[epoch]), LOOKS)
        names = {row["layer"]: row["name"] for row in rows}
        if len(looks) > 1:
            lines = [(name, [(f"epoch {e}", arrays[e][f"{i:03d}"][0]) for e in looks]) for i, name in names.items()]
            pictures["inpainting-epochs"] = gallery(lines)
        return pictures

    def snapshot(self, rows: Sequence[Row], arrays: Mapping[str, Tensor]) -> Figure:
        """A line for each image: whole, as it was read, and as each block fills it."""
        whole, hidden = arrays["whole"], arrays["hidden"]
        columns = [("whole", whole), ("masked", whole.masked_fill(hidden, GREY))]
        columns += [(f"{row['name']}\n{row['hole_psnr']:.1f} dB", arrays[f"{row['layer']:03d}"]) for row in rows]
        return gallery(
            [("", [("" if k else title, images[k]) for title, images in columns]) for k in range(len(whole))]
        )


def _that_fills(learner: Learner) -> Objective:
    """The objective of the run. Raises UserError for one that hides nothing."""
    objective = getattr(learner.strategy, "objective", None)
    if not isinstance(objective, Objective) or type(objective).fill is Objective.fill:
        raise UserError(
            "probe=inpainting looks at what blocks put in place of hidden pixels, but nothing is hidden: choose "
            "strategy=dgl objective=masked or inpainting"
        )
    if isinstance(learner.strategy, MAN):
        raise UserError(
            "probe=inpainting reads what a block emits, but the decoders of strategy=man read more: choose strategy=dgl"
        )
    return objective


def _psnr(pixels: Tensor, whole: Tensor, hidden: Tensor, peak: float) -> float | None:
    """In dB, over the hidden pixels of images [N, C, H, W]; None where nothing is wrong."""
    error = float((pixels - whole).square()[hidden.expand_as(whole)].mean())
    return 10 * math.log10(peak**2 / error) if error > 0 else None
