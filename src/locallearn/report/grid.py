"""Tables on a terminal of any width."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

Table = list[list[str]]
WHOLE = 24  # characters of a cell that stand on one line, however narrow the terminal


def grids(tables: Sequence[Table], width: int) -> str:
    """Tables under each other, each with a head, as text of at most `width` columns. One that is wider goes on below,
    behind its first column again; only what is longer than `WHOLE` is broken."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as Grid

    text = io.StringIO()
    screen = Console(file=text, width=width, markup=False, highlight=False, emoji=False, no_color=True)
    for part in (part for table in tables for part in _parts(table, width)):
        grid = Grid(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
        for k, column in enumerate(zip(*part, strict=True)):
            justify: Literal["left", "right"] = "right" if k else "left"
            grid.add_column(column[0], justify=justify, overflow="fold", min_width=_least(column))
        for row in part[1:]:
            grid.add_row(*row)
        screen.print(grid)
    return "\n".join(line.rstrip() for line in text.getvalue().strip("\n").splitlines()) + "\n"


def _parts(table: Table, width: int) -> list[Table]:
    """The columns of a table in as many tables as `width` asks for, each with the first column."""
    first, *others = zip(*table, strict=True)
    room = width - 2 - _least(first)
    parts: list[list[tuple[str, ...]]] = [[first]]
    left = room
    for column in others:
        left -= 3 + _least(column)  # with what stands between two columns
        if left < 0 and len(parts[-1]) > 1:
            parts.append([first])
            left = room - 3 - _least(column)
        parts[-1].append(column)
    return [[list(row) for row in zip(*part, strict=True)] for part in parts]


def _least(column: Sequence[str]) -> int:
    """Characters in a line of a column, at least."""
    return min(WHOLE, max(map(len, column)))
