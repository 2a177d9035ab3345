"""What the pictures of probes share: one line per layer or block over epochs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from locallearn.figures import by_depth, epoch_axis
from locallearn.probes.base import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def series(rows: Sequence[Row], place: str, key: str) -> Iterator[tuple[int, str, list[int], list[float]]]:
    """For each layer or block (`place`) from the input upward: its number and name, the epochs at which `key` was
    measured, and what it was."""
    for i in sorted({int(row[place] or 0) for row in rows if place in row}):
        own = [row for row in rows if row.get(place) == i and isinstance(row.get(key), int | float)]
        if own:
            name = str(own[0].get("name", f"{place} {i}"))
            yield i, name, [int(row["epoch"] or 0) for row in own], [float(row[key] or 0) for row in own]


def lines(axes: Axes, rows: Sequence[Row], place: str, key: str, style: str = "-", labelled: bool = True) -> None:
    """Draw `key` over epochs, one line per layer or block (`place`), dark at the input."""
    found = list(series(rows, place, key))
    colours = by_depth(1 + max((i for i, *_ in found), default=0))
    for i, name, epochs, values in found:
        marker = "." if len(epochs) < 3 else None
        axes.plot(epochs, values, style, color=colours[i], marker=marker, label=name if labelled else None)
    epoch_axis(axes, (row["epoch"] for row in rows))
