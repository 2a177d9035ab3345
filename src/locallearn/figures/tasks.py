"""Distances between tasks as a picture: the matrix, the tree that joins the nearest first, and the norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from locallearn.figures.style import COLOURS, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def tree(distances: Sequence[Sequence[float]]) -> np.ndarray:
    """Complete linkage of symmetric distances [n, n], neighbours in the order that puts near ones side by side: SciPy's
    linkage matrix [n - 1, 4]."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    return linkage(squareform(np.asarray(distances), checks=False), method="complete", optimal_ordering=True)


def draw(names: Sequence[str], distances: Sequence[Sequence[float]], norms: Sequence[float]) -> Figure:
    """n tasks with symmetric distances [n, n] and norms of their embeddings [n], in the order of the tree."""
    from scipy.cluster.hierarchy import dendrogram

    joined = dendrogram(tree(distances), no_plot=True)
    order = joined["leaves"]
    ordered = [names[k] for k in order]
    height = max(1.8, 0.22 * len(names) + 0.6)
    figure, (matrix, branches, bars) = panels(3, width=max(2.8, height + 0.6), height=height)
    shown = matrix.imshow(np.asarray(distances)[np.ix_(order, order)], cmap="viridis_r")
    matrix.set(xticks=[], title="symmetric distance")
    figure.colorbar(shown, ax=matrix)
    for heights, places in zip(joined["dcoord"], joined["icoord"], strict=True):
        branches.plot(heights, [(place - 5) / 10 for place in places], color=COLOURS[0])  # leaves are at 5, 15, ...
    branches.set(xlabel="distance at which they join", xlim=(0, None))
    bars.barh(range(len(names)), [norms[k] for k in order], color=COLOURS[0])
    bars.set_xlabel("norm of the embedding [nats²]")
    for axes in (matrix, branches, bars):
        axes.set_yticks(range(len(names)), ordered if axes is matrix else [""] * len(names))
        axes.set_ylim(len(names) - 0.5, -0.5)
    matrix.grid(False)
    return figure
