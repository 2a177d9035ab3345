"""Text that fits the terminal: what does not is continued below the column that it began in."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Sequence

NARROWEST = 60


def columns() -> int | None:
    """Columns of the terminal; None if nobody looks, as in a pipe, where a line stays a line."""
    return max(NARROWEST, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None


def fitted(text: str, width: int | None) -> str:
    """`text` with lines of at most `width` columns, unless a word alone is longer."""
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
    rows: Sequence[Sequence[str]], width: int | None = None, left: Sequence[int] = (0,), again: int = 1, gap: int = 2
) -> str:
    """Columns as wide as their widest cell; numbers to the right, the columns in `left` to the left. What `width` has
    no room for goes on below, behind the first `again` columns."""
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str], part: Sequence[int]) -> str:
        cells = (row[k].ljust(wide[k]) if k in left else row[k].rjust(wide[k]) for k in part)
        return (" " * gap).join(cells).rstrip()

    return "\n\n".join("\n".join(line(row, part) for row in rows) for part in parts(wide, width, again, gap))


def parts(wide: Sequence[int], width: int | None, again: int, gap: int) -> list[list[int]]:
    """Which columns, of so many characters, stand beside each other; the first `again` in every part."""
    first = list(range(again))
    found = [first[:]]
    for k in range(again, len(wide)):
        if width and len(found[-1]) > again and sum(wide[i] + gap for i in found[-1]) + wide[k] > width:
            found.append(first[:])
        found[-1].append(k)
    return found
