"""What a search chooses from: ranges and lists of values, by setting; and points that fill such a space evenly."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from locallearn.config.compose import quoted
from locallearn.errors import UserError

Scalar = float | int | str | bool | None
ALLOWED = "must be {low: NUMBER, high: NUMBER, log: true|false} or a list of values"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, whole ones if both are; `log`: on a logarithmic scale."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def parse(cls, entry: Mapping[str, Any], where: str) -> Range:
        if set(entry) - {"low", "high", "log"} or not {"low", "high"} <= set(entry):
            raise UserError(f"{where}: {ALLOWED}")
        low, high = (_number(entry[name], f"{where}.{name}") for name in ("low", "high"))
        log = entry.get("log", False)
        if not isinstance(log, bool):
            raise UserError(f"{where}.log={log}: must be true or false")
        if not low < high or (log and low <= 0):
            raise UserError(f"{where}: low={low:g} must be less than high={high:g}, and with log more than 0")
        return cls(low, high, log)

    def share(self, value: float) -> float:
        """Where a value lies between the ends, 0 to 1."""
        low, high, at = map(math.log, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return (at - low) / (high - low)

    def at(self, share: float) -> float:
        """The value that lies there: the inverse of `share`, the nearest whole number where both ends are whole."""
        low, high = map(math.log, (self.low, self.high)) if self.log else (self.low, self.high)
        value = math.exp(low + share * (high - low)) if self.log else low + share * (high - low)
        return round(value) if isinstance(self.low, int) and isinstance(self.high, int) else value


Space = dict[str, Range | list[Scalar]]


def entry_of(entry: Any, where: str) -> Range | list[Scalar]:
    """What a yaml file says of one setting. Raises UserError, which begins with `where`."""
    if isinstance(entry, Mapping):
        return Range.parse(entry, where)
    if isinstance(entry, list) and entry and all(isinstance(value, Scalar) for value in entry):
        return entry
    raise UserError(f"{where}: {ALLOWED}")


def _number(value: Any, where: str) -> float:
    try:  # for yaml 1e-3 is a text
        number = float(value) if isinstance(value, str) else value
        if type(number) in (int, float) and math.isfinite(number):
            return number
    except ValueError:
        pass
    raise UserError(f"{where}={value}: must be a number")


def override(key: str, value: Scalar) -> str:
    """A value as it is written on the command line; three digits are enough for a number that was drawn."""
    if isinstance(value, str) and not re.fullmatch(r"[\w./-]+", value):
        return f"{key}={quoted(value)}"
    if isinstance(value, float):
        return f"{key}={value:.3g}"
    return f"{key}={json.dumps(value) if value is None or isinstance(value, bool) else value}"


def evenly(space: Space, count: int) -> list[dict[str, Scalar]]:
    """`count` points of the space, which every search over it shares: a Sobol sequence in the middle of its cells.

    If `count` is a power of two, each setting alone takes `count` values in equal steps of its scale, and any two
    settings fill their square evenly (Sobol' 1967; the quasi-random search of Dahl et al. 2023, AlgoPerf).
    """
    from torch.quasirandom import SobolEngine

    shares = SobolEngine(len(space)).draw(count).double() + 0.5 / 2 ** math.ceil(math.log2(count))

    def value(entry: Range | list[Scalar], share: float) -> Scalar:
        return entry.at(share) if isinstance(entry, Range) else entry[int(share * len(entry))]

    return [
        {key: value(entry, share) for (key, entry), share in zip(space.items(), point, strict=True)}
        for point in shares.tolist()
    ]
