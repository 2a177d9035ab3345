"""The task of a run as a vector, seen by the learner's own model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge
from torch import Tensor, nn

from locallearn import figures
from locallearn.analysis.task2vec import embedding, task_distance, task_norm
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.probes.base import Moment, Probe, Row, Seen
from locallearn.probes.depth import sample
from locallearn.seeds import generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Task2Vec(Probe):
    """Task2Vec embedding of the run's task (Achille et al. 2019, arXiv 1902.03545), with the units of the learner's
    model as the probe network and a linear head fitted to their pooled features; equations in `analysis.task2vec`.

    task_norm   L1 norm of the embedding
    filters     its length

    The embedding [filters] is kept in the arrays of the look. `analysis.task2vec.task_distance` compares tasks that
    were embedded by the same network with the same weights: the initial ones of runs with one seed, or one trained
    model.

    samples  training samples; of a graph, all that have a label
    """

    samples: Annotated[int, Ge(2)] = 512

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        inputs, labels = sample(data, "train", self.samples)
        random = generator(data.seed, "task2vec")
        found = embedding(
            nn.Sequential(*learner.model.units),
            learner.prepare(inputs),
            labels,
            random,
            joint=learner.model.samples is not None,
        )
        return Seen([{"task_norm": task_norm(found), "filters": len(found)}], {"embedding": found})

    def draw(self, rows: Sequence[Row], arrays: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Figure]:
        figure, (sizes, moved, filters) = figures.panels(columns=3, width=3.2)
        epochs = [int(row["epoch"] or 0) for row in rows]
        sizes.plot(epochs, [float(row["task_norm"] or 0) for row in rows], ".-", color=figures.COLOURS[0])
        sizes.set(yscale="log", ylabel="L1 norm of the embedding (nats²)")
        looks = sorted(arrays)
        last = arrays[looks[-1]]["embedding"]
        distances = [task_distance(arrays[epoch]["embedding"], last) for epoch in looks]
        moved.plot(looks, distances, ".-", color=figures.COLOURS[0])
        moved.set(ylabel="distance to the last embedding", ylim=(0, None))
        for axes in (sizes, moved):
            figures.epoch_axis(axes, epochs)
        filters.plot(last.cpu().numpy(), ".", markersize=2, color=figures.COLOURS[0])
        filters.set(
            yscale="log", xlabel="filter, from the input upward", ylabel=f"Fisher information, epoch {looks[-1]}"
        )
        return {"task2vec": figure}
