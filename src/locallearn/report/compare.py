"""Runs side by side: the settings in which they differ, their final numbers, their curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from locallearn.config.registry import flat
from locallearn.figures import COLOURS, by_strategy
from locallearn.figures.text import table
from locallearn.names import BLOCK, PROBE
from locallearn.report.figures import LINES, MARKERS, curves_of, learning_curves, score_by_block
from locallearn.report.grouping import text, written
from locallearn.report.numbers import formatted, numbers, values
from locallearn.report.series import curve
from locallearn.runs.read import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = list[list[str]]
EPOCHS = 10
"""The most rows that show how curves go; of more epochs every second, third, ... has one."""
_MACHINE = ("device", "threads", "versions", "git", "system")


@dataclass(frozen=True)
class Comparison:
    """Two runs or more, the names by which they are told apart, and tables of what differs: (key, a value of each)."""

    runs: tuple[Run, ...]
    labels: tuple[str, ...]
    settings: Rows
    machine: Rows


def compare(runs: Sequence[Run]) -> Comparison:
    """What differs between runs."""
    names = [run.name for run in runs]
    labels = tuple(run.name if names.count(run.name) == 1 else str(run.path) for run in runs)
    settings = [
        {
            key: value
            for key, value in (run.config | run.names).items()
            if not key.endswith("._target_") and key != "out"
        }
        for run in runs  # class and folder follow from what is said anyway
    ]
    machine = [flat({name: run.manifest.get(name) for name in _MACHINE}) for run in runs]
    return Comparison(tuple(runs), labels, _different(settings), _different(machine))


def _different(sides: Sequence[Mapping[str, Any]]) -> Rows:
    """Keys with not the same value everywhere; `-` where there is no such key."""
    return [
        [key, *(text(side[key]) if key in side else "-" for side in sides)]
        for key in sorted({key for side in sides for key in side})
        if len({(key in side, written(side.get(key))) for side in sides}) > 1
    ]


def final_numbers(comparison: Comparison) -> Rows:
    """Every number that a run ends with, and each but the first minus the first; scores first, then blocks."""
    first, *others = sides = list(map(values, comparison.runs))
    names = sorted(
        {name for side in sides for name in side},
        key=lambda name: (name.count("/") != 1, name.startswith((f"{BLOCK}/", f"{PROBE}/")), name),
    )
    numbered = range(1, len(sides) + 1)
    rows = [["at the end", *map(str, numbered), *(f"{n} - 1" for n in numbered[1:])]]
    for name in names:
        cells = [_digits(side[name]) if name in side else "-" for side in sides]
        differ = [_digits(o[name] - first[name], "+", 4) if name in first and name in o else "" for o in others]
        rows.append([name, *cells, *differ])
    return rows


def _digits(value: float, sign: str = "", digits: int = 6) -> str:
    """That many significant digits; large numbers in full, with commas."""
    return f"{value:{sign},.0f}" if abs(value) >= 1e4 else f"{value:{sign}.{digits}g}"


def curves(comparison: Comparison) -> Rows:
    """The values of each metric epoch by epoch; at most `EPOCHS` rows, the last epoch among them."""
    own = {
        (m, n): curve([run], m) for m in curves_of(comparison.runs) for n, run in enumerate(comparison.runs, start=1)
    }
    recorded = {metric for (metric, _), line in own.items() if line}
    own = {key: line for key, line in own.items() if key[0] in recorded}
    epochs = sorted({epoch for line in own.values() for epoch in line})
    stride = -(-len(epochs) // EPOCHS) or 1
    rows = [["epoch", *(f"{metric} {n}" for metric, n in own)]]
    for epoch in reversed(epochs[::-stride]):
        rows.append([str(epoch), *(f"{line[epoch][0]:.4f}" if epoch in line else "-" for line in own.values())])
    return rows if epochs else []


def terminal(comparison: Comparison, width: int) -> str:
    """The comparison as text of at most `width` columns."""
    lines = []
    for number, (label, run) in enumerate(zip(comparison.labels, comparison.runs, strict=True), start=1):
        spent = run.summary.get("seconds")
        facts = [run.state, formatted("seconds", spent) if isinstance(spent, float) else "", run.reason]
        lines.append(f"{number}: {label} ({', '.join(filter(None, facts))})")
        lines += [f"   note: {problem}" for problem in run.problems]
    if not comparison.settings:
        lines.append("their settings are the same")
    head = [str(number) for number in range(1, len(comparison.runs) + 1)]
    sections = [
        [["settings", *head], *comparison.settings],
        [["machine", *head], *comparison.machine],
        final_numbers(comparison),
        curves(comparison),
    ]
    return "\n".join([*lines, *("\n" + table(rows, width, rule=True) for rows in sections if len(rows) > 1)])


def draw(comparison: Comparison) -> dict[str, Figure]:
    """The curves of all runs in the same panels, and their score by block."""
    strategies = [run.strategy for run in comparison.runs]
    order = [COLOURS[0], COLOURS[5], *COLOURS[1:5], *COLOURS[6:]]
    apart = len(set(strategies)) == len(strategies)
    runs: dict[str, Sequence[Run]] = {}
    styles = {}
    for k, (label, run) in enumerate(zip(comparison.labels, comparison.runs, strict=True)):
        runs[label] = [run]
        colour = by_strategy(run.strategy) if apart else order[k % len(order)]
        styles[label] = (colour, LINES[k % len(LINES)], MARKERS[k % len(MARKERS)])
    drawn = learning_curves(runs, styles)
    every = {label: numbers(own) for label, own in runs.items()}
    blocks = score_by_block(every, styles, comparison.runs[0].score)
    return ({"learning_curves": drawn} if drawn is not None else {}) | blocks
