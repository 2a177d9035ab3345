"""The structure function against the convex hull of scipy and against mixtures by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.spatial import ConvexHull

from locallearn.analysis.structure_function import structure_function


@pytest.mark.parametrize("seed", range(5))
def test_corners_are_those_of_the_hull_and_mixtures_never_lie_below(seed):
    draw = np.random.default_rng(seed)
    x = draw.exponential(size=40)
    points = np.stack([x, 1 / (1 + x) + draw.exponential(size=40) / 4], 1)
    corners = structure_function(map(tuple, points))
    on_hull = {tuple(points[k]) for k in ConvexHull(points).vertices}
    assert set(corners) <= on_hull
    assert corners[0] == tuple(points[points[:, 0].argmin()])
    assert corners[-1][1] == points[:, 1].min()
    for t in np.linspace(points[:, 0].min(), 5, 30):
        mixtures = [p[1] for p in points if p[0] <= t]
        for a, b in itertools.combinations(points, 2):
            low, high = sorted((a, b), key=lambda p: p[0])
            if low[0] <= t < high[0]:
                mixtures.append(low[1] + (high[1] - low[1]) * (t - low[0]) / (high[0] - low[0]))
        assert np.interp(t, *zip(*corners, strict=True)) == pytest.approx(min(mixtures), abs=1e-12)


def test_what_one_line_holds_and_what_costs_more_for_nothing():
    assert structure_function([(0, 2), (1, 1), (2, 0), (3, 0.5)]) == [(0, 2), (2, 0)]
    assert structure_function([(1, 1), (1, 0.5), (2, 0.5)]) == [(1, 0.5)]
    assert structure_function([]) == []
