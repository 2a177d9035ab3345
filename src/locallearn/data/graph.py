"""One graph whose nodes are the samples: every batch is the whole graph, and labels that are not its own are hidden."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from locallearn.data.augment import Augment
from locallearn.data.dataset import Data, Split
from locallearn.data.store import Memory

HIDDEN = -100
"""The label of a node that is not asked for: below 0, as of every sample without one."""


class GraphData(Data):
    """`Data` of one graph: inputs are all nodes [N, D], labels [N] with -100 outside the split in question.

    graph  directed edges, int64 [2, E] on the device: a model whose builder declares `graph` gets them
    An epoch is one step, whatever the batch size; nothing is shuffled.
    """

    def __init__(
        self,
        name: str,
        classes: tuple[str, ...],
        nodes: Memory,
        graph: Tensor,
        splits: tuple[Split, Split, Split],
        seed: int,
    ) -> None:
        super().__init__(name, classes, splits, seed, Augment(), None)
        self.nodes, self.graph = nodes, graph

    def batch(self, batch_size: int) -> int:
        return len(self.nodes)

    def steps(self, batch_size: int) -> int:
        return 1

    def batches(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The one step of an epoch: all nodes, with the training labels."""
        if not start:
            yield from self.evaluation(self.train, batch_size)

    def evaluation(self, split: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All nodes, with the labels of one split."""
        labels = torch.full((len(self.nodes),), HIDDEN, device=split.labels.device)
        labels[split.index.to(labels.device)] = split.labels
        yield self.nodes.samples, labels
