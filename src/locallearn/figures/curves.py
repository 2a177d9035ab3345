"""Numbers of rows as lines: over epochs for each layer, or over depth for some epochs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from locallearn.figures.style import by_depth, epoch_axis, spaced

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows: TypeAlias = Sequence[Mapping[str, Any]]
"""Each with `epoch`, and `layer` or `block` (a number from the input upward), mostly a `name`, and numbers."""
LOOKS = 6


def series(rows: Rows, key: str) -> Iterator[tuple[str, str, list[int], list[float]]]:
    """For each layer, or else block, that has a number of this key, from the input upward: its name, its colour (dark
    at the input), the epochs at which the number was taken, and its values."""
    place = "layer" if any("layer" in row for row in rows if key in row) else "block"
    of: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        if place in row and isinstance(row.get(key), int | float):
            of.setdefault(int(row[place]), []).append(row)
    colours = by_depth(1 + max(of, default=0))
    for i, own in sorted(of.items()):
        name = str(own[0].get("name", f"{place} {i}"))
        yield name, colours[i], [int(row["epoch"]) for row in own], [float(row[key]) for row in own]


def over_epochs(axes: Axes, rows: Rows, key: str, style: str = "-", labelled: bool = True) -> None:
    """Draw a number over epochs, one line for each layer or block. Of more than 16 the first and the last are named."""
    lines = list(series(rows, key))
    for k, (name, colour, epochs, values) in enumerate(lines):
        named = labelled and (len(lines) <= 16 or k in (0, len(lines) - 1))
        marker = "." if len(epochs) < 3 else None
        axes.plot(epochs, values, style, color=colour, marker=marker, label=name if named else None)
    epoch_axis(axes, (row["epoch"] for row in rows))


def over_depth(axes: Axes, rows: Rows, key: str) -> None:
    """Draw a number over the layers, one line for each of at most six epochs."""
    epochs = spaced(sorted({int(row["epoch"]) for row in rows}), LOOKS)
    for epoch, colour in zip(epochs, by_depth(len(epochs)), strict=True):
        of = [row for row in rows if row["epoch"] == epoch and isinstance(row.get(key), int | float)]
        axes.plot([row["layer"] for row in of], [row[key] for row in of], "o-", ms=3, color=colour, label=str(epoch))
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("layer (unit)")
