"""The numbers of a group over its seeds, their difference to the same seeds of backprop, and how each is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeGuard

from locallearn.names import ACCURACY, higher_is_better, in_words, metric_of
from locallearn.runs.read import Run

SHARES = (ACCURACY, "_share")  # endings of metrics that are shown in percent
SCORES_IN_PERCENT = {"f1", "map", "miou"}
_LEAST = float("-inf")
_UNITS = {
    "seconds": ((2 * 3600, 3600, "h"), (2 * 60, 60, "min"), (_LEAST, 1, "s")),
    "bytes": ((2**30, 2**30, "GiB"), (2**20, 2**20, "MiB"), (2**10, 2**10, "KiB"), (_LEAST, 1, "B")),
    "flops": ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e3, 1e3, "k")),
}
"""By the ending of a metric: from which value on a unit is used, its size, and its name."""


class Cost(NamedTuple):
    """Something that a run costs: the head of its column, the title of its axis, and the unit of that axis."""

    head: str
    axis: str
    unit: float


COSTS = {
    "seconds": Cost("time", "time (s)", 1.0),
    "peak_memory_bytes": Cost("memory", "peak memory (MiB)", 2.0**20),
    "flops": Cost("FLOPs", "FLOPs (forward, one image)", 1.0),
    "auxiliary_flops": Cost("aux FLOPs", "auxiliary FLOPs (forward, one image)", 1.0),
    "auxiliary_share": Cost("aux %", "auxiliary parameters (% of the model's)", 0.01),
}


@dataclass(frozen=True)
class Number:
    """One metric of a group, over its seeds.

    values      of the seeds that have a finite one, in the order of `seeds`
    std         sample standard deviation (n - 1); None for one seed
    best        the largest accuracy, the smallest loss, time or size; None where neither is better
    difference  mean over seeds of the difference to the same seed of backprop; None without a pair
    ci_low, ci_high  95 % interval of that difference; None for fewer than two pairs
    pairs       seeds that both have
    times       the mean over that of backprop; None without one above 0
    """

    values: tuple[float, ...]
    seeds: tuple[int | None, ...]
    mean: float
    std: float | None
    best: float | None
    difference: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    pairs: int = 0
    times: float | None = None

    @property
    def n(self) -> int:
        return len(self.values)


def values(run: Run) -> dict[str, float]:
    """Every finite number of a finished run: its summary, FLOPs, and what auxiliary networks add to the model."""
    manifest = {key: run.manifest.get(key) for key in ("flops", "auxiliary_flops")}
    finite = {key: float(v) for key, v in (run.summary | manifest).items() if is_finite(v)}
    if finite.get("parameters") and "auxiliary_parameters" in finite:
        finite["auxiliary_share"] = finite["auxiliary_parameters"] / finite["parameters"]
    return {key: value for key, value in finite.items() if key not in ("epoch", "step")}


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether a value of a run is a number that can be computed with and drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def numbers(runs: Sequence[Run]) -> dict[str, Number]:
    """Every number of these runs, which differ in nothing but the seed, by its name."""
    columns: dict[str, dict[int | None, float]] = {}
    for run in runs:
        for name, value in values(run).items():
            columns.setdefault(name, {})[run.seed] = value
    metrics = runs[0].metrics if runs else {}
    return {name: number_of(name, column, metrics) for name, column in columns.items()}


def number_of(name: str, column: Mapping[int | None, float], metrics: Mapping[str, str]) -> Number:
    over_seeds, up = tuple(column.values()), higher_is_better(name, metrics)
    best = None if up is None else max(over_seeds) if up else min(over_seeds)
    return Number(over_seeds, tuple(column), *mean_and_deviation(over_seeds), best)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Over seeds; one value has no deviation, and one that rounding alone would explain is 0. The module statistics
    takes twenty times as long, seconds for 500 runs."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, deviation if deviation > 1e-12 * max(map(abs, values)) else 0.0


def paired(number: Number, base: Number) -> Number:
    """With the difference to `base`, paired by seed, and the ratio. Runs without a seed pair with nothing."""
    number = replace(number, times=number.mean / base.mean if base.mean > 0 else None)
    others = dict(zip(base.seeds, base.values, strict=True))
    pairs = [v - others[s] for s, v in zip(number.seeds, number.values, strict=True) if s is not None and s in others]
    if not pairs:
        return number
    mean, low, high = interval(pairs)
    return replace(number, difference=mean, ci_low=low, ci_high=high, pairs=len(pairs))


def interval(differences: Sequence[float]) -> tuple[float, float | None, float | None]:
    """The mean and the ends of its 95 % Student t interval; None for fewer than two values."""
    mean, deviation = mean_and_deviation(differences)
    if deviation is None:
        return mean, None, None
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    n = len(differences)
    half = float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)
    return mean, mean - half, mean + half


def percent(metric: str) -> int:
    """What a value is multiplied by to be shown: shares are in percent."""
    return 100 if in_percent(metric) else 1


def in_percent(metric: str) -> bool:
    """Whether a metric is a share, which is shown in percent."""
    return metric.endswith(SHARES) or metric_of(metric) in SCORES_IN_PERCENT


def title(metric: str) -> str:
    """`test/accuracy` -> `test accuracy %`"""
    return f"{in_words(metric)} %" if in_percent(metric) else in_words(metric)


def formatted(metric: str, value: float | None, sign: str = "") -> str:
    """A value in the unit of its metric."""
    if value is None:
        return ""
    if in_percent(metric):
        return f"{100 * value:{sign}.2f}"
    size, unit = _unit(metric, value)
    return f"{_digits(value / size, 3)} {unit}" if unit else f"{value:{sign}.4g}"


def mean_std(metric: str, number: Number) -> str:
    """Mean and deviation in the unit of the mean, `821 ± 35 MiB`; what a configuration decides has no deviation."""
    size, unit = _unit(metric, number.mean)
    if number.std is None or metric.endswith(("flops", "share")):
        return formatted(metric, number.mean)
    if in_percent(metric):
        return f"{formatted(metric, number.mean)} ± {formatted(metric, number.std)}"
    if not unit:
        return f"{number.mean:.4g} ± {_digits(number.std, 2)}"
    return f"{_digits(number.mean / size, 3)} ± {_digits(number.std / size, 2)} {unit}"


def _unit(metric: str, value: float) -> tuple[float, str]:
    """Size and name of the unit in which a value is read best; (1, "") without one."""
    units = next((units for ending, units in _UNITS.items() if metric.endswith(ending)), ())
    return next(((size, name) for least, size, name in units if value >= least), (1, ""))


def _digits(value: float, count: int) -> str:
    """That many significant digits, never as 1e+03."""
    return f"{value:.0f}" if abs(value) >= 10**count - 0.5 else f"{value:.{count}g}"
