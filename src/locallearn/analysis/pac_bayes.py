"""What a training set guarantees of the error on unseen samples, for a net with noisy weights.

q is what was learned, p a prior that does not know the N samples, L a loss per sample in [0, 1], and KL = KL(q || p) in
nats. With probability 1 - delta over the training set, for every q at once,

    kl(L_train(q) || L_test(q)) <= (KL + ln(2 sqrt(N) / delta)) / N                          (Maurer 2004; Seeger 2002)
    L_test(q) <= (L_train(q) + lambda (KL + ln(1 / delta)) / N) / (1 - 1 / (2 lambda))       (McAllester 2013)

with lambda > 1/2 fixed in advance; the second holds for a loss in [0, most] with lambda most in place of lambda. Both
are about the noisy net, for i.i.d. samples; where settings were chosen on the same samples they promise nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from locallearn.errors import UserError

LAMBDAS = tuple(round(0.6 * 1.2**k, 4) for k in range(16))
"""Tried by `linear_bound`; together they cost ln 16 nats."""


def linear_bound(
    loss: float, nats: float, samples: int, delta: float = 0.05, most: float = 1.0, lambdas: Sequence[float] = LAMBDAS
) -> float:
    """The second bound, by the best of `lambdas`, each at delta over their count; at most `most`."""
    _check(loss, nats, samples, delta, most)
    cost = most * (nats + math.log(len(lambdas) / delta)) / samples
    return min(most, *((loss + each * cost) / (1 - 1 / (2 * each)) for each in lambdas))


def best_lambda(loss: float, nats: float, samples: int, delta: float = 0.05, most: float = 1.0) -> float:
    """The lambda for which the second bound is least; the bound holds for it only if it is chosen without the data."""
    cost = most * (nats + math.log(1 / delta)) / samples
    return (1 + math.sqrt(1 + 2 * loss / cost)) / 2


def kl_bound(loss: float, nats: float, samples: int, delta: float = 0.05) -> float:
    """The first bound, inverted."""
    _check(loss, nats, samples, delta, 1.0)
    return kl_inverse(loss, (nats + math.log(2 * math.sqrt(samples) / delta)) / samples)


def kl_inverse(p: float, limit: float) -> float:
    """The largest q in [p, 1] with kl(p || q) <= limit, for coins; by bisection to 1e-12."""
    low, high = p, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if divergence(p, middle) <= limit else (low, middle)
    return high


def divergence(p: float, q: float) -> float:
    """kl(p || q) in nats between coins."""
    if q in (0.0, 1.0):
        return 0.0 if p == q else math.inf
    return sum(a * math.log(a / b) for a, b in ((p, q), (1 - p, 1 - q)) if a)


def _check(loss: float, nats: float, samples: int, delta: float, most: float) -> None:
    if not (0 <= loss <= most and nats >= 0 and samples >= 1 and 0 < delta < 1):
        raise UserError(
            f"loss={loss}, nats={nats}, samples={samples}, delta={delta}: a bound needs a loss from 0 to {most}, "
            "nats of at least 0, at least one sample, and a delta between 0 and 1"
        )
