"""What several runs say together: groups over seeds, each with its numbers and its difference to backprop.

Runs are of one group if they agree in all that decides what is learned, except the seed. Only runs that are done
count, one for each seed. The difference to backprop is paired by seed: the seed decides initial weights, split and
order of the data, so that pairs share what a method does not cause. Its interval is that of Student's t over the
pairs' differences, d +- t(0.975, n - 1) s / sqrt(n).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

from locallearn.report.read import Run

BACKPROP = "backprop"
SCORES = ("test/accuracy", "validation/accuracy", "test/loss", "validation/loss", "train/accuracy", "train/loss")
"""What a run is judged by: the first of them that any run has."""
_WHERE = ("seed", "out", "record", "threads", "device", "allocator", "checkpoint", "sweep", "probe", "evaluate_every")
_WHERE_KEYS = (*_WHERE, "dry_run", "allow", "data.root")
"""Settings that say where a run runs and what is looked at, not what is learned."""
_METHOD = ("strategy", "objective", "auxiliary", "optim", "blocks", "balance", "runtime", "micro_batches")
_METHOD += ("precision", "channels_last", "compile", "deterministic")
"""In these a run and the backprop run that it is compared with may differ: they are how, not what is learned."""


@dataclass(frozen=True)
class Number:
    """One metric of a group, over its seeds.

    values      of the seeds that have a finite one, in the order of `seeds`
    std         sample standard deviation (n - 1); None for one seed
    best        the largest accuracy, the smallest loss, time or size; None where neither is better
    difference  mean over seeds of the difference to the same seed of backprop; None without a pair
    ci_low, ci_high  95 % interval of that difference; None for fewer than two pairs
    pairs       seeds that both have
    """

    values: tuple[float, ...]
    seeds: tuple[int | None, ...]
    mean: float
    std: float | None
    n: int
    best: float | None
    difference: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    pairs: int = 0


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    settings  what differs from other groups, as far as it applies: `strategy` -> `dgl`, `optim.lr` -> 0.1
    runs      all of them, also those that are not done
    counted   those that the numbers come from: done, and the newest of each seed
    baseline  label of the backprop group that differences are to; None if there is none
    """

    label: str
    settings: dict[str, Any]
    runs: list[Run]
    numbers: dict[str, Number] = field(repr=False, default_factory=dict)
    counted: list[Run] = field(repr=False, default_factory=list)
    baseline: str | None = None

    @property
    def strategy(self) -> str:
        return self.runs[0].strategy


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
    settings = {id(run): _settings(run) for run in known}
    differs = _differs(known, settings)
    sorted_runs: dict[str, list[Run]] = {}
    for run in known:
        own = {key: settings[id(run)][key] for key in differs if key in settings[id(run)]}
        sorted_runs.setdefault(json.dumps(own, default=str), []).append(run)
    problems: list[str] = []
    groups = [_group(members, differs, settings[id(members[0])], problems) for members in sorted_runs.values()]
    groups = sorted(groups, key=lambda g: _order(g, differs))
    groups = [_compared(group, _baseline(group, groups, differs)) for group in groups]
    problems += _shared_problems(runs, groups)
    backprop = [group for group in groups if group.strategy == BACKPROP]
    return Study(
        groups=groups,
        differs=differs,
        common=_common([settings[id(run)] for run in known], differs),
        baseline=backprop[0] if len(backprop) == 1 else None,
        ungrouped=[run for run in runs if not run.config],
        metrics=_metrics(groups),
        problems=problems,
    )


def _settings(run: Run) -> dict[str, Any]:
    """What decides what a run learns: the choice of each group, then every option."""
    options = {key: value for key, value in run.config.items() if key != "seed" and not _is_where(key)}
    return {group: name for group, name in run.names.items() if group not in _WHERE} | options


def _is_where(key: str) -> bool:
    return key in _WHERE_KEYS or key.partition(".")[0] in _WHERE


def _differs(runs: Sequence[Run], settings: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Keys in which runs differ. An option of a group counts if it differs between runs with the same choice of that
    group: `dni` has options that `dgl` has not, and that says no more than their names."""
    values: dict[tuple[str, str], dict[str, int]] = {}
    per_choice: dict[tuple[str, str], int] = {}
    for run in runs:
        for group in {*run.names, ""}:
            choice = (group, run.names.get(group, ""))
            per_choice[choice] = per_choice.get(choice, 0) + 1
        for key, value in settings[id(run)].items():
            group = key.partition(".")[0] if "." in key and key.partition(".")[0] in run.names else ""
            found = values.setdefault((key, run.names.get(group, "")), {})
            text = json.dumps(value, sort_keys=True, default=str)
            found[text] = found.get(text, 0) + 1
    varying = set()
    for (key, choice), found in values.items():
        group = key.partition(".")[0] if choice else ""
        if len(found) > 1 or sum(found.values()) < per_choice[group, choice]:
            varying.add(key)
    order = ["strategy", "objective", "auxiliary", "model", "data"]
    return sorted(varying, key=lambda k: (order.index(k) if k in order else len(order), k))


def _common(settings: Sequence[Mapping[str, Any]], differs: Sequence[str]) -> dict[str, Any]:
    """What all runs have and share; the classes behind the names say nothing more."""
    first = settings[0] if settings else {}
    shared = [key for key in first if key not in differs and all(key in other for other in settings)]
    return {key: first[key] for key in shared if not key.endswith("._target_")}


def _group(runs: list[Run], differs: Sequence[str], settings: Mapping[str, Any], problems: list[str]) -> Group:
    own = {key: settings[key] for key in differs if key in settings}
    label = ", ".join(str(v) if k in runs[0].names else f"{k}={_text(v)}" for k, v in own.items())
    label = label or runs[0].strategy or "all runs"
    newest: dict[int | None, Run] = {}
    done = sorted((run for run in runs if run.done), key=_written)
    for run in done:
        newest[run.seed] = run
    repeated = sorted(str(seed) for seed in newest if sum(run.seed == seed for run in done) > 1)
    if repeated:
        which = f"seed {repeated[0]} was" if len(repeated) == 1 else f"seeds {', '.join(repeated)} were"
        problems.append(f"{label}: {which} run more than once; the newest run of a seed counts")
    counted = sorted(newest.values(), key=lambda run: (run.seed is None, run.seed))
    return Group(label, own, runs, _numbers(counted), counted)


def _written(run: Run) -> float:
    """When a run ended, as far as its folder tells."""
    try:
        return (run.path / "summary.json").stat().st_mtime
    except OSError:
        return 0.0


def _text(value: Any) -> str:
    return "null" if value is None else json.dumps(value, default=str).replace('"', "")


def values(run: Run) -> dict[str, float]:
    """Every finite number of a finished run: its summary, FLOPs, and what auxiliary networks add to the model."""
    manifest = {key: run.manifest.get(key) for key in ("flops", "auxiliary_flops")}
    found = {key: float(v) for key, v in (run.summary | manifest).items() if _is_finite(v)}
    if found.get("parameters") and "auxiliary_parameters" in found:
        found["auxiliary_share"] = found["auxiliary_parameters"] / found["parameters"]
    return {key: value for key, value in found.items() if key not in ("epoch", "step")}


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(runs: Sequence[Run]) -> dict[str, Number]:
    columns: dict[str, dict[int | None, float]] = {}
    for run in runs:
        for name, value in values(run).items():
            columns.setdefault(name, {})[run.seed] = value
    return {name: _number(name, column) for name, column in columns.items()}


def _number(name: str, column: Mapping[int | None, float]) -> Number:
    found = tuple(column.values())
    up = higher_is_better(name)
    return Number(
        values=found,
        seeds=tuple(column),
        mean=fmean(found),
        std=stdev(found) if len(found) > 1 else None,
        n=len(found),
        best=None if up is None else max(found) if up else min(found),
    )


def higher_is_better(name: str) -> bool | None:
    """Whether more of a metric is better; None where that cannot be said."""
    if name.endswith(("accuracy", "images_per_second")):
        return True
    if name.endswith(("loss", "seconds", "bytes", "flops", "idle")):
        return False
    return None


def _order(group: Group, differs: Sequence[str]) -> list[Any]:
    """Groups of one task stand together, backprop first among them; numbers in their order."""
    keys = [key for key in differs if not _is_method(key)] + [key for key in differs if _is_method(key)]
    ranks: list[Any] = []
    for key in keys:
        value = group.settings.get(key)
        number = value if _is_finite(value) else _number_in(str(value))
        ranks.append((value != BACKPROP, number is None, number or 0, str(value)))
    return ranks


def _number_in(text: str) -> float | None:
    return float(text) if re.fullmatch(r"-?\d+(\.\d*)?([eE]-?\d+)?", text) else None


def _is_method(key: str) -> bool:
    return key.partition(".")[0] in _METHOD


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
        and all(other.settings.get(k) == group.settings.get(k) for k in differs if not _is_method(k))
    ]

    def rank(other: Group) -> tuple[int, float]:
        accuracy = other.numbers.get("validation/accuracy")
        differing = sum(other.settings.get(k) != group.settings.get(k) for k in differs)
        return differing, -accuracy.mean if accuracy else 0.0

    return min(same, key=rank, default=None)


def _compared(group: Group, baseline: Group | None) -> Group:
    """The group with its differences to backprop."""
    if baseline is None:
        return group
    numbers = {
        name: _paired(number, baseline.numbers[name]) if name in baseline.numbers else number
        for name, number in group.numbers.items()
    }
    return replace(group, numbers=numbers, baseline=baseline.label)


def _paired(number: Number, base: Number) -> Number:
    """With the difference to `base`, paired by seed. Runs without a seed pair with nothing."""
    others = dict(zip(base.seeds, base.values, strict=True))
    pairs = [v - others[s] for s, v in zip(number.seeds, number.values, strict=True) if s is not None and s in others]
    if not pairs:
        return number
    low, high = interval(pairs) or (None, None)
    return replace(number, difference=fmean(pairs), ci_low=low, ci_high=high, pairs=len(pairs))


def interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % Student t interval of a mean; None for fewer than two values."""
    n = len(differences)
    if n < 2:
        return None
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    half = float(stdtrit(n - 1, 0.975)) * stdev(differences) / math.sqrt(n)
    return fmean(differences) - half, fmean(differences) + half


def _metrics(groups: Iterable[Group]) -> list[str]:
    names = dict.fromkeys(name for group in groups for name in group.numbers)
    first = next((name for name in SCORES if name in names), None)
    return [first, *(name for name in names if name != first)] if first else list(names)


def _shared_problems(runs: Sequence[Run], groups: Sequence[Group]) -> list[str]:
    """Sentences on what makes numbers less than they seem."""
    found = [f"{run.path}: {problem}" for run in runs for problem in run.problems]
    counted = [run for group in groups for run in group.counted]
    for name, fact in (("device", "devices"), ("threads", "numbers of threads")):
        seen = sorted({str(run.manifest[name]) for run in counted if name in run.manifest})
        if len(seen) > 1:
            found.append(f"the runs had different {fact} ({', '.join(seen)}): their seconds do not compare")
    strategies = {group.strategy for group in groups}
    if groups and BACKPROP not in strategies:
        found.append("there is no run with strategy=backprop, so no difference to it")
    return found
