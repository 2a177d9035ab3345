"""Tables on a terminal of any width."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

from locallearn.figures.text import parts

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
    for columns in (list(zip(*table, strict=True)) for table in tables):
        for part in parts([_least(column) for column in columns], width - 2, again=1, gap=3):
            grid = Grid(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
            for k in part:
                justify: Literal["left", "right"] = "right" if k else "left"
                grid.add_column(columns[k][0], justify=justify, overflow="fold", min_width=_least(columns[k]))
            for row in zip(*(columns[k][1:] for k in part), strict=True):
                grid.add_row(*row)
            screen.print(grid)
    return "\n".join(line.rstrip() for line in text.getvalue().strip("\n").splitlines()) + "\n"


def _least(column: Sequence[str]) -> int:
    """Characters in a line of a column, at least."""
    return min(WHOLE, max(map(len, column)))
