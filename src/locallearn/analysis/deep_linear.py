"""How a product of matrices learns: the exact solutions of Saxe, McClelland & Ganguli 2014 (arXiv 1312.6120).

For whitened inputs, the loss 1/2 E|y - W_n ... W_1 x|^2, a small balanced start along the singular vectors of E[y x^T]
and a small rate, every singular value s of that matrix is learned by itself: the strength u of its mode obeys

    tau du/dt = n u^(2 - 2/n) (s - u),  tau = 1 / rate, t in steps

so that strong modes are learned first, and a deep net waits, then learns all at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from locallearn.errors import UserError


def strengths(s: float, start: float, times: Sequence[float], matrices: int = 2) -> list[float]:
    """u at `times` in units of tau, begun at u = `start`; in closed form for one and two matrices, else integrated.

    Raises UserError for what does not grow.
    """
    earliest = min(times, default=0.0)
    if not (s > 0 and start > 0 and matrices >= 1 and earliest >= 0):
        raise UserError(
            f"s={s}, start={start}, matrices={matrices}, times from {earliest}: a mode needs s and start above 0, at "
            "least one matrix, and times of at least 0"
        )
    if matrices == 1:
        return [s + (start - s) * math.exp(-t) for t in times]
    if matrices == 2:
        return [s / (1 + (s / start - 1) * math.exp(-2 * s * t)) for t in times]
    from scipy.integrate import solve_ivp

    def slope(t: float, u: np.ndarray) -> np.ndarray:
        return matrices * u ** (2 - 2 / matrices) * (s - u)

    ends = 0.0, max(times, default=0.0) or 1.0
    found = solve_ivp(slope, ends, [start], t_eval=sorted(times), method="LSODA", rtol=1e-10, atol=1e-12)
    by_time = dict(zip(sorted(times), found.y[0].tolist(), strict=True))
    return [by_time[t] for t in times]
