"""Cora: papers that cite each other. A graph, so all samples are seen at once and only some have a label."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Interval
from torch import Tensor

from locallearn.data.dataset import GraphData, Split
from locallearn.data.files import ALL_CHECKED, check_files
from locallearn.data.normalise import Normalisation
from locallearn.data.source import DataSource, Raw, RawSplit, require
from locallearn.data.split import noisy, stratified
from locallearn.data.store import Memory
from locallearn.errors import UserError
from locallearn.seeds import generator

FOLDER = "Cora/raw"
SUMS = {  # of github.com/kimiyoung/planetoid; the files are pickles: nothing opens them before they are checked
    "x": "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
    "tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
    "allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
    "y": "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
    "ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
    "ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
    "graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
    "test.index": "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
}
CLASSES = (
    *("Theory", "Reinforcement_Learning", "Genetic_Algorithms", "Neural_Networks"),
    *("Probabilistic_Methods", "Case_Based", "Rule_Learning"),
)
PUBLIC = 140


@dataclass(frozen=True)
class Cora(DataSource):
    """2,708 papers of 7 fields with 5,278 citations between them; a paper is its words, row-normalised float32 [1433].

    Yang, Cohen & Salakhutdinov 2016 (Planetoid): 140 nodes with a label, 20 of each class, 500 for validation, 1,000
    for test. Every step sees the whole graph. Needs torch_geometric, whose reader is used.

    labelled    training labels: 140 is Planetoid's split; another number draws them by the run's seed, class by class,
                from the 1,208 nodes that are neither for validation nor for test
    validation  0: the 500 nodes are fixed
    fraction, label_noise   of the training labels; `normalise` and augmentation are for pixels
    """

    name: ClassVar[str] = "cora"
    verified: ClassVar[str] = ALL_CHECKED

    validation: float = 0.0
    labelled: Annotated[int, Interval(ge=7, le=1208)] = PUBLIC

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.validation == 0, "validation", self.validation, "0, as the 500 validation nodes of Cora are fixed")

    def read(self, device: torch.device) -> Raw:
        """Planetoid's split, without the graph."""
        cora = self._read()
        train, validation, test = (RawSplit(Memory(cora.x[mask]), cora.y[mask]) for mask in _masks(cora))
        return Raw(CLASSES, train, test, validation)

    def load(self, seed: int, device: torch.device, normalisation: Normalisation | None = None) -> GraphData:
        cora = self._read()
        nodes = Memory(cora.x.to(device))
        self._augment(nodes)
        train, validation, test = (mask.nonzero().flatten() for mask in _masks(cora))
        if self.labelled != PUBLIC:
            pool = (~(cora.val_mask | cora.test_mask)).nonzero().flatten()
            train = pool[stratified(cora.y[pool], self.labelled, generator(seed, "labelled"))[0]]
        train = train[self._divide(cora.y[train], seed, 0.0)[0]]
        labels = cora.y[train]
        if self.label_noise:
            labels = noisy(labels, self.label_noise, len(CLASSES), generator(seed, "label_noise"))
        splits = (
            Split(nodes, train, labels.to(device)),
            Split(nodes, validation, cora.y[validation].to(device)),
            Split(nodes, test, cora.y[test].to(device)),
        )
        return GraphData(self.name, CLASSES, nodes, cora.edge_index.to(device), splits, seed)

    def _read(self) -> Any:
        """torch_geometric's Data with the features row-normalised. Raises UserError."""
        root = self.folder()
        sums = {f"{FOLDER}/ind.cora.{part}": sha256 for part, sha256 in SUMS.items()}
        check_files(self.name, root, sums, f"the ind.cora.* files of github.com/kimiyoung/planetoid as {FOLDER}/*")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                from torch_geometric.io import read_planetoid_data
            except ImportError as error:
                raise UserError("data=cora needs torch_geometric: pip install 'locallearn[graph]'") from error
            # Not through the class Planetoid, which writes into the user's folder.
            cora = read_planetoid_data(str(root / FOLDER), "cora")
        cora.x = cora.x / cora.x.sum(1, keepdim=True).clamp(min=1)
        return cora


def _masks(cora: Any) -> tuple[Tensor, Tensor, Tensor]:
    return cora.train_mask, cora.val_mask, cora.test_mask
