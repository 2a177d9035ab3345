"""How to measure on a machine that is not ours alone.

Variants run in turn, A B B A. Every sample records the CPU time that others used meanwhile: what /proc/stat counts as
busy (time that a hypervisor took included) less what the processes of the benchmark used. A sample with more than
`LOUD` of a core is thrown away and repeated, up to `TRIES` attempts; a sample of CPU time, which others do not
lengthen, never is. A number is the median over the rounds, a ratio that of the ratios within a round, with its 95 %
confidence interval: of a few rounds their extremes. Fewer than `LEAST` quiet rounds give no number.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

LOUD = 0.12  # cores
LEAST = 3
TRIES = 4  # of one sample of one round
TICK = os.sysconf("SC_CLK_TCK")
BUSY = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal: columns of /proc/stat


class Mark(NamedTuple):
    """A moment: seconds on a clock that all processes share, CPU seconds of all, and of the benchmark itself."""

    clock: float
    busy: float
    own: float


class Sample(NamedTuple):
    seconds: float
    foreign: float  # cores


Action: TypeAlias = Callable[[], object]
"""Do one sample; return it if it was measured elsewhere, else it is the time of the call."""


def mark(pids: list[int]) -> Mark:
    """Now. `pids` are the processes of the benchmark; one that has ended counts as its parent's child."""
    columns = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return Mark(time.perf_counter(), sum(int(columns[i]) for i in BUSY) / TICK, sum(map(_spent, pids)))


def _spent(pid: int) -> float:
    """CPU seconds of a process and of its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / TICK


def between(a: Mark, b: Mark, steps: int = 1) -> Sample:
    """Seconds per step from a to b, and the cores that others used meanwhile."""
    wall = b.clock - a.clock
    return Sample(wall / steps, max(0.0, (b.busy - a.busy) - (b.own - a.own)) / wall)


def spent(action: Callable[[], object], steps: int) -> Sample:
    """CPU seconds of this thread for one step."""
    start = time.thread_time()
    for _ in range(steps):
        action()
    return Sample((time.thread_time() - start) / steps, 0.0)


@dataclass
class Series:
    """The quiet samples of one variant, by round, and how many were too loud."""

    kept: dict[int, float] = field(default_factory=dict)
    dropped: int = 0

    @property
    def median(self) -> float | None:
        return statistics.median(self.kept.values()) if self.kept else None

    def __str__(self) -> str:
        return "?" if self.median is None else f"{self.median:.3g}"


def medians(series: Mapping[str, Series], unit: str) -> dict[str, float | None]:
    """The median of every variant as `NAME_UNIT`, from seconds."""
    scale = {"s": 1.0, "ms": 1e3, "us": 1e6}[unit]
    return {f"{name}_{unit}": None if s.median is None else s.median * scale for name, s in series.items()}


class Number(NamedTuple):
    """A measured number, None if too few samples were quiet, and its interval."""

    value: float | None
    low: float | None
    high: float | None
    kept: int
    dropped: int


@dataclass
class Bench:
    """What all measurements share. `quick` tries the script out: tiny models, one round, nothing thrown away."""

    repeats: int
    quick: bool
    pids: list[int] = field(default_factory=lambda: [os.getpid()])

    def rounds(self, more: int = 0) -> int:
        """Rounds of a measurement; `more` for those that are short or must tell 2 % apart."""
        return 1 if self.quick else self.repeats + more

    def run(self, variants: Mapping[str, Action], rounds: int, warm: bool = True) -> dict[str, Series]:
        """Samples of each variant in turn, after one round to warm up."""
        series = {name: Series() for name in variants}
        if warm:
            for action in variants.values():
                action()
        for number in range(rounds):
            for name in list(variants)[:: -1 if number % 2 else 1]:
                self._sample(variants[name], series[name], number)
        return series

    def _sample(self, action: Action, series: Series, number: int) -> None:
        for _ in range(TRIES):
            start = mark(self.pids)
            result = action()
            sample = result if isinstance(result, Sample) else between(start, mark(self.pids))
            if self.quick or sample.foreign <= LOUD:
                series.kept[number] = sample.seconds
                return
            series.dropped += 1

    def ratio(self, a: Series, b: Series) -> Number:
        """a / b."""
        return self.joined([a, b], lambda x, y: x / y)

    def single(self, a: Series) -> Number:
        """The samples as they are."""
        return self.joined([a], float)

    def joined(self, series: Sequence[Series], join: Callable[..., float]) -> Number:
        """The median over the rounds of what `join` makes of a round's sample of each series."""
        rounds = sorted(set.intersection(*(set(s.kept) for s in series)))
        values = [join(*(s.kept[number] for s in series)) for number in rounds]
        return self.of(values, sum(s.dropped for s in series))

    def of(self, values: Sequence[float], dropped: int = 0) -> Number:
        """The median of numbers, if there are enough."""
        if len(values) < (1 if self.quick else LEAST):
            return Number(None, None, None, len(values), dropped)
        return Number(*interval(values), len(values), dropped)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, and the bounds of its 95 % interval: order statistics, whatever the distribution."""
    ordered, n = sorted(values), len(values)
    away = math.ceil(0.98 * math.sqrt(n))
    return statistics.median(ordered), ordered[max(0, n // 2 - away)], ordered[min(n - 1, n // 2 + away)]


def exact(value: float) -> Number:
    """A number that is counted, not timed."""
    return Number(value, value, value, 0, 0)
