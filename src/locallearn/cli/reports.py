"""The commands `report` and `compare`: read, show, and with `--to` write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from locallearn.cli.arguments import Parser, path
from locallearn.errors import UserError
from locallearn.figures.text import columns, put

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from locallearn.report.grouped import GroupedRuns

WIDE = 160
"""Columns of text that goes to a file."""


def show(folders: Sequence[Path]) -> GroupedRuns:
    """Print what the runs in these folders say together. Raises UserError if there is none."""
    from locallearn.report import grouped, read, tables

    result = grouped(read(folders))
    put(tables.terminal(result, columns() or WIDE))
    return result


def report(arguments: list[str]) -> int:
    """`locallearn report FOLDER... [--to DIR]`"""
    parser = Parser(
        "report",
        "Summarise many runs: means over seeds, differences to backprop, and why a run is not done.",
        """\
example:
  locallearn report runs/first --to report   Markdown, CSV, LaTeX, one HTML page, pictures as SVG and PNG""",
    )
    parser.add_argument(
        "folders", nargs="+", type=path, metavar="FOLDER", help="folders with runs in them, at any depth"
    )
    parser.add_argument("--to", type=path, metavar="DIR", help="write Markdown, CSV, LaTeX, HTML and pictures here")
    options = parser.read(arguments)
    result = show(options.folders)
    if options.to is None:
        return 0
    from locallearn.report import tables
    from locallearn.report.figures import draw
    from locallearn.report.html import page

    figures = draw(result)
    texts = {
        "report.md": tables.markdown(result, [f"{name}.svg" for name in figures]),
        "report.csv": tables.as_csv(result),
        "report.tex": tables.latex_document("report-table"),
        "report-table.tex": tables.latex(result),
        "report.html": page(result),
    }
    write(options.to, texts, figures)
    return 0


def compare(arguments: list[str]) -> int:
    """`locallearn compare RUN RUN... [--to DIR]`"""
    parser = Parser(
        "compare",
        "What differs between runs: their settings, machines, final numbers and curves, in columns side by side.",
        "example:\n  locallearn compare runs/first/RUN runs/first/RUN2",
    )
    parser.add_argument("runs", nargs="+", type=path, metavar="RUN", help="the folders of two runs or more")
    parser.add_argument("--to", type=path, metavar="DIR", help="write the text and the pictures of the curves here")
    options = parser.read(arguments)
    from locallearn.report import compare as comparing
    from locallearn.runs.read import one

    if len(options.runs) < 2:
        raise UserError("compare needs at least two runs: locallearn compare RUN RUN...")
    comparison = comparing.compare([one(run) for run in options.runs])
    put(comparing.terminal(comparison, columns() or WIDE))
    if options.to is not None:
        write(options.to, {"compare.txt": comparing.terminal(comparison, WIDE) + "\n"}, comparing.draw(comparison))
    return 0


def write(folder: Path, texts: Mapping[str, str], figures: Mapping[str, Figure]) -> None:
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
        put(str(file))
