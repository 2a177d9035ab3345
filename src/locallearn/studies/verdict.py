"""What our numbers say of a published one: the one rule by which a row is reproduced, differs, or is beaten.

The difference d of ours to the published mean has a 95 % interval:

    both deviations known   Welch: d +- t(nu) sqrt(s^2/n + s_p^2/n_p), nu by Welch & Satterthwaite
    one published run, or   its deviation is taken to be ours, and what is published for one run if nobody says of how
    no published deviation  many it is: d +- t(n - 1) s sqrt(1/n + 1/n_p); for n_p = 1 the prediction interval of a run

    differs      the interval lies on the worse side of zero
    beaten       it lies on the better side
    reproduced   it holds zero, and is at most `resolution` wide to either side: what the size of the test set could
                 tell apart at all, 1.96 sqrt(p (1 - p) / N) of a share p of N samples
    open         it holds zero, and so much else that it says nothing: more seeds are needed; always so for one seed
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from locallearn.errors import UserError

REPRODUCED, DIFFERS, BEATEN, OPEN = "reproduced", "differs", "beaten", "open"


@dataclass(frozen=True)
class Reference:
    """A published number: a mean, the sample deviation of the runs behind it, and their number; None where unknown."""

    mean: float
    deviation: float | None = None
    runs: int | None = None

    @classmethod
    def of(cls, published: float | Sequence[float], deviation: float | None, runs: int | None) -> Reference:
        """From a mean with what is known beside it, or from the numbers of every run. Raises UserError."""
        if isinstance(published, int | float):
            if deviation is not None and (runs is None or runs < 2 or deviation < 0):
                raise UserError("a published deviation comes from at least 2 runs: say how many, as in `runs: 5`")
            return cls(published, deviation, runs)
        if deviation is not None or runs is not None or len(published) < 2:
            raise UserError(
                "published: a list gives the numbers of at least 2 runs, from which deviation and runs follow"
            )
        return cls(fmean(published), stdev(published), len(published))


@dataclass(frozen=True)
class Verdict:
    """The difference to what was published, the ends of its 95 % interval (None for one seed), and one word."""

    difference: float
    low: float | None
    high: float | None
    word: str


def verdict(ours: Sequence[float], published: Reference, resolution: float, more_is_better: bool = True) -> Verdict:
    """The rule of this module, in the unit of the numbers."""
    difference = fmean(ours) - published.mean
    if len(ours) < 2:
        return Verdict(difference, None, None, OPEN)
    half = _half_width(ours, published)
    low, high = difference - half, difference + half
    if low <= 0 <= high:
        word = REPRODUCED if half <= resolution else OPEN
    else:
        word = BEATEN if (difference > 0) == more_is_better else DIFFERS
    return Verdict(difference, low, high, word)


def _half_width(ours: Sequence[float], published: Reference) -> float:
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    n, s = len(ours), stdev(ours)
    if published.deviation is None or (published.runs or 1) < 2:
        return float(stdtrit(n - 1, 0.975)) * s * math.sqrt(1 / n + 1 / (published.runs or 1))
    m = published.runs or 1
    own, other = s**2 / n, published.deviation**2 / m
    if own + other == 0:
        return 0.0
    freedom = (own + other) ** 2 / (own**2 / (n - 1) + other**2 / (m - 1))
    return float(stdtrit(freedom, 0.975)) * math.sqrt(own + other)


def resolution_of_share(percent: float, samples: int) -> float:
    """How far a share, in percent, of `samples` test samples can be off by their number alone: half of the 95 %
    interval of a binomial share."""
    share = min(max(percent / 100, 0.0), 1.0)
    return 100 * 1.96 * math.sqrt(share * (1 - share) / samples)
