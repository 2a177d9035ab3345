"""Feature maps of a chosen image at chosen layers: what a net, also an untrained one, keeps of the image with depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from locallearn.analysis.features import as_pixels, maps
from locallearn.errors import UserError
from locallearn.figures.style import gallery, spaced
from locallearn.probes import Data, Every, Learner, Moment, Probe, Row, Seen, chosen, outputs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYERS = 6
MAPS = ("mean", "component", "channels", "numbers")


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
        units = chosen(self.name, self.layers, spaced(range(len(learner.model.units)), LAYERS), learner)
        rows: list[Row] = []
        arrays = {"input": as_pixels(inputs[place : place + 1], data.pixels)[0].float()}
        for i, h in enumerate(outputs(learner, inputs)):
            if i not in units:
                continue
            shown = maps(h[place], self.channels)
            shape = "x".join(map(str, h.shape[1:]))
            shares: Row = {"component_share": shown.share, "dead_share": shown.dead}
            rows.append({"layer": i, "name": learner.model.names[i], "shape": shape, **shares})
            arrays |= {f"{i:03d}/{name}": getattr(shown, name) for name in MAPS}
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

    def snapshot(self, rows: Sequence[Row], arrays: Mapping[str, Tensor]) -> Figure:
        """Layers downward; the mean, the first component and single channels to the right."""
        lines = [("image", [("", arrays["input"])])] if arrays["input"].dim() == 3 else []
        for row in rows:
            mean, component, channels, numbers = (arrays[f"{row['layer']:03d}/{name}"] for name in MAPS)
            images = [("mean", mean), ("1st component", component)]
            images += [(f"ch. {number}", channel) for number, channel in zip(numbers.tolist(), channels, strict=True)]
            lines.append((f"{row['name']}\n{row['shape']}", images))
        return gallery(lines)
