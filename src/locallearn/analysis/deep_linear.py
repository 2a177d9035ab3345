"""How a product of matrices learns: the exact solutions of Saxe, McClelland & Ganguli 2014 (arXiv 1312.6120).

For whitened inputs, the loss 1/2 E|y - W_n ... W_1 x|^2, a small balanced start along the singular vectors of E[y x^T]
and a small rate, every singular value s of that matrix is learned by itself: the strength u of its mode obeys

    tau du/dt = n u^(2 - 2/n) (s - u),  tau = 1 / rate, t in steps

so that strong modes are learned first, and a deep net waits, then learns all at once.

Two such products side by side, y = (A_D ... A_1 + B_D ... B_1) x, share each mode, and compete for it. Where one is
switched off for a while it may never catch up: a critical period (Kleinman, Achille & Soatto 2024). With a small
balanced start every matrix of a path has the strength p in a mode, the path K = p^D, and while both are on

    dp/dt = p^(D - 1) (s - K_a - K_b),  t in units of 1 / rate
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from locallearn.errors import UserError


def strengths(s: float, start: float, times: Sequence[float], matrices: int = 2) -> list[float]:
    """u at `times` in units of tau, begun at u = `start`; in closed form for one and two matrices, else integrated.

    Raises UserError for arguments with which nothing grows.
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


def pathways(
    s: float, start: float, times: Sequence[float], depth: int, off: tuple[float, float] = (0.0, 0.0)
) -> tuple[list[float], list[float]]:
    """The strengths K_a and K_b of two paths of `depth` matrices at ascending `times` in units of 1 / rate, of a mode
    of strength `s`; every matrix begins at `start`. The first path is off from the first to the second time of `off`:
    it adds nothing to the output, and does not learn.

    Raises UserError for arguments with which nothing grows.
    """
    first, last = off
    if not (s > 0 and start > 0 and depth >= 1 and 0 <= first <= last and list(times) == sorted(times) and times):
        raise UserError(
            f"s={s}, start={start}, depth={depth}, off={off}: two paths need s and start above 0, at least one matrix, "
            "ascending times, and a gap off of at least 0"
        )
    from scipy.integrate import solve_ivp

    def slope(t: float, p: np.ndarray, on: float) -> np.ndarray:
        heard = np.array([on, 1.0])
        return heard * p ** (depth - 1) * (s - heard @ p**depth)

    p = np.array([start, start])
    a: list[float] = []
    b: list[float] = []
    for on, begin, end in ((1.0, 0.0, first), (0.0, first, last), (1.0, last, max(last, times[-1]))):
        asked = [t for t in times if begin <= t < end or (t == end == times[-1] and len(a) < len(times))]
        if end > begin:
            found = solve_ivp(
                slope, (begin, end), p, t_eval=[*asked, *([end] if end not in asked else [])], args=(on,),
                method="LSODA", rtol=1e-10, atol=1e-14,
            )  # fmt: skip
            p = found.y[:, -1]
            a += (found.y[0, : len(asked)] ** depth).tolist()
            b += (found.y[1, : len(asked)] ** depth).tolist()
    return a, b
