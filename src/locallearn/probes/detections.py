"""What a detector finds in some images, beside what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from locallearn.analysis.features import as_pixels
from locallearn.figures.style import COLOURS, bare, panels
from locallearn.probes import Arrays, Data, Every, Learner, Moment, Pictures, Probe, Row, Seen
from locallearn.task import DETECTION
from locallearn.tasks import Detection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4
OBJECTS = "objects_"


@dataclass(frozen=True)
class Detections(Probe):
    """Boxes of the first test images: above, what is there, and below it what is found with at least some score.

    objects_NAME, found_NAME   boxes of a class in these images, there and found

    Arrays: `images` [N, C, H, W] on the scale of pixels, `there` and `found` [N, M, 6]: class, x1, y1, x2, y2, score;
    class -1 pads.

    images  how many
    score   the least one of a box that is drawn
    """

    every: Every = field(default="log", kw_only=True)
    images: Annotated[int, Ge(1)] = 8
    score: Annotated[float, Interval(gt=0, lt=1)] = 0.3
    tasks: ClassVar[frozenset[str] | None] = frozenset({DETECTION})

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        task = data.task
        assert isinstance(task, Detection)
        count = min(self.images, len(data.test))
        inputs, y = next(data.evaluation(data.test.at(torch.arange(count)), count))
        z = learner.predict(inputs)[-1]
        assert z is not None
        found = torch.stack(task.decoded(z))
        found = found.masked_fill((found[..., 5:] < self.score) | (found[..., :1] < 0), -1.0)
        there = torch.cat([y.cpu().double(), torch.ones(*y.shape[:2], 1, dtype=torch.float64)], dim=2)
        row: Row = {}
        for k, name in enumerate(task.names):
            row |= {
                f"{OBJECTS}{name}": int((there[..., 0] == k).sum()),
                f"found_{name}": int((found[..., 0] == k).sum()),
            }
        most = max(1, int((found[..., 0] >= 0).sum(1).max()))
        images = as_pixels(inputs, data.pixels).float()
        return Seen([row], {"images": images, "there": there, "found": found[:, :most]})

    def draw(self, rows: Sequence[Row], arrays: Arrays) -> Pictures:
        """The last look alone: untrained, a detector finds nothing."""
        return super().draw(rows, {max(arrays): arrays[max(arrays)]} if arrays else {})

    def snapshot(self, rows: Sequence[Row], arrays: Mapping[str, Tensor]) -> Figure:
        """Pairs of lines of images: the truth, and below it what was found."""
        from matplotlib.patches import Patch

        names = [key.removeprefix(OBJECTS) for key in rows[0] if key.startswith(OBJECTS)]
        count, _, height, width = arrays["images"].shape
        columns = min(COLUMNS, count)
        lines = -(-count // columns)
        figure, axes = panels(columns, 2 * lines, 1.7, 1.7 * height / width + 0.1)
        for axis in axes:
            bare(axis)
        for i, image in enumerate(arrays["images"]):
            line, column = divmod(i, columns)
            for below, kind in enumerate(("there", "found")):
                axis = axes[(2 * line + below) * columns + column]
                axis.imshow(image.expand(3, -1, -1).permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
                _boxes(axis, arrays[kind][i])
                bare(axis, "", kind if column == 0 else "")
        handles = [Patch(color=COLOURS[k % len(COLOURS)], label=name) for k, name in enumerate(names)]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(names), 6), fontsize=7, frameon=False)
        return figure


def _boxes(axis: Axes, boxes: Tensor) -> None:
    """Draw the boxes [M, 6]; the fainter, the lower the score."""
    from matplotlib.patches import Rectangle

    for which, x1, y1, x2, y2, score in boxes.tolist():
        if which >= 0:
            colour = COLOURS[int(which) % len(COLOURS)]
            style = {"fill": False, "edgecolor": colour, "linewidth": 1.0, "alpha": 0.3 + 0.7 * score}
            axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **style))
