"""Schedules as a picture: a lane for each device, a box for each piece of work, one time axis for all schedules."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from locallearn.errors import UserError
from locallearn.plan.devices import FORWARD, Piece, stages
from locallearn.plan.link import LinkCost
from locallearn.plan.options import PlanOptions
from locallearn.plan.schedules import ScheduleRow, short
from locallearn.plan.simulate import simulate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LANES = 8
MOST_BATCHES = 100
WIDTH = 10.0  # inches
COLOURS = {"forward": ("#0072B2", "#5BA9D6"), "backward": ("#E69F00", "#F5CE7A")}  # Okabe-Ito; by even and odd batch


def draw(rows: Sequence[ScheduleRow], options: PlanOptions, link: LinkCost, title: str) -> None:
    """Write `options.picture`: the first batches of every schedule on the first devices, from empty devices."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    shown = [row for row in rows if row.schedule]
    serial = sum(b.times.total for blocks in shown[0].division for b in blocks)
    until = 2.05 * serial if options.stages <= MOST_LANES else 20 * serial / options.stages
    lanes = min(options.stages, MOST_LANES)
    with rc_context({"svg.hashsalt": "locallearn", "font.size": 8, "hatch.linewidth": 0.5}):
        height = (0.42 + max(0.17 * lanes, 0.4)) * len(shown) + 1.0
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for axis, row in zip(axes, shown, strict=True):
            _lanes(axis, _pieces(row, link, until), row.micro_batches, lanes, until * 1e3)
            axis.set_title(_title(row), loc="left", fontsize=8)
        axes[-1].set_xlabel("milliseconds")
        limits = f"; drawn: the first {lanes} of {options.stages} devices" if lanes < options.stages else ""
        figure.suptitle(f"{title}{limits}", fontsize=9)
        names = {"forward": "forward", "backward": "backward, loss and optimizer"}
        legend = [Patch(color=COLOURS[kind][0], label=name) for kind, name in names.items()]
        legend.append(Patch(color="white", label="numbers: batch; shades: even and odd"))
        figure.legend(handles=legend, loc="outside lower center", ncols=3, frameon=False)
        path = Path(options.picture)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
        except OSError as error:
            raise UserError(f"picture={path} cannot be written: {error.strerror or error}") from error


def _title(row: ScheduleRow) -> str:
    milliseconds, own = short(row.prediction.step_seconds * 1e3), " *" if row.own else ""
    numbers = f"{milliseconds} ms per batch, {row.prediction.bubble:.0%} bubble, {row.speed_up:.2f} times one device"
    return f"{row.label}, {row.strategy}{own}: {numbers}"


def _pieces(row: ScheduleRow, link: LinkCost, until: float) -> list[Piece]:
    """What the first devices do in the first `until` seconds."""
    devices = stages(row.division, row.micro_batches, link, row.exchanges, row.reads)
    period, first = row.prediction.step_seconds, float(devices.forward[0])
    if row.schedule in ("none", "delayed"):  # the first device is faster while the pipeline fills
        period = min(period, first if row.schedule == "delayed" else first + float(devices.backward[0]))
    batches = min(math.ceil(until / period) + 2, MOST_BATCHES)
    pieces = simulate(row.schedule, devices, row.micro_batches, batches, keep=MOST_LANES).pieces
    return [piece for piece in pieces if piece.start < until]


def _lanes(axis: Axes, pieces: Sequence[Piece], micro_batches: int, lanes: int, until: float) -> None:
    """Draw one schedule; `until` in milliseconds. A number stands where it fits."""
    boxes: defaultdict[tuple[int, str], list[tuple[float, float]]] = defaultdict(list)
    for piece in pieces:
        batch = piece.item // micro_batches
        start, end = piece.start * 1e3, piece.end * 1e3
        boxes[piece.device, COLOURS[piece.kind][batch % 2]].append((start, end - start))
        label, end = str(batch + 1), min(end, until)
        if (end - start) / until * 0.93 * WIDTH > 0.03 + 0.065 * len(label):  # inches
            colour = "white" if piece.kind == FORWARD and batch % 2 == 0 else "black"
            text = axis.text((start + end) / 2, piece.device + 0.04, label, color=colour, fontsize=6.5)
            text.set(ha="center", va="center", in_layout=False)
    for (device, colour), spans in boxes.items():
        axis.broken_barh(spans, (device - 0.42, 0.84), color=colour, edgecolor="white", linewidth=0.4)
    axis.set(xlim=(0, until), ylim=(lanes - 0.5, -0.5), yticks=range(lanes), ylabel="device")
    axis.tick_params(length=2)
    axis.spines[["top", "right"]].set_visible(False)
