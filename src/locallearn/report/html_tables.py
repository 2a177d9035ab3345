"""The tables of the page, as rows of cells: texts as they are shown and what they are sorted by."""

from __future__ import annotations

import json
from typing import Any

from locallearn.report.grouping import text
from locallearn.report.html_data import finite, looked_at
from locallearn.report.study import Group, Study
from locallearn.report.tables import COSTS, difference, shown, spread, title

CHOICES = (6, 30)
"""A filter is offered for so many settings at most, each with so many values at most."""


def _column(name: str, numeric: bool = True, note: str = "") -> dict[str, Any]:
    return {"name": name, "numeric": numeric, "note": note}


def _cell(
    text: str, order: Any = None, note: str = "", code: bool = False, colour: int | None = None
) -> dict[str, Any]:
    """A cell of a table; `order` is what it is sorted by: a number, a text, or nothing (comes last)."""
    numeric = isinstance(order, int | float)
    key = "" if order is None else repr(float(order)) if numeric else str(order)
    return {"text": text, "order": key, "note": note, "code": code, "numeric": numeric or text == "–", "colour": colour}


def _missing() -> dict[str, Any]:
    return _cell("–")


def results(study: Study) -> dict[str, Any]:
    """A row for each group: what it reached, how that differs from backprop, what it cost."""
    score = [study.score] if study.score else []
    extra = [name for name in ("validation/accuracy", "images_per_second") if name in study.metrics[1:]]
    costs = [name for name in COSTS if name in study.metrics]
    columns = [_column("Group", False), _column("done")]
    columns += [column for name in score for column in (_column(title(name)), _column("best"))]
    known = [group for group in study.groups if group.published]
    columns += [_column("published")] * bool(known)
    columns += [_column("vs backprop", note="95 % interval") for _ in score if any(g.baseline for g in study.groups)]
    columns += [_column(title(name)) for name in extra] + [_column(COSTS[name]) for name in costs]
    bases = {group.label: group for group in study.groups}
    rows = []
    for i, group in enumerate(study.groups):
        cells = [_named(group, i), _done(group)]
        cells += [cell for name in score for cell in (_mean(group, name), _best(group, name))]
        cells += [_published(group)] * bool(known)
        cells += [_difference(group, name) for name in score if any(g.baseline for g in study.groups)]
        cells += [_mean(group, name) for name in extra]
        cells += [_mean(group, name, bases.get(group.baseline or "")) for name in costs]
        rows.append({"cells": cells, "found": _keys(group)})
    return {
        "id": "results-table",
        "what": "table of results",
        "caption": "Results by group: mean ± standard deviation over seeds. The buttons in the headings sort.",
        "columns": columns,
        "rows": rows,
        "choices": _choices(study),
    }


def _named(group: Group, index: int) -> dict[str, Any]:
    lost = [run.state for run in group.runs if not run.done]
    note = ", ".join(f"{lost.count(state)} {state}" for state in dict.fromkeys(lost))
    return _cell(group.label, group.label, note=note, colour=index)


def _done(group: Group) -> dict[str, Any]:
    return _cell(f"{len(group.counted)} of {len({run.seed for run in group.runs})}", len(group.counted))


def _mean(group: Group, name: str, base: Group | None = None) -> dict[str, Any]:
    """Mean and deviation; beside a base also how many times its mean."""
    number, other = group.numbers.get(name), base.numbers.get(name) if base else None
    if number is None:
        return _missing()
    times = f"{number.mean / other.mean:.2f}×" if other is not None and other.mean > 0 else ""
    return _cell(_signed(spread(name, number)), number.mean, times)


def _best(group: Group, name: str) -> dict[str, Any]:
    number = group.numbers.get(name)
    return _missing() if number is None or number.best is None else _cell(shown(name, number.best), number.best)


def _published(group: Group) -> dict[str, Any]:
    value = group.published.value if group.published else ""
    return _cell(value, float(value.partition(" ")[0])) if value else _missing()


def _difference(group: Group, name: str) -> dict[str, Any]:
    number = group.numbers.get(name)
    if number is None or number.difference is None:
        return _missing()
    head, _, rest = _signed(difference(name, number)).partition(" ")
    return _cell(head, number.difference, rest)


def _signed(text: str) -> str:
    return text.replace("-", "−")


def _keys(group: Group) -> str:
    return json.dumps({key: text(value) for key, value in group.settings.items()})


def _choices(study: Study) -> list[dict[str, Any]]:
    """The settings that the table can be filtered by."""
    found = []
    for key in study.differs:
        values = list(dict.fromkeys(text(group.settings[key]) for group in study.groups if key in group.settings))
        if 2 <= len(values) <= CHOICES[1]:
            found.append({"key": key, "name": key, "values": values})
    return found[: CHOICES[0]]


def settings(study: Study) -> dict[str, Any]:
    rows = []
    for i, group in enumerate(study.groups):
        own = [_cell(text(group.settings[k]), text(group.settings[k])) if k in group.settings else _missing()
               for k in study.differs]  # fmt: skip
        command = _command(group)
        rows.append({"cells": [_named(group, i), *own, _cell(command, command, code=True)], "found": "{}"})
    columns = [_column("Group", False), *(_column(key, False) for key in study.differs)]
    return {
        "id": "settings-table",
        "what": "table of settings",
        "caption": "What differs between groups, and the command that does a group again.",
        "columns": [*columns, _column("Again, all seeds", False)],
        "rows": rows,
        "choices": None,
    }


def _command(group: Group) -> str:
    """One command for all seeds of a group, into the folder that is set where it is given."""
    runs = looked_at(group)
    seeds = sorted({run.seed for run in runs if isinstance(run.seed, int)})
    words = [word for word in runs[0].overrides if word.partition("=")[0] not in ("seed", "out")]
    if not runs[0].overrides and not runs[0].manifest:
        return "not recorded"
    several = ["-m"] if len(seeds) > 1 else []
    return runs[0].command([*several, *words, *([f"seed={','.join(map(str, seeds))}"] * bool(seeds))])


def runs(study: Study) -> dict[str, Any]:
    of = {id(run): group.label for group in study.groups for run in group.runs}
    colours = {id(run): i for i, group in enumerate(study.groups) for run in group.runs}
    rows = []
    for run in study.runs:
        score, seed = finite(run.summary.get(study.score)), run.seed
        why = "; ".join(text for text in (run.reason, *run.problems) if text)
        cells = [
            _cell(run.name, run.name, note=str(run.path.parent), colour=colours.get(id(run))),
            _cell(of.get(id(run), "–"), of.get(id(run))),
            _cell(str(seed), seed) if isinstance(seed, int) else _missing(),
            _cell(run.state, run.state, note=why),
            _missing() if score is None else _cell(_signed(shown(study.score, score)), score),
            _cell(run.repeat, run.repeat, code=True) if run.config else _missing(),
        ]
        rows.append({"cells": cells, "found": json.dumps({"state": run.state})})
    states = sorted({run.state for run in study.runs})
    names = ("Run", False), ("Group", False), ("Seed", True), ("State", False)
    columns = [
        *(_column(*n) for n in names),
        _column(title(study.score) or "score"),
        _column("Again", False),
    ]
    return {
        "id": "runs-table",
        "what": "table of runs",
        "caption": "Every run that was found, with its state, the reason where it is not done, and its command.",
        "columns": columns,
        "rows": rows,
        "choices": [{"key": "state", "name": "State", "values": states}] if len(states) > 1 else [],
    }
