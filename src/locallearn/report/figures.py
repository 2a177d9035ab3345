"""The pictures of a study: learning curves, accuracy by block, and what accuracy costs in time and memory."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, TypeAlias

from locallearn.figures import COLOURS, by_strategy, panels
from locallearn.report.numbers import Number, is_finite
from locallearn.report.read import Run
from locallearn.report.study import Group, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 12
"""So many groups can be told apart in one picture."""
CURVES = ("train/loss", "validation/accuracy", "test/accuracy")
_LINES = ("-", "--", ":", "-.")
_BLOCK = re.compile(r"block/(\d+)/test_accuracy")
Look: TypeAlias = tuple[str, str]
"""Colour and line style of a group."""


def draw(study: Study) -> dict[str, Figure]:
    """Every picture that the runs have numbers for, by name."""
    groups = shown(study)
    looks = dict(zip((group.label for group in groups), looks_of(groups), strict=True))
    found = {
        "learning_curves": learning_curves({group.label: group.counted for group in groups}, looks),
        "accuracy_by_block": accuracy_by_block({group.label: group.numbers for group in groups}, looks),
        "cost": _cost(study.score, groups, looks),
    }
    figures = {name: figure for name, figure in found.items() if figure is not None}
    left_out = sum(bool(group.counted) for group in study.groups) - len(groups)
    if left_out:
        for figure in figures.values():
            figure.suptitle(f"{len(groups)} of {len(groups) + left_out} groups, the best by validation", fontsize=8)
    return figures


def shown(study: Study) -> list[Group]:
    """The groups that are drawn: all with a finished run, or of many those with the best validation accuracy."""
    groups = [group for group in study.groups if group.counted]
    if len(groups) <= MOST:
        return groups
    kept = sorted(groups, key=_by_validation)[:MOST]
    return [group for group in groups if group in kept]


def _by_validation(group: Group) -> float:
    number = group.numbers.get("validation/accuracy")
    return -number.mean if number else 0.0


def looks_of(groups: Sequence[Group]) -> list[Look]:
    """A strategy has its colour everywhere, and its groups differ in their lines; of one strategy alone, the groups
    have colours of their own."""
    if len({group.strategy for group in groups}) == 1 and len(groups) > 1:
        return [(COLOURS[k % len(COLOURS)], _LINES[k // len(COLOURS) % len(_LINES)]) for k in range(len(groups))]
    before: Counter[str] = Counter()
    found = []
    for group in groups:
        found.append((by_strategy(group.strategy), _LINES[before[group.strategy] % len(_LINES)]))
        before[group.strategy] += 1
    return found


def curve(runs: Iterable[Run], metric: str) -> dict[int, list[float]]:
    """The finite values of a metric over runs, by epoch."""
    found: dict[int, list[float]] = {}
    for run in runs:
        for record in run.history:
            if is_finite(record.get(metric)) and isinstance(record.get("epoch"), int):
                found.setdefault(record["epoch"], []).append(record[metric])
    return dict(sorted(found.items()))


def learning_curves(runs: Mapping[str, Sequence[Run]], looks: Mapping[str, Look]) -> Figure | None:
    """Mean and standard deviation of each metric over runs, by label."""
    curves = {metric: {label: curve(own, metric) for label, own in runs.items()} for metric in CURVES}
    drawn = [metric for metric in CURVES if any(curves[metric].values())]
    if not drawn:
        return None
    figure, axes = panels(len(drawn), 1)
    for place, metric in zip(axes, drawn, strict=True):
        for label, points in curves[metric].items():
            _band(place, points, looks[label], label)
        place.set_xlabel("epoch")
        _whole_numbers(place)
        place.set_ylabel(metric.replace("/", " "))
    if any(len(own) > 1 for own in runs.values()):
        axes[0].set_title("mean over seeds; band: one standard deviation", fontsize=7, loc="left")
    _legend(figure, axes[0])
    return figure


def _band(axes: Axes, points: Mapping[int, Sequence[float]], look: Look, label: str) -> None:
    """The mean, and one standard deviation to each side where there are several values."""
    if not points:
        return
    colour, style = look
    xs, means = list(points), [fmean(v) for v in points.values()]
    axes.plot(xs, means, color=colour, linestyle=style, label=label, marker="." if len(xs) < 20 else "")
    spread = [stdev(v) if len(v) > 1 else 0.0 for v in points.values()]
    if any(spread):
        low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)


def accuracy_by_block(numbers: Mapping[str, Mapping[str, Number]], looks: Mapping[str, Look]) -> Figure | None:
    """Test accuracy of every block that can predict, by label; a network of one predicting block is a point."""
    blocks = {
        label: {int(m[1]): n.values for name, n in own.items() if (m := _BLOCK.fullmatch(name))}
        for label, own in numbers.items()
    }
    if not any(len(found) > 1 for found in blocks.values()):
        return None
    figure, (axes,) = panels(width=4.2)
    for label, found in blocks.items():
        _band(axes, dict(sorted(found.items())), looks[label], label)
    axes.set_xlabel("block")
    _whole_numbers(axes)
    axes.set_ylabel("test accuracy")
    _legend(figure, axes)
    return figure


def _cost(score: str, groups: Sequence[Group], looks: Mapping[str, Look]) -> Figure | None:
    """Score against seconds and against peak memory, a point with bars of one standard deviation for each group."""
    costs = {"seconds": ("seconds", 1.0), "peak_memory_bytes": ("peak memory [MiB]", 2.0**20)}
    drawn = [name for name in costs if any({name, score} <= group.numbers.keys() for group in groups)]
    if not drawn:
        return None
    figure, axes = panels(len(drawn), 1)
    for place, name in zip(axes, drawn, strict=True):
        title, unit = costs[name]
        for k, group in enumerate(groups):
            if not {name, score} <= group.numbers.keys():
                continue
            x, y = group.numbers[name], group.numbers[score]
            place.errorbar(
                x.mean / unit,
                y.mean,
                xerr=(x.std or 0.0) / unit,
                yerr=y.std or 0.0,
                fmt="osD^vP*X<>hd"[k % MOST],
                color=looks[group.label][0],
                markersize=5,
                linewidth=0.8,
                label=group.label,
            )
        place.set_xlabel(title)
        place.set_ylabel(score.replace("/", " "))
    _legend(figure, axes[0])
    return figure


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _legend(figure: Figure, axes: Axes) -> None:
    """One legend for all panels, below them."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    columns = max(1, min(4, len(labels), int(figure.get_figwidth() * 16 / (max(map(len, labels)) + 6))))
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + 0.16 * rows)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=7, frameon=False)
