"""The least loss of a model that may hold a given number of nats of its training set (Vereshchagin & Vitanyi 2004; for
noisy weights Achille et al. 2019, arXiv 1904.03292)."""

from __future__ import annotations

from collections.abc import Iterable


def structure_function(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners, from the left, of S(t) = least loss of a q with KL(q || p) <= t, as the given q show it.

    Args:
        points: (KL, loss) of each q, all in the same units.

    Returns: those on the lower convex hull, up to the least loss; beyond the last one S stays as it is. Between two the
    line holds: a mixture of two q has the mean of their losses, and at most the mean of their KL. An upper bound of S.
    """
    hull: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if hull and y >= hull[-1][1]:
            continue  # more nats for no less loss
        while len(hull) > 1 and _above(hull[-2], hull[-1], (x, y)):
            hull.pop()
        hull.append((x, y))
    return hull


def _above(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether b, between a and c, lies on or above the line through them."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])
