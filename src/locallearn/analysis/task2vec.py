"""Tasks as vectors: the Fisher information of a probe network whose head was fitted to the task (Task2Vec)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.analysis.fisher import fisher_diagonal
from locallearn.analysis.quiet import evaluating
from locallearn.analysis.readout import linear_head, pooled
from locallearn.errors import UserError

BATCH = 256
SHARE = 0.15
"""Of the distance to the trivial task, in `asymmetric_distance`."""


class Pooled(nn.Module):
    """Maps [B, C, H, W] averaged over space, sequences [B, T, C] over time; vectors [B, C] as they are."""

    def forward(self, h: Tensor) -> Tensor:
        return pooled(h)


def embedding(
    network: nn.Module, inputs: Tensor, labels: Tensor, random: torch.Generator, *, joint: bool = False
) -> Tensor:
    """The embedding [D] of a classification task by a probe network: the diagonal Fisher information of its weights
    with a head fitted to the task, averaged over the weights of each filter or output unit (Achille et al. 2019, arXiv
    1902.03545). D is the number of filters of all weight tensors; biases and normalisation are left out.

    The authors' code squares the gradient of a minibatch's mean loss and not that of each sample: this is smaller by
    about the size of the minibatch, and has cross terms between its samples. The distance between tasks hardly depends
    on the factor.

    Embeddings can be compared only if they are of the same network with the same weights.

    Args:
        network: [B, ...] -> features [B, C], [B, C, H, W] or [B, T, C], without its own head; nothing in it changes.
        inputs: of the task, [N, ...].
        labels: of at least two classes, [N]; samples with a label below 0 are left out.
        random: a CPU generator for the labels that are drawn from the fitted head.
        joint: the network reads all inputs at once (a graph).
    """
    known = labels >= 0
    if len(labels[known].unique()) < 2:
        raise UserError("a task needs labels of at least 2 classes; give more samples")
    if not joint:
        inputs, labels, known = inputs[known], labels[known], known[known]
    body = nn.Sequential(network, Pooled())
    with torch.no_grad(), evaluating(network):
        features = torch.cat([body(x) for x in inputs.split(len(inputs) if joint else BATCH)])
    model = nn.Sequential(body, linear_head(features[known], labels[known]))
    nodes = known.nonzero().squeeze(1) if joint else None
    diagonal = fisher_diagonal(model, inputs, random, nodes=nodes)
    filters = [d.flatten(1).mean(dim=1) for name, d in diagonal.items() if name.startswith("0.") and d.dim() > 1]
    if not filters:
        raise UserError("a probe network needs weights with filters or output units: this one has none; give another")
    return torch.cat(filters)


def task_distance(a: Tensor, b: Tensor) -> float:
    """The symmetric distance between two tasks by their embeddings [D], in [0, 1]: 1 - cos(a / (a + b), b / (a + b)),
    in which filters count alike however large their Fisher information. Those that are 0 in both are left out."""
    if a.shape != b.shape or a.dim() != 1:
        raise UserError(
            f"embeddings of shape {list(a.shape)} and {list(b.shape)} are not of one probe network; "
            "embed both tasks with the same one"
        )
    a, b = a.double(), b.double()
    total = a + b
    used = total > 0
    if not used.any():
        return 0.0
    cosine = F.cosine_similarity(a[used] / total[used], b[used] / total[used], dim=0)
    return max(0.0, 1 - float(cosine))


def task_norm(embedded: Tensor) -> float:
    """The L1 norm of an embedding, which grows with the difficulty of the task (Achille et al. 2019)."""
    return float(embedded.double().abs().sum())


def trivial_task(embeddings: Sequence[Tensor]) -> Tensor:
    """The task that asks nothing of any filter in particular: the same information in each of them, here the mean over
    all filters and embeddings [D] (the authors' code takes its prior's)."""
    return torch.full_like(embeddings[0], float(torch.stack(list(embeddings)).double().mean()))


def asymmetric_distance(a: Tensor, b: Tensor, trivial: Tensor, share: float = SHARE) -> float:
    """From the task `a` [D], of which there is a solution, to the task `b` [D]: `task_distance` less `share` of the
    distance between `a` and the trivial task, since much can be taken over from a rich task; may be negative."""
    return task_distance(a, b) - share * task_distance(a, trivial)


def distances(embeddings: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Of n embeddings [D] the distances [n, n], symmetric, and asymmetric from the task of the row to that of the
    column; both 0 on the diagonal."""
    n, trivial = len(embeddings), trivial_task(embeddings)
    symmetric, asymmetric = torch.zeros(2, n, n, dtype=torch.float64)
    for i, a in enumerate(embeddings):
        for j, b in enumerate(embeddings):
            if i != j:
                symmetric[i, j] = task_distance(a, b)
                asymmetric[i, j] = asymmetric_distance(a, b, trivial)
    return symmetric, asymmetric
