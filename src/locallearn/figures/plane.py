"""The information plane: the path of each layer while it learns, averaged over seeds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, TypeAlias

from locallearn.figures.style import by_depth, epoch_axis, panels, spaced

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row: TypeAlias = Mapping[str, float | int | str | None]
Path: TypeAlias = dict[int, dict[str, float]]
"""Of a layer: its numbers by epoch."""

NUMBERS = ("i_x_t", "i_t_y", "i_x_t_lower", "i_x_t_upper", "i_t_y_lower", "i_t_y_upper")
X, Y = "I(X;T) [bits]", "I(T;Y) [bits]"
BARS = 6
"""The points of a path that have bars for their bounds; more would hide it."""


def plane(seeds: Sequence[Sequence[Row]]) -> Figure:
    """The plane (one line per layer, coloured by epoch; bars where there are bounds) and I(X;T) against the
    epoch (bounds as a band), as means over seeds. Where rows have `h_y`, in grey, the best that is possible where the
    label is a function of the input.

    seeds  for each seed, rows with `epoch`, `layer`, `i_x_t`, `i_t_y` and, of bounds, `i_x_t_lower`, ...; all in bits.
           Only epochs that every seed has are drawn
    """
    layers = {layer: _mean(seeds, layer) for layer in sorted({int(r["layer"] or 0) for rows in seeds for r in rows})}
    figure, (left, right) = panels(2, 1, width=3.8, height=3.0)
    _paths(
        figure, left, layers, next((h for rows in seeds for r in rows if isinstance(h := r.get("h_y"), float)), None)
    )
    epochs = [e for path in layers.values() for e in path]
    for colour, (layer, path) in zip(by_depth(len(layers)), layers.items(), strict=True):
        _against_epoch(right, path, colour, f"layer {layer}")
    epoch_axis(right, epochs)
    right.set_ylabel(X)
    right.set_ylim(0, 1.02 * right.get_ylim()[1])
    right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=1 + len(layers) // 20)
    return figure


def _mean(seeds: Sequence[Sequence[Row]], layer: int) -> Path:
    """The mean over seeds of every number that all of them have for a layer, by epoch."""
    by_seed = [{int(r["epoch"] or 0): r for r in rows if r["layer"] == layer} for rows in seeds]
    path: Path = {}
    for epoch in sorted(set.intersection(*map(set, by_seed))):
        values = {name: [rows[epoch].get(name) for rows in by_seed] for name in NUMBERS}
        path[epoch] = {name: fmean(of) for name, of in values.items() if None not in of}  # type: ignore[arg-type]
    return path


def _paths(figure: Figure, axes: Axes, layers: Mapping[int, Path], h_y: float | None) -> None:
    """The plane itself, with its colour bar; the number of each layer stands at its end."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize, SymLogNorm, to_hex

    last = max((e for path in layers.values() for e in path), default=0)
    norm = SymLogNorm(1, vmin=0, vmax=last) if last > 20 else Normalize(0, max(1, last))
    colours = ScalarMappable(norm, "plasma")
    ends: dict[int, tuple[float, float]] = {}
    for layer, path in layers.items():
        points = [(e, n["i_x_t"], n["i_t_y"]) for e, n in path.items() if "i_x_t" in n and "i_t_y" in n]
        if not points:
            continue
        lines = LineCollection(
            [[a[1:], b[1:]] for a, b in itertools.pairwise(points)], cmap="plasma", norm=norm, linewidths=1.0
        )
        lines.set_array([e for e, *_ in points[1:]])
        axes.add_collection(lines)
        epochs, x, y = zip(*points, strict=True)
        axes.scatter(x, y, s=7, c=epochs, cmap="plasma", norm=norm)
        for epoch in spaced(epochs, BARS):
            _bars(axes, path[epoch], to_hex(colours.cmap(norm(epoch))))
        ends[layer] = (x[-1], y[-1])
    axes.autoscale_view()
    _best(axes, h_y)
    axes.set_xlim(min(0.0, axes.get_xlim()[0]), 1.05 * axes.get_xlim()[1])
    axes.set_xlabel(X)
    axes.set_ylabel(Y)
    bar = figure.colorbar(colours, ax=axes)
    bar.set_label("epoch", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.ax.yaxis.set_major_formatter("{x:g}")
    _name(axes, ends)


def _best(axes: Axes, h_y: float | None) -> None:
    """The information bottleneck's curve where the label is a function of the input, min(I(X;T), H(Y)), in grey. Its
    foot does not stretch the axis, on which paths that all lie near H(Y) would become one line."""
    if h_y is not None:
        right, (bottom, top) = axes.get_xlim()[1], axes.get_ylim()
        axes.plot([0, min(h_y, right), right], [0, min(h_y, right), min(h_y, right)], color="#bbbbbb", lw=0.8, zorder=0)
        axes.set_ylim(bottom, max(top, h_y + 0.05 * (top - bottom)))


def _name(axes: Axes, ends: Mapping[int, tuple[float, float]]) -> None:
    """The number of each layer where its path ends; those that end in one place share a text."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    places: list[tuple[tuple[float, float], list[int]]] = []
    for layer, (x, y) in ends.items():
        for (other_x, other_y), names in places:
            if abs(x - other_x) < 0.12 * (right - left) and abs(y - other_y) < 0.06 * (top - bottom):
                names.append(layer)
                break
        else:
            places.append(((x, y), [layer]))
    for place, names in places:
        label = ", ".join(map(str, names)) if len(names) < 4 else f"{names[0]} ... {names[-1]}"
        side = ("right", -4) if place[0] > left + 0.8 * (right - left) else ("left", 4)
        axes.annotate(
            label, place, xytext=(side[1], 4), textcoords="offset points", ha=side[0], fontsize=7, weight="bold"
        )


def _bars(axes: Axes, numbers: Mapping[str, float], colour: str) -> None:
    """From the lower to the upper bound of a point."""
    for name, other, horizontal in (("i_x_t", "i_t_y", True), ("i_t_y", "i_x_t", False)):
        ends = [numbers.get(f"{name}_{end}") for end in ("lower", "upper")]
        if None in ends:
            continue
        across = [numbers[other]] * 2
        axes.plot(*((ends, across) if horizontal else (across, ends)), color=colour, alpha=0.35, linewidth=0.7)


def _against_epoch(axes: Axes, path: Path, colour: str, label: str) -> None:
    points = [(e, n) for e, n in path.items() if "i_x_t" in n]
    axes.plot([e for e, _ in points], [n["i_x_t"] for _, n in points], color=colour, label=label)
    band = [(e, n["i_x_t_lower"], n["i_x_t_upper"]) for e, n in points if "i_x_t_lower" in n and "i_x_t_upper" in n]
    if band:
        epochs, lower, upper = zip(*band, strict=True)
        axes.fill_between(epochs, lower, upper, color=colour, alpha=0.15, linewidth=0)
