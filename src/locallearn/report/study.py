"""What several runs say together: groups over seeds, each with its numbers and its difference to backprop.

Runs are of one group if they agree in all that decides what is learned, except the seed. Only runs that are done
count, one for each seed. The difference to backprop is paired by seed: the seed decides initial weights, split and
order of the data, so that pairs share what a method does not cause. Its interval is that of Student's t over the
pairs' differences, d +- t(0.975, n - 1) s / sqrt(n).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from locallearn.names import ACCURACY, LOSS, SELECTED_BY, TEST, TRAIN, VALIDATION, on
from locallearn.report.grouping import BACKPROP, common, differing, is_method, label, order, settings_of, written
from locallearn.report.numbers import Number, numbers, paired, values
from locallearn.report.published import Published, published
from locallearn.runs.read import Run

_OF_EVALUATION = [on(split, metric) for metric in (ACCURACY, LOSS) for split in (TEST, VALIDATION)]
SCORES = (*_OF_EVALUATION, on(TRAIN, ACCURACY), on(TRAIN, LOSS))
"""What a run is judged by: the first of them that any run has."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    settings  what differs from other groups, as far as it applies: `strategy` -> `dgl`, `optim.lr` -> 0.1
    runs      all of them, also those that are not done
    counted   those that the numbers come from: done, and the newest of each seed
    baseline  label of the backprop group that differences are to; None if there is none
    published what was published for these settings; None if it is no published setting
    """

    label: str
    settings: dict[str, Any]
    runs: list[Run]
    numbers: dict[str, Number] = field(repr=False, default_factory=dict)
    counted: list[Run] = field(repr=False, default_factory=list)
    baseline: str | None = None
    published: Published | None = None

    @property
    def strategy(self) -> str:
        return self.runs[0].strategy

    @property
    def looked_at(self) -> list[Run]:
        """The runs that it is drawn from: those that count, or, while none is done, all."""
        return self.counted or self.runs


@dataclass(frozen=True)
class Study:
    """All runs.

    differs   keys that vary between groups, `strategy` first
    common    keys and values that all runs share
    baseline  the backprop group, if there is but one
    ungrouped runs without a readable configuration
    metrics   names of all numbers, the score first
    """

    groups: list[Group]
    differs: list[str]
    common: dict[str, Any]
    baseline: Group | None
    ungrouped: list[Run]
    metrics: list[str]
    problems: list[str]

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs] + self.ungrouped

    @property
    def unfinished(self) -> list[Run]:
        return [run for run in self.runs if not run.done]

    @property
    def score(self) -> str:
        """The metric that groups are judged by; empty if no run has a number."""
        return self.metrics[0] if self.metrics else ""


def study(runs: Sequence[Run]) -> Study:
    """Group runs and compare the groups with backprop."""
    known = [run for run in runs if run.config]
    settings = [settings_of(run) for run in known]
    differs = differing(known, settings)
    members: dict[str, list[Run]] = {}
    own: dict[str, dict[str, Any]] = {}
    for run, setting in zip(known, settings, strict=True):
        varying = {key: setting[key] for key in differs if key in setting}
        members.setdefault(written(varying), []).append(run)
        own.setdefault(written(varying), varying)
    problems: list[str] = []
    groups = [_group(members[key], own[key], problems) for key in members]
    groups.sort(key=lambda group: order(group.settings, differs))
    groups = [_compared(group, _baseline(group, groups, differs)) for group in groups]
    problems += _shared_problems(runs, groups)
    backprop = [group for group in groups if group.strategy == BACKPROP]
    return Study(
        groups=groups,
        differs=differs,
        common=common(settings, differs),
        baseline=backprop[0] if len(backprop) == 1 else None,
        ungrouped=[run for run in runs if not run.config],
        metrics=_metrics(groups),
        problems=problems,
    )


def _group(runs: list[Run], settings: dict[str, Any], problems: list[str]) -> Group:
    """The runs as a group, without its difference to backprop."""
    name = label(settings, runs[0])
    newest: dict[int | None, Run] = {}
    done = sorted((run for run in runs if run.done), key=lambda run: run.ended)
    for run in done:
        newest[run.seed] = run
    repeated = sorted(str(seed) for seed in newest if sum(run.seed == seed for run in done) > 1)
    if repeated:
        which = f"seed {repeated[0]} was" if len(repeated) == 1 else f"seeds {', '.join(repeated)} were"
        problems.append(f"{name}: {which} run more than once; the newest run of a seed counts")
    counted = sorted(newest.values(), key=lambda run: (run.seed is None, run.seed))
    return Group(name, settings, runs, numbers(counted), counted, published=published((counted or runs)[0]))


def _baseline(group: Group, groups: Iterable[Group], differs: Sequence[str]) -> Group | None:
    """The backprop group on the same task that differs in the fewest settings; of several the one with the best
    validation accuracy."""
    if group.strategy == BACKPROP:
        return None
    same = [
        other
        for other in groups
        if other.strategy == BACKPROP
        and other.counted
        and all(other.settings.get(k) == group.settings.get(k) for k in differs if not is_method(k))
    ]

    def rank(other: Group) -> tuple[int, float]:
        accuracy = other.numbers.get(SELECTED_BY)
        others = sum(other.settings.get(k) != group.settings.get(k) for k in differs)
        return others, -accuracy.mean if accuracy else 0.0

    return min(same, key=rank, default=None)


def _compared(group: Group, baseline: Group | None) -> Group:
    """The group with its differences to backprop."""
    if baseline is None:
        return group
    both = {
        name: paired(number, baseline.numbers[name]) if name in baseline.numbers else number
        for name, number in group.numbers.items()
    }
    return replace(group, numbers=both, baseline=baseline.label)


def _metrics(groups: Iterable[Group]) -> list[str]:
    names = dict.fromkeys(name for group in groups for name in group.numbers)
    first = next((name for name in SCORES if name in names), None)
    return [first, *(name for name in names if name != first)] if first else list(names)


def _shared_problems(runs: Sequence[Run], groups: Sequence[Group]) -> list[str]:
    """Sentences on what makes numbers less than they seem."""
    found = [f"{run.path}: {problem}" for run in runs for problem in run.problems]
    counted = [run for group in groups for run in group.counted]
    score = (_metrics(groups) or [""])[0]
    for group in groups:
        if without := sum(values(run).get(score) is None for run in group.counted):
            found.append(f"{group.label}: {without} of {len(group.counted)} finished runs have no finite {score}")
    for name, fact in (("device", "devices"), ("threads", "numbers of threads")):
        seen = sorted({str(run.manifest[name]) for run in counted if name in run.manifest})
        if len(seen) > 1:
            found.append(f"the runs had different {fact} ({', '.join(seen)}): their seconds do not compare")
    strategies = {group.strategy for group in groups}
    if groups and BACKPROP not in strategies:
        found.append("there is no run with strategy=backprop, so no difference to it")
    return found
