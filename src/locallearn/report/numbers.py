"""The numbers of a group over its seeds, and their difference to the same seeds of backprop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any, TypeGuard

from locallearn.names import higher_is_better
from locallearn.runs.read import Run


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
    return {name: number_of(name, column) for name, column in columns.items()}


def number_of(name: str, column: Mapping[int | None, float]) -> Number:
    over_seeds = tuple(column.values())
    up = higher_is_better(name)
    return Number(
        values=over_seeds,
        seeds=tuple(column),
        mean=fmean(over_seeds),
        std=stdev(over_seeds) if len(over_seeds) > 1 else None,
        n=len(over_seeds),
        best=None if up is None else max(over_seeds) if up else min(over_seeds),
    )


def paired(number: Number, base: Number) -> Number:
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
