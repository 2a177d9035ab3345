"""A study as text: for the terminal, as Markdown, CSV and LaTeX. All show the same cells; CSV has every number."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from locallearn.figures import text as terminal_text
from locallearn.report.numbers import Number
from locallearn.report.study import Group, Study
from locallearn.runs.read import STATES

SHARES = ("accuracy", "_share")  # endings of metrics that are shown in percent
LATEX_ROWS = 40  # of one tabular, which does not break over pages
LATEX_LABEL = 60  # characters; longer ones are broken into lines
NOTES = {
    "vs backprop": "vs backprop: mean difference to the same seeds of backprop, and its 95 % Student t interval",
    "memory": "memory: the peak, allocated on a GPU, resident in the process on a CPU",
    "FLOPs": "FLOPs: forward pass of one image through the model; aux FLOPs: through what only trains it, if known",
    "aux %": "aux %: parameters of auxiliary networks, in percent of the model's",
}
COSTS = {
    "seconds": "time",
    "peak_memory_bytes": "memory",
    "flops": "FLOPs",
    "auxiliary_flops": "aux FLOPs",
    "auxiliary_share": "aux %",
}
"""What a run costs, and the head of its column."""
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""What begins so is computed by a spreadsheet that opens a CSV."""


def table(study: Study) -> list[list[str]]:
    """The head, then a row for each group; a column that would be empty is left out."""
    score = study.score
    columns: list[tuple[str, Callable[[Group], str]]] = [
        ("run", lambda g: g.label),
        ("done", lambda g: f"{len(g.counted)} of {len({run.seed for run in g.runs})}"),
        (title(score), lambda g: spread(score, g.numbers.get(score))),
        ("published", lambda g: g.published.value if g.published else ""),
        ("best", lambda g: shown(score, number.best) if (number := g.numbers.get(score)) else ""),
        ("vs backprop", lambda g: difference(score, g.numbers.get(score))),
        *((head, _mean_of(name)) for name, head in COSTS.items()),
    ]
    cells = [[head, *(cell(group) for group in study.groups)] for head, cell in columns]
    full = [column for column in cells if column[0] in ("run", "done") or any(column[1:])]
    return [list(row) for row in zip(*full, strict=True)]


def _mean_of(name: str) -> Callable[[Group], str]:
    return lambda group: shown(name, group.numbers[name].mean) if name in group.numbers else ""


def title(metric: str) -> str:
    """`test/accuracy` -> `test accuracy %`"""
    words = metric.replace("/", " ").replace("_", " ")
    return f"{words} %" if metric.endswith(SHARES) else words


def spread(metric: str, number: Number | None) -> str:
    """Mean and deviation in the unit of the mean, `821 ± 35 MiB`; what a configuration decides has no deviation."""
    if number is None:
        return ""
    size, unit = _unit(metric, number.mean)
    if number.std is None or metric.endswith(("flops", "share")):
        return shown(metric, number.mean)
    if metric.endswith(SHARES):
        return f"{shown(metric, number.mean)} ± {shown(metric, number.std)}"
    if not unit:
        return f"{number.mean:.4g} ± {_digits(number.std, 2)}"
    return f"{_digits(number.mean / size, 3)} ± {_digits(number.std / size, 2)} {unit}"


def difference(metric: str, number: Number | None) -> str:
    """`-1.20 [-2.10, -0.30]`; without the interval for one pair."""
    if number is None or number.difference is None:
        return ""
    if number.ci_low is None or number.ci_high is None:
        return f"{shown(metric, number.difference, '+')} (1 pair)"
    low, high = (shown(metric, end, "+") for end in (number.ci_low, number.ci_high))
    return f"{shown(metric, number.difference, '+')} [{low}, {high}]"


def shown(metric: str, value: float | None, sign: str = "") -> str:
    """A value in the unit of its metric."""
    if value is None:
        return ""
    if metric.endswith(SHARES):
        return f"{100 * value:{sign}.2f}"
    size, unit = _unit(metric, value)
    return f"{_digits(value / size, 3)} {unit}" if unit else f"{value:{sign}.4g}"


def _unit(metric: str, value: float) -> tuple[float, str]:
    """Size and name of the unit in which a value is read best; (1, "") without one."""
    if metric.endswith("seconds"):
        return next(((size, unit) for size, unit in ((3600, "h"), (60, "min")) if value >= 2 * size), (1, "s"))
    if metric.endswith("bytes"):
        return next(((2**k, unit) for k, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")) if value >= 2**k), (1, "B"))
    if metric.endswith("flops"):
        return next(((10**k, unit) for k, unit in ((12, "T"), (9, "G"), (6, "M"), (3, "k")) if value >= 10**k), (1, ""))
    return 1, ""


def _digits(value: float, count: int) -> str:
    """That many significant digits, never as 1e+03."""
    return f"{value:.0f}" if abs(value) >= 10**count - 0.5 else f"{value:.{count}g}"


def summary(study: Study) -> str:
    """One line: how many runs, in how many groups, and what became of them."""
    counts = Counter(run.state for run in study.runs)
    states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    groups = f"{len(study.groups)} group{'s' * (len(study.groups) != 1)}"
    return f"{len(study.runs)} run{'s' * (len(study.runs) != 1)} in {groups}: {states}"


def notes(study: Study) -> list[str]:
    """What the heads of the table mean, as far as it has them, and whom groups are compared with."""
    heads = table(study)[0]
    found = [text for head, text in NOTES.items() if head in heads]
    found += dict.fromkeys(group.published.note for group in study.groups if group.published)
    several = {group.baseline for group in study.groups if group.baseline}
    if len(several) > 1:
        found.append("each group is compared with the backprop group of the same task, closest in its other settings")
    return found


def unfinished(study: Study) -> list[str]:
    """A line for each run that is not done, with its reason."""
    return [f"{run.state}: {run.path}: {run.reason or 'no reason is recorded'}" for run in study.unfinished]


def terminal(study: Study, width: int) -> str:
    """The report as text of at most `width` columns."""
    lines = [*notes(study), *unfinished(study), *(f"note: {problem}" for problem in study.problems)]
    return "\n".join(
        [summary(study), terminal_text.table(table(study), width, rule=True) if study.groups else "", *lines]
    )


def markdown(study: Study, pictures: Sequence[str] = ()) -> str:
    """The report as a page; `pictures` are names of files beside it."""
    head, *rows = table(study)
    lines = ["# Report\n", f"{summary(study)}.\n", _markdown_row(head)]
    lines.append("|" + "|".join([" :--- ", *[" ---: "] * (len(head) - 1)]) + "|")
    lines += [_markdown_row(row) for row in rows]
    lines += ["", *(f"- {_plain(note)}" for note in notes(study))]
    lines += [f"\n![{name}]({name})" for name in pictures]
    sections = {
        "Not done": [_plain(line) for line in unfinished(study)],
        "Notes": [_plain(problem) for problem in study.problems],
        "The same in all runs": [f"{_code(key)}: {_code(value)}" for key, value in study.common.items()],
        "To repeat": [
            f"{_plain(group.label)}: {_code((group.counted or group.runs)[0].repeat)}" for group in study.groups
        ],
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


def as_csv(study: Study) -> str:
    """A line for each group and metric, with every digit; the settings that differ are columns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = ("n", "mean", "std", "best", "difference", "ci_low", "ci_high", "pairs")
    writer.writerow(["group", *map(_cell, study.differs), "runs", "baseline", "metric", *numbers, "seeds", "values"])
    for group in study.groups:
        settings = [_cell(group.settings.get(key, "")) for key in study.differs]
        for metric in study.metrics:
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


def latex(study: Study) -> str:
    """The table as plain tabulars, to \\input into an article."""
    head, *rows = table(study)
    first = "l" if max((len(row[0]) for row in rows), default=0) <= LATEX_LABEL else "p{10cm}"
    parts = []
    for start in range(0, max(1, len(rows)), LATEX_ROWS):
        lines = [f"\\begin{{tabular}}{{{first}{'r' * (len(head) - 1)}}}", "\\hline", _latex_row(head), "\\hline"]
        lines += [_latex_row(row) for row in rows[start : start + LATEX_ROWS]]
        parts.append("\n".join([*lines, "\\hline", "\\end{tabular}"]))
    return "\n\n".join([f"% {' '.join(summary(study).split())}; made by locallearn report", *parts]) + "\n"


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
    found = []
    for c in text:
        if c in _LATEX:
            found.append(_LATEX[c])
        elif c.isascii():
            found.append(c if c.isprintable() else " ")
        else:
            plain = unicodedata.normalize("NFKD", c).encode("ascii", "ignore").decode()
            found.append("".join(_LATEX.get(p, p) for p in plain) or "?")
    return "".join(found)
