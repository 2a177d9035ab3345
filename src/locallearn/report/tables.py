"""A report as text: for the terminal, as Markdown, CSV and LaTeX. All show the same cells; CSV has every number."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from locallearn.figures.text import table
from locallearn.report.cells import results
from locallearn.report.grouped import GroupedRuns
from locallearn.runs.read import STATES

LATEX_ROWS = 40  # of one tabular, which does not break over pages
LATEX_LABEL = 60  # characters; longer ones are broken into lines
NOTES = {
    "vs backprop": "vs backprop: mean difference to the same seeds of backprop, and its 95 % Student t interval",
    "memory": "memory: the peak, allocated on a GPU, resident in the process on a CPU",
    "FLOPs": "FLOPs: forward pass of one sample through the model; aux FLOPs: through what only trains it, if known",
    "aux %": "aux %: parameters of auxiliary networks, in percent of the model's",
}
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""What begins so is computed by a spreadsheet that opens a CSV."""


def rows_of(grouped: GroupedRuns) -> list[list[str]]:
    """The head, then a row for each group."""
    return results(grouped).brief()


def summary(grouped: GroupedRuns) -> str:
    """One line: how many runs, in how many groups, and what became of them."""
    counts = Counter(run.state for run in grouped.runs)
    states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return f"{counted(len(grouped.runs), 'run')} in {counted(len(grouped.groups), 'group')}: {states}"


def counted(number: int, what: str) -> str:
    """`1 group`, `2 groups`"""
    return f"{number} {what}{'' if number == 1 else 's'}"


def notes(grouped: GroupedRuns) -> list[str]:
    """What the heads of the table mean, as far as it has them, and whom groups are compared with."""
    heads = rows_of(grouped)[0]
    sentences = [text for head, text in NOTES.items() if head in heads]
    sentences += dict.fromkeys(group.published.note for group in grouped.groups if group.published)
    if len({group.baseline for group in grouped.groups if group.baseline}) > 1:
        sentences.append("each group is compared with the backprop group of the same task, closest in its settings")
    return sentences


def unfinished(grouped: GroupedRuns) -> list[str]:
    """A line for each run that is not done, with its reason."""
    return [f"{run.state}: {run.path}: {run.reason or 'no reason is recorded'}" for run in grouped.unfinished]


def terminal(grouped: GroupedRuns, width: int) -> str:
    """The report as text of at most `width` columns."""
    lines = [*notes(grouped), *unfinished(grouped), *(f"note: {problem}" for problem in grouped.problems)]
    rows = [table(rows_of(grouped), width, rule=True), ""] if grouped.groups else []
    return "\n".join([summary(grouped), "", *rows, *lines])


def markdown(grouped: GroupedRuns, pictures: Sequence[str] = ()) -> str:
    """The report as a page; `pictures` are names of files beside it."""
    head, *rows = rows_of(grouped)
    lines = ["# Report\n", f"{summary(grouped)}.\n", _markdown_row(head)]
    lines.append("|" + "|".join([" :--- ", *[" ---: "] * (len(head) - 1)]) + "|")
    lines += [_markdown_row(row) for row in rows]
    lines += ["", *(f"- {_plain(note)}" for note in notes(grouped))]
    lines += [f"\n![{name}]({name})" for name in pictures]
    sections = {
        "Not done": [_plain(line) for line in unfinished(grouped)],
        "Notes": [_plain(problem) for problem in grouped.problems],
        "The same in all runs": [f"{_code(key)}: {_code(value)}" for key, value in grouped.common.items()],
        "To repeat": [f"{_plain(group.label)}: {_code(group.drawn[0].repeat)}" for group in grouped.groups],
    }
    for name, entries in sections.items():
        if entries:
            lines += [f"\n## {name}\n", *(f"- {entry}" for entry in entries)]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_plain, cells)) + " |"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\|*<>`\[\]])", r"\\\1", " ".join(text.split()))


def _code(value: object) -> str:
    """A value as Markdown shows it letter by letter: between more backticks than it holds."""
    text = " ".join(str(value).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    room = " " if "`" in text or not text else ""
    return f"{fence}{room}{text}{room}{fence}"


def as_csv(grouped: GroupedRuns) -> str:
    """A line for each group and metric, with every digit; the settings that differ are columns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = ("n", "mean", "std", "best", "difference", "ci_low", "ci_high", "pairs")
    writer.writerow(["group", *map(_cell, grouped.differs), "runs", "baseline", "metric", *numbers, "seeds", "values"])
    for group in grouped.groups:
        settings = [_cell(group.settings.get(key, "")) for key in grouped.differs]
        for metric in grouped.metrics:
            if (number := group.numbers.get(metric)) is None:
                continue
            each = [" ".join(map(str, column)) for column in (number.seeds, number.values)]
            writer.writerow(
                [_cell(group.label), *settings, len(group.runs), _cell(group.baseline or ""), _cell(metric)]
                + ["" if (value := getattr(number, name)) is None else value for name in numbers]
                + each
            )
    return text.getvalue()


def _cell(value: object) -> object:
    """A value of a run folder, which no spreadsheet may take for a formula; a number stays one."""
    if value is None or isinstance(value, int | float):
        return value
    text = re.sub(r"[\r\n]+", " ", str(value)).strip()  # a line of its own would be a row of its own
    return f"'{text}" if text.startswith(FORMULA) else text


def latex(grouped: GroupedRuns) -> str:
    """The table as plain tabulars, to \\input into an article."""
    head, *rows = rows_of(grouped)
    first = "l" if max((len(row[0]) for row in rows), default=0) <= LATEX_LABEL else "p{10cm}"
    parts = []
    for start in range(0, max(1, len(rows)), LATEX_ROWS):
        lines = [f"\\begin{{tabular}}{{{first}{'r' * (len(head) - 1)}}}", "\\hline", _latex_row(head), "\\hline"]
        lines += [_latex_row(row) for row in rows[start : start + LATEX_ROWS]]
        parts.append("\n".join([*lines, "\\hline", "\\end{tabular}"]))
    return "\n\n".join([f"% {' '.join(summary(grouped).split())}; made by locallearn report", *parts]) + "\n"


def latex_document(table_file: str) -> str:
    """A document that shows the table in `table_file`."""
    return (
        "\\documentclass[a4paper,landscape]{article}\n\\oddsidemargin=-1in\\textwidth=28cm\\topmargin=-1in"
        "\\textheight=18cm\\parindent=0pt\n\\pagestyle{empty}\n\\begin{document}\n\\footnotesize\\tabcolsep=3pt\n"
        f"\\input{{{table_file}}}\n\\end{{document}}\n"
    )


_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": "$\\backslash$",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    '"': "''",
    "±": "$\\pm$",
}


def _latex_row(cells: Sequence[str]) -> str:
    first, *others = map(escaped, cells)
    numbers = [re.sub(r"([+-])(?=\d)", r"$\1$", cell) for cell in others]
    guard = "{}" if first[:1] in ("[", "*") else ""  # after \\ they would be read as its arguments
    return guard + " & ".join([first, *numbers]) + " \\\\"


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is; letters that an article's fonts lack become their plain ones, or `?`."""

    def plain(c: str) -> str:
        if c.isascii() or c in _LATEX:
            return c if c.isprintable() else " "
        return unicodedata.normalize("NFKD", c).encode("ascii", "ignore").decode() or "?"

    return "".join(_LATEX.get(c, c) for c in "".join(map(plain, text)))
