"""Data sets as tasks of one trained net: how far they are apart, and which finished run is the best expert for each."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from locallearn.analysis.readout import features, linear_accuracy
from locallearn.analysis.task2vec import distances, embedding
from locallearn.config.targets import instantiate
from locallearn.data.normalise import Normalisation, Normaliser
from locallearn.data.source import PIXELS, DataSource
from locallearn.data.split import balanced
from locallearn.errors import UserError
from locallearn.models import BlockModel
from locallearn.runs.folder import RunFolder
from locallearn.seeds import generator, stream
from locallearn.task import CLASSES, SAMPLE, Classification
from locallearn.training.later import NOT_ASKED
from locallearn.training.saved import load, saved_experiment, task_of
from locallearn.training.task_information import Task, TaskDistances, information_distances

TEST = 2000
"""Test samples by which an expert is judged, at most."""
CPU = torch.device("cpu")
NOT_READ = (*PIXELS, "smoothing", "class_weights", "normalise", "deficit_from", "deficit_until")
"""Options of a set that say how it is trained on."""


@dataclass(frozen=True)
class RawTask:
    """Samples of a set as they are stored, and their labels: of the training part, and of the test part."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Network:
    """The frozen net of a run and how it takes its inputs."""

    run: Path
    model: BlockModel
    normaliser: Normaliser | None
    data: Mapping[str, Any]
    seed: int

    @property
    def body(self) -> nn.Module:
        return nn.Sequential(*self.model.units)

    def prepared(self, samples: Tensor) -> Tensor:
        """Stored samples [N, ...] as inputs of the net."""
        x = samples if self.normaliser is None or samples.dtype != torch.uint8 else self.normaliser(samples)
        return x.to(next(self.model.parameters()).dtype)


@dataclass(frozen=True)
class Expert:
    """For one task, by the name of a run: the distance from its task, and its accuracy with a new head."""

    distance: dict[str, float]
    accuracy: dict[str, float]
    chance: float

    @property
    def chosen(self) -> str:
        return min(self.distance, key=self.distance.__getitem__)

    @property
    def best(self) -> str:
        return max(self.accuracy, key=self.accuracy.__getitem__)

    @property
    def excess(self) -> float:
        """How much larger the error of the chosen one is than the least error, as a share of the least."""
        least = 1 - self.accuracy[self.best]
        return (1 - self.accuracy[self.chosen] - least) / least if least else 0.0


@dataclass(frozen=True)
class ComparedTasks:
    """Tasks [n] by name: their embeddings, distances [n, n] (see `analysis.task2vec.distances`), distances by
    definition, if they were asked for, and the best experts, if there were any."""

    names: list[str]
    samples: int
    embeddings: list[Tensor]
    symmetric: Tensor
    asymmetric: Tensor
    information: TaskDistances | None
    experts: dict[str, Expert]


def compare_tasks(
    run: str | Path,
    sets: Mapping[str, Mapping[str, Any]],
    allow: list[str],
    experts: Sequence[str | Path] = (),
    information: bool = False,
    *,
    samples: int,
    labels: int,
    beta: float,
    steps: int,
    seed: int,
) -> ComparedTasks:
    """Embed each of the sets (their configurations by name) by the net of a run, find the best of the `experts` for
    each, and with `information` measure the distances by definition; see `cli.tasks.TasksOptions`. Raises UserError."""
    network = _network(run, allow)
    raw = {name: _raw(name, config, network, samples, allow) for name, config in sets.items()}
    candidates = {path: _network(path, allow) for path in experts}
    own = {str(p): _raw(f"the set of {p}", dict(c.data), network, samples, allow) for p, c in candidates.items()}
    count = min(len(task.train[1]) for task in [*raw.values(), *own.values()])
    tasks = {name: _balanced(network, task, count) for name, task in (raw | own).items()}
    embeddings = {
        name: embedding(network.body, *task, generator(seed, "task2vec")).double() for name, task in tasks.items()
    }
    symmetric, asymmetric = distances([embeddings[name] for name in sets])
    by_definition = None
    if information:
        body = _fresh(network.body, seed)
        by_definition = information_distances(body, [tasks[name] for name in sets], beta, steps, seed)
    everything = [*embeddings]
    away = distances([*embeddings.values()])[1]
    found = {}
    for name in sets if experts else ():
        at = everything.index(name)
        distance = {path: float(away[everything.index(path), at]) for path in own}
        accuracy = {str(path): _with_new_head(net, raw[name], labels, seed) for path, net in candidates.items()}
        truth = raw[name].test[1]
        found[name] = Expert(distance, accuracy, float(torch.bincount(truth).max() / len(truth)))
    return ComparedTasks(list(sets), count, [embeddings[n] for n in sets], symmetric, asymmetric, by_definition, found)


def _network(run: str | Path, allow: list[str]) -> Network:
    folder = RunFolder.open(Path(run))
    exp, manifest = saved_experiment(folder, allow, changes=NOT_ASKED)
    if task_of(manifest) is not CLASSES and not isinstance(task_of(manifest), Classification):
        raise UserError(
            f"tasks embeds tasks with classes, but {run} was trained for {task_of(manifest).wanted}: give another run"
        )
    if manifest.get("form", SAMPLE) != SAMPLE or "graph" in exp.model.asks:
        raise UserError(f"tasks needs a net that answers once for each sample, but {run} has another: give another run")
    numbers = manifest.get("normalisation")
    normaliser = Normaliser.of(Normalisation(**numbers), CPU) if numbers else None
    return Network(folder.path, load(run, allow), normaliser, exp.config["data"], exp.settings.seed)


def _raw(name: str, config: Mapping[str, Any], network: Network, samples: int, allow: list[str]) -> RawTask:
    """At most `samples` training samples of a set, class by class, under its deficit, and test samples."""
    source = instantiate(config, "data", allow)
    if not isinstance(source, DataSource):
        raise UserError(f"tasks compares sets of samples with a class each, but {name} is not such a set")
    data = source.load(network.seed, CPU)
    if not isinstance(data.task, Classification) or data.graph is not None:
        raise UserError(f"tasks compares sets of samples with a class each, but {name} is not such a set")
    if tuple(data.image) != tuple(network.model.image):
        raise UserError(
            f"{name} has inputs of {_sizes(data.image)}, but the net of {network.run} reads "
            f"{_sizes(network.model.image)}: give sets of that shape, or another run"
        )
    known = (data.train.labels >= 0).nonzero().flatten()
    kept = known[balanced(data.train.labels[known], min(samples, len(known)), generator(network.seed, "tasks"))]
    (train,) = data.train.at(kept).take(torch.arange(len(kept)), len(kept))
    if data.deficit.kind:
        train = data.deficit.apply(*train, len(data.classes), network.seed, 0, 0)
    places = torch.randperm(len(data.test), generator=generator(0, "tasks"))[:TEST]
    (test,) = data.test.take(places, len(places))
    return RawTask(train, test)


def _balanced(network: Network, task: RawTask, count: int) -> Task:
    samples, labels = task.train
    kept = balanced(labels, count, generator(network.seed, "tasks", "equal"))
    return network.prepared(samples[kept]), labels[kept]


def _with_new_head(network: Network, task: RawTask, labels: int, seed: int) -> float:
    """Test accuracy of a linear classifier on the frozen features, fitted to at most `labels` labels."""
    samples, y = task.train
    few = balanced(y, min(labels, len(y)), generator(seed, "tasks", "few"))
    parts = [(network.prepared(x), t) for x, t in ((samples[few], y[few]), task.test)]
    (train, own), (test, truth) = (features([part], lambda x: [network.body.eval()(x)])[0] for part in parts)
    return linear_accuracy(train, own, test, truth)


def _fresh(body: nn.Module, seed: int) -> nn.Module:
    """A net like this one that has learned nothing, with PyTorch's initialisation."""
    fresh = copy.deepcopy(body)
    with stream(seed, "tasks", "fresh"):
        for module in fresh.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    return fresh


def _sizes(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
