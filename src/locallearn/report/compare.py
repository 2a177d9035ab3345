"""Runs side by side: the settings in which they differ, their final numbers, their curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from locallearn.figures import COLOURS, by_strategy
from locallearn.figures.text import table
from locallearn.report.figures import CURVES, accuracy_by_block, learning_curves
from locallearn.report.grouping import text, written
from locallearn.report.numbers import numbers, values
from locallearn.report.series import curve
from locallearn.report.units import shown
from locallearn.runs.files import flat
from locallearn.runs.read import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPOCHS = 10
"""So many rows show how two curves go; of more epochs every second, third, ..."""
LINES, MARKERS = ("-", "--", ":", "-."), "os^Dv"
_MACHINE = ("device", "threads", "versions", "git", "system")


@dataclass(frozen=True)
class Comparison:
    """Two runs or more, the names by which they are told apart, and tables of what differs: (key, a value of each)."""

    runs: tuple[Run, ...]
    labels: tuple[str, ...]
    settings: list[list[str]]
    machine: list[list[str]]


def compare(runs: Sequence[Run]) -> Comparison:
    """What differs between runs."""
    names = [run.name for run in runs]
    labels = tuple(run.name if names.count(run.name) == 1 else str(run.path) for run in runs)
    settings = [{key: v for key, v in (run.config | run.names).items() if not _is_class(key)} for run in runs]
    machine = [flat({name: run.manifest.get(name) for name in _MACHINE}) for run in runs]
    return Comparison(tuple(runs), labels, _different(settings), _different(machine))


def _is_class(key: str) -> bool:
    """The class behind a choice, and the folder: both follow from what is said anyway."""
    return key.endswith("._target_") or key == "out"


def _different(sides: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Keys with not the same value everywhere; `-` where there is no such key."""
    keys = sorted({key for side in sides for key in side})
    return [
        [key, *(text(side[key]) if key in side else "-" for side in sides)]
        for key in keys
        if len({(key in side, written(side.get(key))) for side in sides}) > 1
    ]


def final_numbers(comparison: Comparison) -> list[list[str]]:
    """Every number that a run ends with, and each but the first minus the first; scores first, then blocks."""
    first, *others = sides = list(map(values, comparison.runs))
    names = sorted(
        {name for side in sides for name in side},
        key=lambda name: (name.count("/") != 1, name.startswith(("block/", "probe/")), name),
    )
    numbered = range(1, len(sides) + 1)
    rows = [["at the end", *map(str, numbered), *(f"{n} - 1" for n in numbered[1:])]]
    for name in names:
        shown = [plain(side[name]) if name in side else "-" for side in sides]
        differ = [plain(o[name] - first[name], "+", 4) if name in first and name in o else "" for o in others]
        rows.append([name, *shown, *differ])
    return rows


def plain(value: float, sign: str = "", digits: int = 6) -> str:
    """That many significant digits; large numbers in full, with commas."""
    return f"{value:{sign},.0f}" if abs(value) >= 1e4 else f"{value:{sign}.{digits}g}"


def curves(comparison: Comparison) -> list[list[str]]:
    """What they were worth epoch by epoch, metric by metric; at most `EPOCHS` rows and the last."""
    sides = [{metric: curve([run], metric) for metric in CURVES} for run in comparison.runs]
    metrics = [metric for metric in CURVES if any(side[metric] for side in sides)]
    epochs = sorted({epoch for side in sides for metric in metrics for epoch in side[metric]})
    stride = -(-len(epochs) // EPOCHS)
    kept = [epoch for k, epoch in enumerate(epochs) if (len(epochs) - 1 - k) % stride == 0] if epochs else []
    rows = [["epoch", *(f"{metric} {n}" for metric in metrics for n in range(1, len(sides) + 1))]]
    for epoch in kept:
        cells = [side[metric].get(epoch) for metric in metrics for side in sides]
        rows.append([str(epoch), *("-" if cell is None else f"{cell[0]:.4f}" for cell in cells)])
    return rows if kept else []


def terminal(comparison: Comparison, width: int) -> str:
    """The comparison as text of at most `width` columns."""
    lines = []
    for number, (label, run) in enumerate(zip(comparison.labels, comparison.runs, strict=True), start=1):
        spent = run.summary.get("seconds")
        facts = [
            run.state,
            *([shown("seconds", spent)] if isinstance(spent, float) else []),
            *([run.reason] if run.reason else []),
        ]
        lines.append(f"{number}: {label} ({', '.join(facts)})")
        lines += [f"   note: {problem}" for problem in run.problems]
    head = [str(number) for number in range(1, len(comparison.runs) + 1)]
    sections = [
        [["settings", *head], *comparison.settings],
        [["machine", *head], *comparison.machine],
        final_numbers(comparison),
        curves(comparison),
    ]
    if not comparison.settings:
        lines.append("their settings are the same")
    return "\n".join([*lines, "", "\n\n".join(table(rows, width, rule=True) for rows in sections if len(rows) > 1), ""])


def draw(comparison: Comparison) -> dict[str, Figure]:
    """The curves of all runs in the same panels, and their accuracy by block."""
    strategies = [run.strategy for run in comparison.runs]
    order = [COLOURS[0], COLOURS[5], *COLOURS[1:5], *COLOURS[6:]]
    apart = len(set(strategies)) == len(strategies)
    colours = [by_strategy(name) if apart else order[k % len(order)] for k, name in enumerate(strategies)]
    runs: dict[str, Sequence[Run]] = {
        label: [run] for label, run in zip(comparison.labels, comparison.runs, strict=True)
    }
    looks = {
        label: (colour, LINES[k % len(LINES)], MARKERS[k % len(MARKERS)])
        for k, (label, colour) in enumerate(zip(comparison.labels, colours, strict=True))
    }
    found = {
        "learning_curves": learning_curves(runs, looks),
        "accuracy_by_block": accuracy_by_block({label: numbers(own) for label, own in runs.items()}, looks),
    }
    return {name: figure for name, figure in found.items() if figure is not None}
