"""The tables of a report as columns of cells, from which every form is rendered: terminal, Markdown, LaTeX and page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from locallearn.names import TEST, VALIDATION, metric_of, on
from locallearn.report.grouped import Group, GroupedRuns
from locallearn.report.grouping import text
from locallearn.report.numbers import COSTS, Number, formatted, is_finite, mean_std, title
from locallearn.runs.read import Run


@dataclass(frozen=True)
class Cell:
    """One cell.

    text   what it shows; empty if there is nothing to show
    order  what it is sorted by; None comes last
    note   a smaller text beside it
    brief  what stands for text and note where there is little room; None if the text does
    code   whether the text is a command
    group  the number of the group whose colour it has
    """

    text: str = ""
    order: float | str | None = None
    note: str = ""
    brief: str | None = None
    code: bool = False
    group: int | None = None

    @property
    def short(self) -> str:
        return self.text if self.brief is None else self.brief

    @property
    def numeric(self) -> bool:
        return isinstance(self.order, int | float)

    @property
    def key(self) -> str:
        """The order as text, as the page sorts by it."""
        return "" if self.order is None else repr(float(self.order)) if self.numeric else str(self.order)


@dataclass(frozen=True)
class Column:
    """A head and a cell for each row; `roomy` ones stand only on the page."""

    name: str
    cells: Sequence[Cell]
    note: str = ""
    roomy: bool = False

    @property
    def numeric(self) -> bool:
        return any(cell.numeric for cell in self.cells)

    @property
    def empty(self) -> bool:
        return not any(cell.text for cell in self.cells)


@dataclass(frozen=True)
class Table:
    """Columns, and by which values each row is found; None if rows are not filtered."""

    columns: list[Column]
    keys: list[Mapping[str, str]] | None

    def brief(self) -> list[list[str]]:
        """The head and the rows as texts, for where there is little room."""
        columns = [[column.name, *(cell.short for cell in column.cells)] for column in self.columns if not column.roomy]
        return [list(row) for row in zip(*columns, strict=True)]


def results(grouped: GroupedRuns) -> Table:
    """A row for each group: what it reached, how that differs from backprop, what it cost. A column that would be empty
    is left out."""
    score = grouped.score
    others = [on(TEST, run.score) for run in grouped.runs if metric_of(score) != run.score]  # of other tasks
    extra = on(VALIDATION, metric_of(score)), "images_per_second"  # the page has room for them

    def column(head: str, cell: Callable[[Group], Cell], note: str = "", roomy: bool = False) -> Column:
        return Column(head, [cell(group) for group in grouped.groups], note, roomy)

    def of(metric: str, cell: Callable[[str, Number], Cell]) -> Callable[[Group], Cell]:
        return lambda group: cell(metric, group.numbers[metric]) if metric in group.numbers else Cell()

    columns = [
        Column("group", [_named(group, k) for k, group in enumerate(grouped.groups)]),
        column("done", lambda g: Cell(f"{len(g.counted)} of {len({run.seed for run in g.runs})}", len(g.counted))),
        column(title(score), of(score, _mean)),
        *(column(title(metric), of(metric, _mean)) for metric in dict.fromkeys(others)),
        column("published", _published),
        column("best", of(score, _best)),
        column("vs backprop", of(score, _difference), "95 % interval"),
        *(column(title(metric), of(metric, _mean), roomy=True) for metric in extra if metric != score),
        *(column(cost.head, of(metric, _cost)) for metric, cost in COSTS.items()),
    ]
    full = [column for k, column in enumerate(columns) if k < 2 or not column.empty]
    return Table(full, [_texts(group.settings) for group in grouped.groups])


def settings(grouped: GroupedRuns) -> Table:
    """A row for each group: in what it differs from the others, and the command that does all its seeds again."""
    own = [_texts(group.settings) for group in grouped.groups]
    commands = map(_command, grouped.groups)
    columns = [
        Column("group", [_named(group, k) for k, group in enumerate(grouped.groups)]),
        *(Column(key, [Cell(each.get(key, ""), each.get(key)) for each in own]) for key in grouped.differs),
        Column("again, all seeds", [Cell(command, command, code=True) for command in commands]),
    ]
    return Table(columns, None)


def runs(grouped: GroupedRuns) -> Table:
    """A row for each run: its state, why it is not done, and the command that does it again."""
    groups = {id(run): (k, group.label) for k, group in enumerate(grouped.groups) for run in group.runs}
    rows = []
    for run in grouped.runs:
        number, label = groups.get(id(run), (None, ""))
        score = run.summary.get(grouped.score)
        rows.append(
            [
                Cell(run.name, run.name, note=str(run.path.parent), group=number),
                Cell(label, label or None),
                Cell() if run.seed is None else Cell(str(run.seed), run.seed),
                Cell(run.state, run.state, note="; ".join(filter(None, (run.reason, *run.problems)))),
                Cell(formatted(grouped.score, score), score) if is_finite(score) else Cell(),
                Cell(run.repeat, run.repeat, code=True) if run.config else Cell(),
            ]
        )
    heads = ("run", "group", "seed", "state", title(grouped.score) or "score", "again")
    cells = zip(*rows, strict=True) if rows else [()] * len(heads)
    columns = [Column(head, own) for head, own in zip(heads, cells, strict=True)]
    return Table(columns, [{"state": run.state} for run in grouped.runs])


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    return {key: text(value) for key, value in values.items()}


def _named(group: Group, number: int) -> Cell:
    lost = [run.state for run in group.runs if not run.done]
    note = ", ".join(f"{lost.count(state)} {state}" for state in dict.fromkeys(lost))
    return Cell(group.label, group.label, note, brief=group.label, group=number)


def _mean(metric: str, number: Number) -> Cell:
    return Cell(mean_std(metric, number), number.mean)


def _best(metric: str, number: Number) -> Cell:
    return Cell() if number.best is None else Cell(formatted(metric, number.best), number.best)


def _published(group: Group) -> Cell:
    value = group.published.value if group.published else ""
    return Cell(value, float(value.partition(" ")[0])) if value else Cell()


def _difference(metric: str, number: Number) -> Cell:
    """`-1.20 [-2.10, -0.30]`; without the interval for one pair."""
    if number.difference is None:
        return Cell()
    mean, note = formatted(metric, number.difference, "+"), "(1 pair)"
    if number.ci_low is not None and number.ci_high is not None:
        note = f"[{formatted(metric, number.ci_low, '+')}, {formatted(metric, number.ci_high, '+')}]"
    return Cell(mean, number.difference, note, brief=f"{mean} {note}")


def _cost(metric: str, number: Number) -> Cell:
    """A mean; where there is room also its deviation, and how many times that of backprop it is."""
    times = "" if number.times is None else f"{number.times:.2f}×"
    return Cell(mean_std(metric, number), number.mean, times, brief=formatted(metric, number.mean))


def _command(group: Group) -> str:
    """One command for all seeds of a group, into the folder that is set where it is given."""
    members: Sequence[Run] = group.drawn
    seeds = sorted({run.seed for run in members if run.seed is not None})
    words = [word for word in members[0].overrides if word.partition("=")[0] not in ("seed", "out")]
    if not members[0].overrides and not members[0].manifest:
        return "not recorded"
    several = ["-m"] if len(seeds) > 1 else []
    return members[0].command([*several, *words, *([f"seed={','.join(map(str, seeds))}"] * bool(seeds))])
