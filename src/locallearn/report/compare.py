"""Two runs side by side: the settings in which they differ, their final numbers, their curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from locallearn.figures import COLOURS, by_strategy
from locallearn.report.figures import CURVES, accuracy_by_block, curve, learning_curves
from locallearn.report.grouping import text, written
from locallearn.report.numbers import numbers, values
from locallearn.report.read import Run, flat
from locallearn.report.tables import Table, grids, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPOCHS = 10
"""So many rows show how two curves go; of more epochs every second, third, ..."""
_MACHINE = ("device", "threads", "versions", "git", "system")


@dataclass(frozen=True)
class Comparison:
    """Two runs, the names by which they are told apart, and tables of what differs: (key, first, second)."""

    runs: tuple[Run, Run]
    labels: tuple[str, str]
    settings: list[tuple[str, str, str]]
    machine: list[tuple[str, str, str]]


def compare(first: Run, second: Run) -> Comparison:
    """What differs between two runs."""
    labels = (first.name, second.name)
    if labels[0] == labels[1]:
        labels = (str(first.path), str(second.path))
    settings = [
        {key: v for key, v in (run.config | run.names).items() if not _is_class(key)} for run in (first, second)
    ]
    machine = [flat({name: run.manifest.get(name) for name in _MACHINE}) for run in (first, second)]
    return Comparison((first, second), labels, _different(*settings), _different(*machine))


def _is_class(key: str) -> bool:
    """The class behind a choice, and the folder: both follow from what is said anyway."""
    return key.endswith("._target_") or key == "out"


def _different(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Keys with another value; `-` where one has no such key."""

    def shown(side: Mapping[str, Any], key: str) -> str:
        return text(side[key]) if key in side else "-"

    return [
        (key, shown(first, key), shown(second, key))
        for key in sorted({*first, *second})
        if (key in first) != (key in second) or written(first[key]) != written(second[key])
    ]


def final_numbers(comparison: Comparison) -> Table:
    """Every number that a run ends with, and the second minus the first; scores first, then blocks."""
    first, second = map(values, comparison.runs)
    names = sorted(
        {*first, *second}, key=lambda name: (name.count("/") != 1, name.startswith(("block/", "probe/")), name)
    )
    rows = [["at the end", "1", "2", "2 - 1"]]
    for name in names:
        difference = plain(second[name] - first[name], "+", 4) if name in first and name in second else ""
        rows.append([name, *(plain(side[name]) if name in side else "-" for side in (first, second)), difference])
    return rows


def plain(value: float, sign: str = "", digits: int = 6) -> str:
    """That many significant digits; large numbers in full, with commas."""
    return f"{value:{sign},.0f}" if abs(value) >= 1e4 else f"{value:{sign}.{digits}g}"


def curves(comparison: Comparison) -> Table:
    """What both were worth epoch by epoch, metric by metric; at most `EPOCHS` rows and the last."""
    sides = [{metric: curve([run], metric) for metric in CURVES} for run in comparison.runs]
    metrics = [metric for metric in CURVES if any(side[metric] for side in sides)]
    epochs = sorted({epoch for side in sides for metric in metrics for epoch in side[metric]})
    stride = -(-len(epochs) // EPOCHS)
    kept = [epoch for k, epoch in enumerate(epochs) if (len(epochs) - 1 - k) % stride == 0] if epochs else []
    rows = [["epoch", *(f"{metric} {n}" for metric in metrics for n in (1, 2))]]
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
    sections: list[Table] = [
        [["settings", "1", "2"], *map(list, comparison.settings)],
        [["machine", "1", "2"], *map(list, comparison.machine)],
        final_numbers(comparison),
        curves(comparison),
    ]
    if not comparison.settings:
        lines.append("their settings are the same")
    return "\n".join([*lines, "", grids([rows for rows in sections if len(rows) > 1], width)])


def draw(comparison: Comparison) -> dict[str, Figure]:
    """The curves of both runs in the same panels, and their accuracy by block."""
    strategies = [run.strategy for run in comparison.runs]
    colours = list(map(by_strategy, strategies)) if strategies[0] != strategies[1] else [COLOURS[0], COLOURS[5]]
    looks = dict(zip(comparison.labels, zip(colours, ("-", "--"), "os", strict=True), strict=True))
    runs: dict[str, Sequence[Run]] = {
        label: [run] for label, run in zip(comparison.labels, comparison.runs, strict=True)
    }
    found = {
        "learning_curves": learning_curves(runs, looks),
        "accuracy_by_block": accuracy_by_block({label: numbers(own) for label, own in runs.items()}, looks),
    }
    return {name: figure for name, figure in found.items() if figure is not None}
