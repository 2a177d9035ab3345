"""The task of a run as a vector, seen by the learner's own model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import nn

from locallearn import figures
from locallearn.analysis.task2vec import embedding, task_distance, task_norm
from locallearn.probes import CLASS_LABELS, Arrays, Data, Learner, Moment, Pictures, Probe, Row, Seen, sample
from locallearn.seeds import generator


@dataclass(frozen=True)
class Task2Vec(Probe):
    """Task2Vec embedding of the run's task (Achille et al. 2019, arXiv 1902.03545), with the units of the learner's
    model as the probe network and a linear head fitted to their pooled features; equations in `analysis.task2vec`.

    task_norm   L1 norm of the embedding
    filters     its length

    The embedding [filters] is kept in the arrays. `analysis.task2vec.task_distance` compares tasks that were embedded
    by one network with the same weights: the initial ones of runs with one seed, or one trained model.

    samples  training samples; of a graph, all that have a label
    """

    samples: Annotated[int, Ge(2)] = 512
    tasks = CLASS_LABELS

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        inputs, labels = sample(data, "train", self.samples)
        body = nn.Sequential(*learner.model.units)
        random = generator(data.seed, "task2vec")
        joint = learner.model.samples is not None
        vector = embedding(body, learner.prepare(inputs), labels, random, joint=joint)
        return Seen([{"task_norm": task_norm(vector), "filters": len(vector)}], {"embedding": vector})

    def draw(self, rows: Sequence[Row], arrays: Arrays) -> Pictures:
        figure, (sizes, moved, filters) = figures.panels(3)
        epochs = [row["epoch"] for row in rows]
        looks = sorted(arrays)
        last = arrays[looks[-1]]["embedding"]
        sizes.plot(epochs, [row["task_norm"] for row in rows], ".-")
        sizes.set(yscale="log", ylabel="L1 norm of the embedding (nats²)")
        moved.plot(looks, [task_distance(arrays[epoch]["embedding"], last) for epoch in looks], ".-")
        moved.set(ylabel="distance to the last embedding", ylim=(0, None))
        filters.plot(last.cpu().numpy(), ".", markersize=2)
        filters.set(yscale="log", xlabel="filter, from the input upward")
        filters.set_ylabel(f"Fisher information, epoch {looks[-1]}")
        for axes in (sizes, moved):
            figures.epoch_axis(axes, epochs)
        return {self.name: figure}
