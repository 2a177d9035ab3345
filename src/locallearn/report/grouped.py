"""What several runs say together: groups over seeds, each with its numbers and its difference to backprop.

Runs are of one group if they agree in all that decides what is learned, except the seed. Only runs that are done
count, one for each seed. The difference to backprop is paired by seed: the seed decides initial weights, split and
order of the data, so that pairs share what a method does not cause. Its interval is that of Student's t over the
pairs' differences, d +- t(0.975, n - 1) s / sqrt(n).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from locallearn.names import LOSS, TEST, TRAIN, VALIDATION, on
from locallearn.report.grouping import BACKPROP, common, differing, is_method, label, order, settings_of, written
from locallearn.report.numbers import Number, numbers, paired, values
from locallearn.report.published import PublishedScore, published
from locallearn.runs.read import Run


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
    published: PublishedScore | None = None

    @property
    def strategy(self) -> str:
        return self.runs[0].strategy

    @property
    def drawn(self) -> list[Run]:
        """The runs that are drawn: those that count, or, while none is done, all."""
        return self.counted or self.runs

    @property
    def rank(self) -> float:
        """What groups are sorted by, the best by validation first."""
        return fmean(run.rank for run in self.counted) if self.counted else 0.0


@dataclass(frozen=True)
class GroupedRuns:
    """All runs.

    differs   keys that vary between groups, `strategy` first
    common    keys and values that all runs share
    ungrouped runs without a readable configuration
    problems  sentences on what makes the numbers less than they seem
    """

    groups: list[Group]
    differs: list[str]
    common: dict[str, Any]
    ungrouped: list[Run]
    problems: list[str]

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs] + self.ungrouped

    @property
    def unfinished(self) -> list[Run]:
        return [run for run in self.runs if not run.done]

    @property
    def metrics(self) -> list[str]:
        """The names of all numbers, the score first."""
        names = dict.fromkeys(name for group in self.groups for name in group.numbers)
        return list(dict.fromkeys([*[name for name in self.scores if name in names][:1], *names]))

    @property
    def scores(self) -> list[str]:
        """What a run may be judged by: the first of them that any run has."""
        metrics = [*dict.fromkeys([*(run.score for run in self.runs), LOSS])]
        evaluated = [on(split, metric) for metric in metrics for split in (TEST, VALIDATION)]
        return [*evaluated, *(on(TRAIN, metric) for metric in metrics)]

    @property
    def score(self) -> str:
        """The metric that groups are judged by; empty if no run has a number."""
        return next(iter(self.metrics), "")


def grouped(runs: Sequence[Run]) -> GroupedRuns:
    """Group runs and compare the groups with backprop."""
    known = [run for run in runs if run.config]
    settings = [settings_of(run) for run in known]
    differs = differing(known, settings)
    members: dict[str, tuple[dict[str, Any], list[Run]]] = {}
    for run, own in zip(known, settings, strict=True):
        varying = {key: own[key] for key in differs if key in own}
        members.setdefault(written(varying), (varying, []))[1].append(run)
    problems: list[str] = []
    groups = [_group(varying, own, problems) for varying, own in members.values()]
    groups.sort(key=lambda group: order(group.settings, differs))
    groups = [_compared(group, groups, differs) for group in groups]
    result = GroupedRuns(groups, differs, common(settings, differs), [run for run in runs if not run.config], problems)
    problems += _problems(runs, result)
    return result


def _group(settings: dict[str, Any], runs: list[Run], problems: list[str]) -> Group:
    """The runs as a group, without its difference to backprop."""
    name = label(settings, runs[0])
    done = sorted((run for run in runs if run.done), key=lambda run: run.ended)
    newest = {run.seed: run for run in done}
    repeated = sorted(str(seed) for seed in newest if sum(run.seed == seed for run in done) > 1)
    if repeated:
        which = f"seed {repeated[0]} was" if len(repeated) == 1 else f"seeds {', '.join(repeated)} were"
        problems.append(f"{name}: {which} run more than once; the newest run of a seed counts")
    counted = sorted(newest.values(), key=lambda run: (run.seed is None, run.seed))
    return Group(name, settings, runs, numbers(counted), counted, published=published((counted or runs)[0]))


def _compared(group: Group, groups: Sequence[Group], differs: Sequence[str]) -> Group:
    """The group with its differences to backprop: to the group on the same task that differs in the fewest settings,
    and of several to the best by validation."""

    def apart(base: Group) -> list[str]:
        return [key for key in differs if base.settings.get(key) != group.settings.get(key)]

    bases = [g for g in groups if g.strategy == BACKPROP and g.counted and all(map(is_method, apart(g)))]
    if group.strategy == BACKPROP or not bases:
        return group
    base = min(bases, key=lambda base: (len(apart(base)), base.rank))
    both = {
        name: paired(number, base.numbers[name]) if name in base.numbers else number
        for name, number in group.numbers.items()
    }
    return replace(group, numbers=both, baseline=base.label)


def _problems(runs: Sequence[Run], result: GroupedRuns) -> list[str]:
    sentences = [f"{run.path}: {problem}" for run in runs for problem in run.problems]
    score = result.score
    judged = sorted({run.score for group in result.groups for run in group.counted})
    for group in result.groups if len(judged) == 1 else ():
        if without := sum(score not in values(run) for run in group.counted):
            sentences.append(f"{group.label}: {without} of {len(group.counted)} finished runs have no finite {score}")
    if len(judged) > 1:
        sentences.append(f"the runs are judged by different numbers ({', '.join(judged)}): their scores do not compare")
    for name, fact in (("device", "devices"), ("threads", "numbers of threads")):
        manifests = [run.manifest for group in result.groups for run in group.counted]
        seen = sorted({str(manifest[name]) for manifest in manifests if name in manifest})
        if len(seen) > 1:
            sentences.append(f"the runs had different {fact} ({', '.join(seen)}): their seconds do not compare")
    if result.groups and all(group.strategy != BACKPROP for group in result.groups):
        sentences.append("there is no run with strategy=backprop, so no difference to it")
    return sentences
