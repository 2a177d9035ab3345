"""How far two tasks are apart by definition: what the weights must learn for one that they do not know from the other.

I(D; w) is the KL divergence, in nats, between the weights' distribution after training on the task D and their prior,
at a fixed price beta (Achille, Mbeng & Soatto 2018, arXiv 1810.02440; Achille, Paolini, Mbeng & Soatto 2019):

    d(1 -> 2) = I(D1 D2; w) - I(D1; w)

where D1 D2 are both sets, a body for both and a head for each. d(1 -> 2) - d(2 -> 1) = I(D2; w) - I(D1; w), so what is
not symmetric is one number for each task; what they share is I(D1; w) + I(D2; w) - I(D1 D2; w).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.analysis.task2vec import Pooled
from locallearn.models import BlockModel
from locallearn.models.noisy_weights import GaussianWeights, NoisyWeights
from locallearn.seeds import generator, stream

Task: TypeAlias = tuple[Tensor, Tensor]
"""Inputs [N, ...] and labels [N] from 0 on."""
BATCH = 100
RATE = 1e-3


class TaskInformation(NamedTuple):
    """What was learned of a task, or of several at once.

    body   KL(q || p) in nats of the weights that the tasks share
    heads  of their heads
    loss   mean cross-entropy in nats of the noisy net on the samples that it was trained on
    """

    body: float
    heads: float
    loss: float


def information(body: nn.Module, tasks: Sequence[Task], beta: float, steps: int, seed: int) -> TaskInformation:
    """Train normal weights around those of `body`, which is left as it is and is the centre of the prior, and a linear
    head for each task on all of them at once.

    Args:
        body: [B, ...] -> features [B, C], [B, C, H, W] or [B, T, C]; its linear layers and convolutions become noisy.
        beta: the price of a nat of the weights where the loss is a sum over samples.
        steps: of Adam at a rate of 1e-3, batches of 100; the price rises over the first 30 %.
        seed: of the heads, the batches and the noise.

    Raises UserError where nothing can be noisy.
    """
    inputs = torch.cat([x for x, _ in tasks])
    labels, first, width = _side_by_side(tasks)
    with stream(seed, "task information"), torch.enable_grad():
        units, shared = copy.deepcopy(body).train(), Pooled()
        with torch.no_grad():
            features = shared(units(inputs[:2])).shape[1]
        head = nn.Sequential(shared, nn.Linear(features, width)).to(inputs)
        model = BlockModel([units], head, image=tuple(inputs.shape[1:]), classes=width, name="the body", names=["body"])
        noisy = [m for m in NoisyWeights(beta=beta).applied(model).train().modules() if isinstance(m, GaussianWeights)]
        for layer in noisy:
            layer.samples = len(inputs)
        optimizer = torch.optim.Adam(model.parameters(), RATE)
        draws = generator(seed, "task information", "batches")
        for step in range(steps):
            batch = torch.randint(len(inputs), (min(BATCH, len(inputs)),), generator=draws)
            for layer in noisy:
                layer.progress = step / steps
                layer.forget()
            optimizer.zero_grad()
            _loss(model(inputs[batch]), labels[batch], *(edge[batch] for edge in first)).backward()
            optimizer.step()
        with torch.no_grad():
            loss = float(_loss(model(inputs), labels, *first))
            nats = {layer.name: float(layer.nats()) for layer in noisy}
    heads = sum(n for name, n in nats.items() if name.startswith("head"))
    return TaskInformation(sum(nats.values()) - heads, heads, loss)


def _side_by_side(tasks: Sequence[Task]) -> tuple[Tensor, tuple[Tensor, Tensor], int]:
    """Heads as parts of one layer: labels [N] as outputs of it, the first and the last output [N] of each sample's own
    head, and how many outputs there are."""
    labels, begins, ends, width = [], [], [], 0
    for _, own in tasks:
        classes = int(own.max()) + 1
        labels.append(own + width)
        begins.append(torch.full_like(own, width))
        width += classes
        ends.append(torch.full_like(own, width))
    return torch.cat(labels), (torch.cat(begins), torch.cat(ends)), width


def _loss(logits: Tensor, labels: Tensor, begin: Tensor, end: Tensor) -> Tensor:
    """Mean cross-entropy of logits [B, width], of which each sample reads those of its own head."""
    place = torch.arange(logits.shape[1])
    other = (place < begin[:, None]) | (place >= end[:, None])
    return F.cross_entropy(logits.masked_fill(other, -torch.inf), labels)


@dataclass(frozen=True)
class TaskDistances:
    """Of n tasks, in nats: `alone`, I(D; w) of each, and `away` [n, n], d(i -> j) from the row to the column."""

    alone: list[TaskInformation]
    away: Tensor


def information_distances(body: nn.Module, tasks: Sequence[Task], beta: float, steps: int, seed: int) -> TaskDistances:
    """d(i -> j) of every pair, by the information in the body; see `information` for the arguments. It grows with the
    number of samples: give as many of each task. Trains n (n + 1) / 2 nets."""
    alone = [information(body, [task], beta, steps, seed) for task in tasks]
    away = torch.zeros(len(tasks), len(tasks), dtype=torch.float64)
    for i, one in enumerate(tasks):
        for j in range(i):
            both = information(body, [one, tasks[j]], beta, steps, seed).body
            away[i, j], away[j, i] = both - alone[i].body, both - alone[j].body
    return TaskDistances(alone, away)
