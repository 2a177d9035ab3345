"""The numbers of a group over its seeds, and their difference to the same seeds of backprop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

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
    found = {key: float(v) for key, v in (run.summary | manifest).items() if is_finite(v)}
    if found.get("parameters") and "auxiliary_parameters" in found:
        found["auxiliary_share"] = found["auxiliary_parameters"] / found["parameters"]
    return {key: value for key, value in found.items() if key not in ("epoch", "step")}


def is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def numbers(runs: Sequence[Run]) -> dict[str, Number]:
    columns: dict[str, dict[int | None, float]] = {}
    for run in runs:
        for name, value in values(run).items():
            columns.setdefault(name, {})[run.seed] = value
    return {name: number_of(name, column) for name, column in columns.items()}


def number_of(name: str, column: Mapping[int | None, float]) -> Number:
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
