"""The tables of the page, as rows of cells: texts as they are shown and what they are sorted by."""

from __future__ import annotations

import json
import shlex
from typing import Any

from locallearn.report.html_data import COSTS, label, looked_at
from locallearn.report.numbers import Number
from locallearn.report.study import Group, Study

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


def _figure(value: float, digits: int = 4) -> str:
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}g}".replace("e+0", "e").replace("e-0", "e−").replace("-", "−")
    return f"{float(f'{value:.{digits}g}'):.10g}".replace("-", "−")


def _spread(number: Number, unit: float = 1.0) -> str:
    return _figure(number.mean / unit) + ("" if number.std is None else f" ± {_figure(number.std / unit, 2)}")


def results(study: Study) -> dict[str, Any]:
    score = study.score.replace("/", " ")
    extra = [name for name in ("validation/accuracy", "images_per_second") if name in study.metrics[1:]]
    costs = [name for name in COSTS if name in study.metrics]
    columns = [_column("Group", False), _column("n", note="runs that count")]
    if study.score:
        columns += [_column(score), _column("Best"), _column("Difference to backprop", note="95 % interval")]
    columns += [_column(name.replace("/", " ").replace("_", " ")) for name in extra]
    columns += [_column(COSTS[name][0]) for name in costs]
    bases = {group.label: group for group in study.groups}
    rows = []
    for i, group in enumerate(study.groups):
        cells = [_named(group, i), _cell(str(len(group.counted)), len(group.counted))]
        cells += _scores(group, study.score) if study.score else []
        cells += [_mean(group, name, 1.0) for name in extra]
        cells += [_mean(group, name, COSTS[name][1], bases.get(group.baseline or "")) for name in costs]
        rows.append({"cells": cells, "found": _keys(group)})
    return {
        "id": "results-table",
        "what": "table of results",
        "caption": "Results by group. The buttons in the headings sort.",
        "columns": columns,
        "rows": rows,
        "choices": _choices(study),
    }


def _named(group: Group, index: int) -> dict[str, Any]:
    lost = [run.state for run in group.runs if not run.done]
    note = ", ".join(f"{lost.count(state)} {state}" for state in dict.fromkeys(lost))
    return _cell(label(group), label(group), note=note, colour=index)


def _scores(group: Group, score: str) -> list[dict[str, Any]]:
    number = group.numbers.get(score)
    if number is None:
        return [_missing()] * 3
    best = _missing() if number.best is None else _cell(_figure(number.best), number.best)
    difference = _missing()
    if number.difference is not None:
        note = "one pair, no interval"
        if number.ci_low is not None and number.ci_high is not None:
            note = f"[{_figure(number.ci_low, 3)}, {_figure(number.ci_high, 3)}], {number.pairs} pairs"
        sign = "+" if number.difference > 0 else ""
        difference = _cell(sign + _figure(number.difference, 3), number.difference, note)
    return [_cell(_spread(number), number.mean), best, difference]


def _mean(group: Group, name: str, unit: float, base: Group | None = None) -> dict[str, Any]:
    number, other = group.numbers.get(name), base.numbers.get(name) if base else None
    if number is None:
        return _missing()
    times = f"{_figure(number.mean / other.mean, 3)}×" if other is not None and other.mean > 0 else ""
    return _cell(_spread(number, unit), number.mean, times)


def text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


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
    return shlex.join(
        ["python", "-m", "locallearn", *several, *words, *([f"seed={','.join(map(str, seeds))}"] * bool(seeds))]
    )


def runs(study: Study) -> dict[str, Any]:
    of = {id(run): label(group) for group in study.groups for run in group.runs}
    colours = {id(run): i for i, group in enumerate(study.groups) for run in group.runs}
    rows = []
    for run in study.runs:
        score, seed = run.summary.get(study.score) if study.score else None, run.seed
        why = "; ".join(text for text in (run.reason, *run.problems) if text)
        cells = [
            _cell(run.name, run.name, note=str(run.path.parent), colour=colours.get(id(run))),
            _cell(of.get(id(run), "–"), of.get(id(run))),
            _cell(str(seed), seed) if isinstance(seed, int) else _missing(),
            _cell(run.state, run.state, note=why),
            _cell(_figure(float(score)), score) if isinstance(score, int | float) else _missing(),
            _cell(run.repeat, run.repeat, code=True) if run.config else _missing(),
        ]
        rows.append({"cells": cells, "found": json.dumps({"state": run.state})})
    states = sorted({run.state for run in study.runs})
    names = ("Run", False), ("Group", False), ("Seed", True), ("State", False)
    columns = [
        *(_column(*n) for n in names),
        _column(study.score.replace("/", " ") or "score"),
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
