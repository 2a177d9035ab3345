"""Text for the terminal: lines and tables that fit it, without control characters from the files of strangers."""

from __future__ import annotations

import io
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from locallearn.errors import printable

NARROWEST = 60
WHOLE = 24  # characters of a cell that stand on one line, however narrow the terminal
_IN_ASCII = {"±": "+-", "×": "x", "−": "-", "─": "-"}


def columns() -> int | None:
    """Columns of the terminal; None where the output is not one, such as a pipe, for which no line is broken."""
    return max(NARROWEST, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None


def put(text: str) -> None:
    """Print at once, also where the terminal is not UTF-8."""
    text = printable(text)
    try:
        print(text, flush=True)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding
        text = re.sub("[±×−─]", lambda match: _IN_ASCII[match[0]], text)
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def fitted(text: str, width: int | None) -> str:
    """`text` with lines of at most `width` columns, unless a word alone is longer. What has no room goes on below the
    column that it began in."""
    return text if width is None else "\n".join(_line(line, width) for line in text.splitlines())


def _line(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    column = re.match(r"\s*(?:\S.*?(?:\s{2,}|\s#\s+)|\w+:\s+)?", line)
    indent = column.end() if column and column.end() < width * 2 // 3 else 4
    return textwrap.fill(
        line, width, subsequent_indent=" " * indent, break_on_hyphens=False, drop_whitespace=True,
        replace_whitespace=False, break_long_words=False,
    )  # fmt: skip


def table(
    rows: Sequence[Sequence[str]],
    width: int | None = None,
    left: Sequence[int] = (0,),
    again: int = 1,
    rule: bool = False,
) -> str:
    """A head and its rows as text of at most `width` columns. What has no room goes on below, behind the first `again`
    columns, and only a cell of more than `WHOLE` characters is broken into lines. The columns in `left` are aligned to
    the left, the others, numbers, to the right; a `rule` stands below the head.
    """
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table

    cells = list(zip(*rows, strict=True))
    wide = [max(map(cell_len, column)) for column in cells]
    least = wide if width is None else [min(WHOLE, own) for own in wide]
    gap, edge = (3, 2) if rule else (2, 0)
    texts = []
    for part in _parts(least, None if width is None else width - edge, again, gap):
        needed = sum(least[k] + gap for k in part) - gap + edge
        grid = Table(box=SIMPLE_HEAD if rule else None, padding=(0, 1) if rule else (0, 2, 0, 0), pad_edge=False)
        for k in part:
            grid.add_column(cells[k][0], justify="left" if k in left else "right", overflow="fold", min_width=least[k])
        for row in rows[1:]:
            grid.add_row(*(row[k] for k in part))
        text = io.StringIO()
        plain: Any = {"markup": False, "highlight": False, "emoji": False, "color_system": None, "force_jupyter": False}
        Console(file=text, width=max(needed, width or 0), **plain).print(grid)
        texts.append("\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip()))
    return "\n\n".join(texts)


def _parts(wide: Sequence[int], width: int | None, again: int, gap: int) -> list[list[int]]:
    """Which columns, of so many characters, stand beside each other; the first `again` in every part."""
    first = list(range(min(again, len(wide))))
    parts = [first[:]]
    for k in range(again, len(wide)):
        if width and len(parts[-1]) > again and sum(wide[i] + gap for i in parts[-1]) + wide[k] > width:
            parts.append(first[:])
        parts[-1].append(k)
    return parts
