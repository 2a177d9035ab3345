"""How a number is written: its title, its unit, so many digits, and its deviation over seeds."""

from __future__ import annotations

from typing import NamedTuple

from locallearn.names import in_words
from locallearn.report.numbers import Number

SHARES = ("accuracy", "_share")  # endings of metrics that are shown in percent
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


def percent(metric: str) -> int:
    """What a value is multiplied by to be shown: shares are in percent."""
    return 100 if metric.endswith(SHARES) else 1


def title(metric: str) -> str:
    """`test/accuracy` -> `test accuracy %`"""
    return f"{in_words(metric)} %" if metric.endswith(SHARES) else in_words(metric)


def shown(metric: str, value: float | None, sign: str = "") -> str:
    """A value in the unit of its metric."""
    if value is None:
        return ""
    if metric.endswith(SHARES):
        return f"{100 * value:{sign}.2f}"
    size, unit = _unit(metric, value)
    return f"{_digits(value / size, 3)} {unit}" if unit else f"{value:{sign}.4g}"


def spread(metric: str, number: Number) -> str:
    """Mean and deviation in the unit of the mean, `821 ± 35 MiB`; what a configuration decides has no deviation."""
    size, unit = _unit(metric, number.mean)
    if number.std is None or metric.endswith(("flops", "share")):
        return shown(metric, number.mean)
    if metric.endswith(SHARES):
        return f"{shown(metric, number.mean)} ± {shown(metric, number.std)}"
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
