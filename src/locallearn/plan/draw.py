"""Schedules as a picture: a lane for each device, a box for each piece of work, one time axis for all schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from locallearn.errors import UserError
from locallearn.plan.devices import Piece, stages
from locallearn.plan.options import PlanOptions
from locallearn.plan.schedules import GB, Row
from locallearn.plan.simulate import FORWARD, simulate
from locallearn.plan.table import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LANES = 8
MOST_BATCHES = 100
WIDTH = 10.0  # inches
COLOURS = {"forward": ("#0072B2", "#5BA9D6"), "backward": ("#E69F00", "#F5CE7A")}  # Okabe-Ito; by even and odd batch


class Panel(NamedTuple):
    """One schedule; `parts` micro-batches a batch."""

    title: str
    pieces: list[Piece]
    parts: int


def check() -> None:
    """Raises UserError where nothing can be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError("picture= needs matplotlib: pip install matplotlib, or leave picture= out") from error


def draw(rows: Sequence[Row], options: PlanOptions, title: str) -> None:
    """Write `options.picture`: the first batches of every schedule on the first devices, from empty devices."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    shown = [row for row in rows if row.schedule]
    serial = sum(b.times.total for blocks in shown[0].division for b in blocks)
    until = 2.05 * serial if options.stages <= MOST_LANES else 20 * serial / options.stages
    lanes = min(options.stages, MOST_LANES)
    panels = [_panel(row, options, until) for row in shown]
    with rc_context({"svg.hashsalt": "locallearn", "font.size": 8, "hatch.linewidth": 0.5}):
        each = 0.42 + max(0.17 * lanes, 0.4)
        figure = Figure(figsize=(WIDTH, each * len(panels) + 1.0), layout="constrained")
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axis, panel in zip(axes, panels, strict=True):
            _lanes(axis, panel, lanes, until * 1e3)
        axes[-1].set_xlabel("milliseconds")
        limits = f"; drawn: the first {lanes} of {options.stages} devices" if lanes < options.stages else ""
        figure.suptitle(f"{title}{limits}")
        names = {"forward": "forward", "backward": "backward, loss and optimizer"}
        legend = [Patch(color=COLOURS[kind][0], label=name) for kind, name in names.items()]
        legend.append(Patch(color="white", label="numbers: batch; shades: even and odd"))
        figure.legend(handles=legend, loc="outside lower center", ncols=3)
        path = Path(options.picture)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
        except OSError as error:
            raise UserError(f"picture={path} cannot be written: {error.strerror or error}") from error


def _panel(row: Row, options: PlanOptions, until: float) -> Panel:
    devices = stages(row.division, row.micro_batches, options.bandwidth * GB, options.latency * 1e-6)
    period, first = row.prediction.step_seconds, float(devices.forward[0])
    if row.schedule in ("none", "delayed"):  # the first device is faster while the pipeline fills
        period = min(period, first if row.schedule == "delayed" else first + float(devices.backward[0]))
    batches = min(math.ceil(until / period) + 2, MOST_BATCHES)
    pieces = simulate(row.schedule, devices, row.micro_batches, batches, keep=MOST_LANES).pieces
    got = row.prediction
    title = f"{row.label}, {row.strategy}{' *' if row.own else ''}: {short(got.step_seconds * 1e3)} ms per batch, "
    title += f"{got.bubble:.0%} bubble, {row.speed_up:.2f} times one device"
    return Panel(title, [p for p in pieces if p.start < until], row.micro_batches)


def _lanes(axis: Axes, panel: Panel, lanes: int, until: float) -> None:
    """Draw one schedule; `until` in milliseconds. A number stands where it fits."""
    for device in range(lanes):
        for kind, colours in COLOURS.items():
            for odd, colour in enumerate(colours):
                boxes = [
                    (p.start * 1e3, (p.end - p.start) * 1e3)
                    for p in panel.pieces
                    if (p.device, p.kind, p.item // panel.parts % 2) == (device, kind, odd)
                ]
                axis.broken_barh(boxes, (device - 0.42, 0.84), color=colour, edgecolor="white", linewidth=0.4)
    for piece in panel.pieces:
        batch = piece.item // panel.parts
        start, end = piece.start * 1e3, min(piece.end * 1e3, until)
        label = str(batch + 1)
        if (end - start) / until * 0.93 * WIDTH > 0.03 + 0.065 * len(label):  # inches
            colour = "white" if piece.kind == FORWARD and batch % 2 == 0 else "black"
            text = axis.text((start + end) / 2, piece.device + 0.04, label, color=colour, fontsize=6.5)
            text.set(ha="center", va="center", in_layout=False)
    axis.set(xlim=(0, until), ylim=(lanes - 0.5, -0.5), yticks=range(lanes))
    axis.set_title(panel.title, loc="left")
    axis.set_ylabel("device")
    axis.tick_params(length=2)
    axis.spines[["top", "right"]].set_visible(False)
