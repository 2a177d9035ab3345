"""How every picture looks. Figures are made without pyplot: no global state, no window, any thread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from torch import Tensor

T = TypeVar("T")
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#000000")  # Okabe-Ito
_STRATEGIES = {
    "backprop": COLOURS[7], "deep_supervision": COLOURS[4], "pgi": COLOURS[3], "dgl": COLOURS[0], "greedy": COLOURS[6],
    "loco": COLOURS[2], "cdni": COLOURS[1], "dni": COLOURS[5], "fa": "#8C564B", "dfa": "#6A3D9A", "infomax": "#B2DF8A",
    "shallow": "#C0C0C0", "checkpoint": "#5A5A5A", "usf": "#17BECF", "brsf": "#9C9E1C", "frsf": "#843C39",
    "pgi_causal": "#F781BF", "drtp": "#B15928", "sdfa": "#CAB2D6", "forward_forward": "#1F4E79",
    "mono_forward": "#33A02C", "cafo": "#FB9A99", "pepita": "#A65628", "predictive_coding": "#66A61E",
    "fw_dtp": "#E7298A", "counter_current": "#7570B3", "forward_gradient": "#A6761D", "dtp": "#F4A6C8",
    "sigprop": "#4D9221", "petra": "#1B9E77", "noprop": "#D95F02", "diffusion_blocks": "#E6AB02",
    "dual_propagation": "#1F78B4", "equilibrium": "#E31A1C",
}  # fmt: skip
LONG = 50
"""From this many epochs on, an axis of epochs is logarithmic."""
CELL = 0.75
"""Inches of the side of one map or image among many."""
TEXT, LEGEND = 8, 7
"""Points of text, at most."""
_STYLE: Any = {  # matplotlib types this as a mapping of its 300 keys
    "font.size": TEXT,
    "axes.prop_cycle": f"cycler('color', {list(COLOURS)})",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "svg.fonttype": "none",  # text stays text: smaller, searchable
    "svg.hashsalt": "locallearn",  # the same picture is the same file
}


def panels(columns: int = 1, rows: int = 1, width: float = 3.2, height: float = 2.6) -> tuple[Figure, list[Axes]]:
    """A figure of `columns` x `rows` panels of `width` x `height` inches each, and its axes, row by row."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def save(figure: Figure, path: Path) -> list[Path]:
    """Write `path`.svg and `path`.png (200 dots per inch); returns both."""
    import matplotlib
    from matplotlib.legend import Legend
    from matplotlib.text import Text

    path.parent.mkdir(parents=True, exist_ok=True)
    for artist in figure.findobj(Text):  # titles and legends are made after `panels`, outside of the style
        artist.set_fontsize(min(artist.get_fontsize(), TEXT))
    for legend in figure.findobj(Legend):
        legend.set_frame_on(False)
        for artist in legend.findobj(Text):
            artist.set_fontsize(min(artist.get_fontsize(), LEGEND))
    files = [path.with_name(f"{path.name}.{ending}") for ending in ("svg", "png")]
    with matplotlib.rc_context(_STYLE):
        figure.savefig(files[0], metadata={"Date": None})
        figure.savefig(files[1], dpi=200, metadata={"Software": None})
    return files


def spaced(values: Sequence[T], most: int) -> list[T]:
    """At most `most` of the values, evenly spaced from the first to the last."""
    if len(values) <= most:
        return list(values)
    return [values[round(k * (len(values) - 1) / (most - 1))] for k in range(most)]


def by_depth(count: int) -> list[str]:
    """A colour for each of `count` layers, from the input (dark) upward (light)."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    scale = colormaps["viridis"]
    return [to_hex(scale(0.9 * k / max(1, count - 1))) for k in range(count)]


def name_layers(axis: Axis, names: Sequence[str]) -> None:
    """Name the places 0, 1, ... of an axis of layers; of more than 16 only every second, third, ..."""
    from matplotlib.axis import XAxis

    stride = 1 + (len(names) - 1) // 16
    long = isinstance(axis, XAxis) and max(map(len, names[::stride]), default=0) * len(names[::stride]) > 30
    axis.set_ticks(range(0, len(names), stride), list(names[::stride]), rotation=90 if long else 0)


def epoch_axis(axes: Axes, epochs: Iterable[Any]) -> None:
    """Name the epochs below: from 0, on a logarithmic axis where there are many."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    last = max([1, *map(int, epochs)])
    if last >= LONG:
        axes.set_xscale("symlog", linthresh=1)  # with a place for epoch 0
        axes.set_xlim(0, last * 1.05)
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def percent(axis: Axis) -> None:
    """Write shares from 0 to 1 as percentages."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1))


def bare(axes: Axes, title: str = "", label: str = "") -> None:
    """Take ticks, grid and frame from a picture."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=7)
    axes.set_ylabel(label, fontsize=7, rotation=0, ha="right", va="center")


def show(axes: Axes, image: Tensor) -> None:
    """An image [C, H, W] from 0 to 1, three channels in colour, others as their mean in grey; or a map [H, W]."""
    if image.dim() == 2:
        axes.imshow(image.numpy(), cmap="viridis", interpolation="nearest", aspect="auto")
        axes.set_box_aspect(1)
    elif len(image) == 3:
        axes.imshow(image.clamp(0, 1).permute(1, 2, 0).float().numpy(), interpolation="nearest")
    else:
        axes.imshow(image.float().mean(0).numpy(), cmap="gray", interpolation="nearest", vmin=0, vmax=1)


def gallery(lines: Sequence[tuple[str, Sequence[tuple[str, Tensor]]]]) -> Figure:
    """Images and maps, each with its title, in lines, each with its label on the left."""
    columns = max(len(images) for _, images in lines)
    figure, axes = panels(columns, len(lines), CELL, CELL)
    for axis in axes:
        bare(axis)
    for k, (label, images) in enumerate(lines):
        for i, (title, image) in enumerate(images):
            show(axes[k * columns + i], image)
            bare(axes[k * columns + i], title, "" if i else label)
    return figure


def by_strategy(name: str) -> str:
    """The colour of a strategy, the same in every picture."""
    return _STRATEGIES.get(name, COLOURS[sum(name.encode()) % len(COLOURS)])
