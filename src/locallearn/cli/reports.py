"""The commands `report` and `compare`: read, show, and with `--to` write."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from locallearn.cli.arguments import Parser, path
from locallearn.errors import UserError, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from locallearn.report.study import Study

WIDE = 160
"""Columns of text that goes to a file."""


def show(folders: Sequence[Path]) -> Study:
    """Print what the runs in these folders say together. Raises UserError if there is none."""
    from locallearn.report import read, study, tables

    found = study(read(folders))
    _print(tables.terminal(found, _width()))
    return found


def report(parser: Parser, arguments: list[str]) -> int:
    """`locallearn report FOLDER... [--to DIR]`"""
    parser.add_argument(
        "folders", nargs="+", type=path, metavar="FOLDER", help="folders with runs in them, at any depth"
    )
    parser.add_argument("--to", type=path, metavar="DIR", help="write Markdown, CSV, LaTeX, HTML and pictures here")
    options = parser.read(arguments)
    found = show(options.folders)
    if options.to is None:
        return 0
    from locallearn.report import tables
    from locallearn.report.figures import draw
    from locallearn.report.html import page

    figures = draw(found)
    texts = {
        "report.md": tables.markdown(found, [f"{name}.svg" for name in figures]),
        "report.csv": tables.as_csv(found),
        "report.tex": tables.latex_document("report-table"),
        "report-table.tex": tables.latex(found),
        "report.html": page(found),
    }
    _write(options.to, texts, figures)
    return 0


def compare(parser: Parser, arguments: list[str]) -> int:
    """`locallearn compare RUN RUN... [--to DIR]`"""
    parser.add_argument("runs", nargs="+", type=path, metavar="RUN", help="the folders of two runs or more")
    parser.add_argument("--to", type=path, metavar="DIR", help="write the text and the pictures of the curves here")
    options = parser.read(arguments)
    from locallearn.report import compare as comparing
    from locallearn.runs.read import one

    if len(options.runs) < 2:
        raise UserError("compare: one run alone has nothing to be compared with: locallearn compare RUN RUN...")
    found = comparing.compare([one(run) for run in options.runs])
    _print(comparing.terminal(found, _width()))
    if options.to is not None:
        _write(options.to, {"compare.txt": comparing.terminal(found, WIDE) + "\n"}, comparing.draw(found))
    return 0


def _write(folder: Path, texts: Mapping[str, str], figures: Mapping[str, Figure]) -> None:
    """Write everything, and print what was written. Raises UserError if the folder cannot be written."""
    from locallearn.figures import save

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        pictures = [file for name, figure in figures.items() for file in save(figure, folder / name)]
    except OSError as error:
        reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"cannot write into {folder}: {reason}; choose another folder: --to DIR") from None
    for file in (*(folder / name for name in texts), *pictures):
        _print(str(file))


def _width() -> int:
    """Columns of the terminal; a file is as wide as it needs to be."""
    return max(60, shutil.get_terminal_size().columns) if sys.stdout.isatty() else WIDE


def _print(text: str) -> None:
    """Print, also where the terminal is not UTF-8."""
    text = printable(text)
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.replace("±", "+-").encode(encoding, "replace").decode(encoding)
    print(text)
