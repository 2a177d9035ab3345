"""Text that fits the terminal: what does not is continued below the column that it began in."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap

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
