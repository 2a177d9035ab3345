"""Feature maps of a chosen image at chosen layers: what a net, also an untrained one, keeps of the image with depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from locallearn.analysis.features import maps
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.errors import UserError
from locallearn.figures import panels
from locallearn.probes.base import Every, Moment, Probe, Row, Seen
from locallearn.probes.depth import outputs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LAYERS = 6
CELL = 0.75  # inches


@dataclass(frozen=True)
class Features(Probe):
    """Feature maps of one test image in eval mode (Wang, Yeh & Liao 2024, figures 6 and 7). Per layer:

    component_share   of the variance over positions that the first principal component of the channels has
    dead_share        of channels that are the same at every position

    Arrays: `input` [C, H, W] on the scale of pixels; `mean` (over channels), `component` (the first principal one) and
    `channels` (of largest variance, first the largest) of each layer. A vector is folded into rows. Pictures of the
    first and of the last look; every map has its own scale.

    image     place in the test split
    layers    units; None: 6, evenly spaced
    channels  maps per layer beside the two that sum up all channels
    """

    every: Every = field(default="log", kw_only=True)
    image: Annotated[int, Ge(0)] = 0
    layers: tuple[int, ...] | None = None
    channels: Annotated[int, Ge(1)] = 6

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        inputs, place = self._input(data)
        units = chosen("features", self.layers, spaced(len(learner.model.units)), learner)
        rows: list[Row] = []
        arrays = {"input": as_pixels(inputs[place : place + 1], data)[0].float()}
        for i, h in enumerate(outputs(learner, inputs)):
            if i not in units:
                continue
            found = maps(h[place], self.channels)
            shape = "x".join(map(str, h.shape[1:]))
            shares: Row = {"component_share": found.share, "dead_share": found.dead}
            rows.append({"layer": i, "name": learner.model.names[i], "shape": shape, **shares})
            for name in ("mean", "component", "channels", "numbers"):
                arrays[f"{i:03d}/{name}"] = getattr(found, name)
        return Seen(rows, arrays)

    def _input(self, data: Data) -> tuple[Tensor, int]:
        """A batch that has the image, and where: of a graph, all nodes."""
        test = data.test
        nodes = next(data.evaluation(test, 1))[0] if data.graph is not None else None
        count = len(test) if nodes is None else len(nodes)
        if count <= self.image:
            raise UserError(
                f"probe.features.image={self.image}: the test split of {data.name} has {count} samples; "
                f"choose 0-{count - 1}"
            )
        if nodes is not None:
            return nodes, self.image
        return next(data.evaluation(test.at(torch.tensor([self.image])), 1))[0], 0

    def draw(self, rows: Sequence[Row], arrays: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Figure]:
        return {f"features-{epoch:05d}": _picture(rows, arrays[epoch], epoch) for epoch in ends(arrays)}


def spaced(units: int, most: int = LAYERS) -> list[int]:
    """At most so many units, evenly spaced from the first to the last."""
    count = min(most, units)
    return [round(k * (units - 1) / max(1, count - 1)) for k in range(count)]


def chosen(probe: str, layers: Sequence[int] | None, otherwise: list[int], learner: Learner) -> list[int]:
    """The units to look at. Raises UserError for one that the model does not have."""
    last = len(learner.model.units) - 1
    for i in layers or ():
        if not 0 <= i <= last:
            raise UserError(f"probe.{probe}.layers={list(layers or ())}: {learner.model.name} has units 0-{last}")
    return sorted(set(layers)) if layers else otherwise


def as_pixels(inputs: Tensor, data: Data) -> Tensor:
    """Inputs [N, C, H, W] on the scale from 0 (black) to 1 (white); others as they are."""
    if data.pixels is None or inputs.dim() != 4:
        return inputs
    black, white = (torch.tensor(x, dtype=torch.float64, device=inputs.device)[:, None, None] for x in data.pixels)
    return (inputs.double() - black) / (white - black)


def ends(arrays: Mapping[int, Any]) -> list[int]:
    """The epochs of the first and of the last look."""
    return sorted({min(arrays), max(arrays)}) if arrays else []


def bare(axis: Axes, title: str = "", label: str = "") -> None:
    """Take ticks, grid and frame from a picture."""
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.set_title(title, fontsize=7)
    axis.set_ylabel(label, fontsize=7, rotation=0, ha="right", va="center")


def show(axis: Axes, image: Tensor) -> None:
    """An image [C, H, W] on the scale from 0 to 1: three channels in colour, others as their mean in grey."""
    if len(image) == 3:
        axis.imshow(image.clamp(0, 1).permute(1, 2, 0).float().numpy(), interpolation="nearest")
    else:
        axis.imshow(image.float().mean(0).numpy(), cmap="gray", interpolation="nearest", vmin=0, vmax=1)


def _picture(rows: Sequence[Row], arrays: Mapping[str, Tensor], epoch: int) -> Figure:
    """Layers downward, the image on the left; to the right the mean, the first component and single channels."""
    layers = sorted({name.split("/")[0] for name in arrays if "/" in name})
    about = {row["layer"]: row for row in rows if row["epoch"] == epoch}
    columns = 3 + max(len(arrays[f"{layer}/channels"]) for layer in layers)
    figure, axes = panels(columns, len(layers), CELL, CELL)
    for axis in axes:
        bare(axis)
    if arrays["input"].dim() == 3:
        show(axes[0], arrays["input"])
        bare(axes[0], "image")
    for k, layer in enumerate(layers):
        line = axes[k * columns + 1 : (k + 1) * columns]
        row = about[int(layer)]
        found = [arrays[f"{layer}/mean"], arrays[f"{layer}/component"], *arrays[f"{layer}/channels"]]
        for axis, found_map in zip(line, found, strict=False):
            axis.imshow(found_map.numpy(), cmap="viridis", interpolation="nearest", aspect="auto")
            axis.set_box_aspect(1)
        bare(line[0], "" if k else "mean", f"{row['name']}\n{row['shape']}")
        bare(line[1], "" if k else "1st component")
        for axis, index in zip(line[2:], arrays[f"{layer}/numbers"].tolist(), strict=False):
            bare(axis, f"ch. {index}")
    when = "initial weights" if epoch == 0 else f"after epoch {epoch}"
    figure.suptitle(f"Feature maps, {when}", fontsize=8)
    return figure
