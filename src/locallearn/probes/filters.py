"""The filters of the first layer, before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge
from torch.nn.functional import normalize

from locallearn.analysis.features import first_filters, tiles
from locallearn.figures.style import bare, panels
from locallearn.probes import Arrays, Data, Every, Learner, Moment, Pictures, Probe, Row, Seen


@dataclass(frozen=True)
class Filters(Probe):
    """Filters of the first convolution, or of a fully connected first layer as images (Krizhevsky et al. 2012).

    norm     mean length of a filter
    cosine   mean |cosine| between two different filters: near 1 they are copies of each other

    The picture has the first and the last look side by side; each filter has its own scale, 0 is grey.

    filters  how many are drawn
    """

    every: Every = field(default="log", kw_only=True)
    filters: Annotated[int, Ge(1)] = 64

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        name, weights = first_filters(learner.model.units, tuple(data.image))
        layer = int(name.partition(".")[0])
        flat = weights.flatten(1).double()  # [F, numbers]
        unit = normalize(flat, dim=1)
        count = len(unit)
        cosine = float(((unit @ unit.T).abs().sum() - unit.square().sum()) / max(1, count * (count - 1)))
        row: Row = {"layer": layer, "name": learner.model.names[layer], "filters": count}
        row |= {"norm": float(flat.norm(dim=1).mean()), "cosine": cosine}
        return Seen([row], {"filters": weights[: self.filters].float()})

    def draw(self, rows: Sequence[Row], arrays: Arrays) -> Pictures:
        if not arrays:
            return {}
        looks = sorted({min(arrays), max(arrays)})
        figure, axes = panels(len(looks), 1, 3.0, 3.2)
        figure.get_layout_engine().set(wspace=0.08)  # type: ignore[union-attr, call-arg]
        for axis, epoch in zip(axes, looks, strict=True):
            axis.imshow(tiles(arrays[epoch]["filters"]).numpy(), interpolation="nearest")
            bare(axis, f"after epoch {epoch}" if epoch else "initial weights")
        return {self.name: figure}
