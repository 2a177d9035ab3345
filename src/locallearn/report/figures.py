"""The pictures of a report: learning curves, the score by block, and what the score costs in time and memory."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from locallearn import names
from locallearn.figures import COLOURS, by_strategy, epoch_axis, panels
from locallearn.report.grouped import Group, GroupedRuns
from locallearn.report.grouping import label, written
from locallearn.report.numbers import COSTS, Number, mean_and_deviation
from locallearn.report.series import curve
from locallearn.runs.read import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 12
"""The most groups that can be told apart in one picture."""
DRAWN_COSTS = ("seconds", "peak_memory_bytes")
LINES = ("-", "--", ":", "-.")
MARKERS = "osD^vP*X<>hd"
Style: TypeAlias = tuple[str, str, str]
"""Colour, line style and marker of a group."""


def draw(grouped: GroupedRuns) -> dict[str, Figure]:
    """Every picture that the runs have numbers for, by name."""
    groups = drawn(grouped)
    named = dict(zip(short_labels(groups), groups, strict=True))
    styles = dict(zip(named, styles_of(groups), strict=True))
    numbers = {name: group.numbers for name, group in named.items()}
    score = names.metric_of(grouped.score)
    every: dict[str, Figure | None] = {
        "learning_curves": learning_curves({name: group.counted for name, group in named.items()}, styles),
        **score_by_block(numbers, styles, score),
        "cost": _cost(grouped.score, numbers, styles),
    }
    figures = {name: figure for name, figure in every.items() if figure is not None}
    left_out = sum(bool(group.counted) for group in grouped.groups) - len(groups)
    if left_out:
        for figure in figures.values():
            figure.suptitle(f"{len(groups)} of {len(groups) + left_out} groups, the best by validation")
    return figures


def drawn(grouped: GroupedRuns) -> list[Group]:
    """All groups with a finished run, or of many the best by validation."""
    groups = [group for group in grouped.groups if group.counted]
    best = sorted(groups, key=lambda group: group.rank)[:MOST]
    return [group for group in groups if group in best]


def short_labels(groups: Sequence[Group]) -> list[str]:
    """What tells these groups apart: settings in which they agree, if not with the others, are left out."""
    keys = dict.fromkeys(key for group in groups for key in group.settings)
    agreed = {key for key in keys if len({written(group.settings.get(key)) for group in groups}) == 1}
    return [
        label({key: value for key, value in group.settings.items() if key not in agreed}, group.runs[0])
        for group in groups
    ]


def styles_of(groups: Sequence[Group]) -> list[Style]:
    """A strategy has its colour everywhere, and its groups differ in line and marker; of one strategy alone, the groups
    have colours of their own."""
    alone = len({group.strategy for group in groups}) == 1 and len(groups) > 1
    before: Counter[str] = Counter()
    styles = []
    for k, group in enumerate(groups):
        number = before[group.strategy]
        before[group.strategy] += 1
        colour = COLOURS[k % len(COLOURS)] if alone else by_strategy(group.strategy)
        styles.append((colour, LINES[number % len(LINES)], MARKERS[k % len(MARKERS)]))
    return styles


def curves_of(runs: Sequence[Run]) -> list[str]:
    """The numbers that are drawn over epochs."""
    scores = dict.fromkeys(run.score for run in runs)
    evaluated = [names.on(split, score) for score in scores for split in (names.VALIDATION, names.TEST)]
    return [names.on(names.TRAIN, names.LOSS), *evaluated]


def learning_curves(runs: Mapping[str, Sequence[Run]], styles: Mapping[str, Style]) -> Figure | None:
    """Mean and standard deviation over runs, by label: of the training loss, and of what the runs are judged by."""
    metrics = curves_of([run for own in runs.values() for run in own])
    curves = {metric: {name: curve(own, metric) for name, own in runs.items()} for metric in metrics}
    drawn = [metric for metric in metrics if any(curves[metric].values())]
    if not drawn:
        return None
    figure, axes = panels(len(drawn), 1)
    for place, metric in zip(axes, drawn, strict=True):
        for name, points in curves[metric].items():
            _band(place, points, styles[name], name)
        epoch_axis(place, [epoch for points in curves[metric].values() for epoch in points])
        place.set_ylabel(names.in_words(metric))
    if any(len(own) > 1 for own in runs.values()):
        axes[0].set_title("mean over seeds; band: one standard deviation", fontsize=7, loc="left")
    _legend(figure, axes[0])
    return figure


def _band(axes: Axes, points: Mapping[float, Sequence[float]], look: Style, name: str) -> None:
    """The mean, and one standard deviation to each side where there are several values."""
    if not points:
        return
    colour, style, marker = look
    xs, at_each = list(points), [mean_and_deviation(values) for values in points.values()]
    means, spread = [mean for mean, _ in at_each], [deviation or 0.0 for _, deviation in at_each]
    (line,) = axes.plot(xs, means, color=colour, linestyle=style, label=name, marker=marker, markersize=3)
    line.set_markevery(max(1, len(xs) // 10))
    if len(xs) == 1:  # else hidden where lines of others end
        line.set(markersize=9, markerfacecolor="none")
    if any(spread):
        low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)


def score_by_block(
    numbers: Mapping[str, Mapping[str, Number]], styles: Mapping[str, Style], score: str
) -> dict[str, Figure]:
    """A picture of the score of every block that can predict, on the test set, by label; a network of one predicting
    block is a point. Empty where no network has several."""
    from matplotlib.ticker import MaxNLocator

    blocks = {name: names.by_block(own, score, names.TEST) for name, own in numbers.items()}
    if not any(len(own) > 1 for own in blocks.values()):
        return {}
    figure, (axes,) = panels(width=4.2)
    for name, own in blocks.items():
        _band(axes, {block: number.values for block, number in own.items()}, styles[name], name)
    axes.set_xlabel("block")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(names.in_words(names.on(names.TEST, score)))
    _legend(figure, axes)
    return {f"{score}_by_block": figure}


def _cost(score: str, numbers: Mapping[str, Mapping[str, Number]], styles: Mapping[str, Style]) -> Figure | None:
    """Score against seconds and against peak memory, a point with bars of one standard deviation for each label."""
    drawn = [name for name in DRAWN_COSTS if any({name, score} <= own.keys() for own in numbers.values())]
    if not drawn:
        return None
    figure, axes = panels(len(drawn), 1)
    for place, cost in zip(axes, drawn, strict=True):
        unit = COSTS[cost].unit
        for name, own in numbers.items():
            if not {cost, score} <= own.keys():
                continue
            x, y = own[cost], own[score]
            colour, _, marker = styles[name]
            spread = (x.std or 0.0) / unit
            bars = place.errorbar(x.mean / unit, y.mean, y.std or 0.0, spread, fmt=marker, color=colour, linewidth=0.8)
            bars.set_label(name)
        place.set_xlabel(COSTS[cost].axis)
        place.set_ylabel(names.in_words(score))
    _legend(figure, axes[0])
    return figure


def _legend(figure: Figure, axes: Axes) -> None:
    """One legend for all panels, below them; the figure grows by it."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    room = int(figure.get_figwidth() * 16)  # characters
    labels = [textwrap.fill(text, room - 8) for text in labels]
    longest = max(len(line) for text in labels for line in text.splitlines())
    columns = max(1, min(4, len(labels), room // (longest + 6)))
    lines = sum(text.count("\n") + 1 for text in labels) / columns
    figure.set_figheight(figure.get_figheight() + 0.15 * (lines + 0.5))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
