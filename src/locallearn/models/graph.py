"""A graph convolutional net. Its samples are the nodes of one graph, so every batch is all of them."""

from __future__ import annotations

import warnings
from typing import Annotated, Any

from annotated_types import Ge, Interval
from torch import Tensor, nn

from locallearn.errors import UserError
from locallearn.models.base import BlockModel, Size
from locallearn.options import within_ranges


class GraphLayer(nn.Module):
    """[N, inputs] -> [N, outputs]: dropout, A W x + b, ReLU, with A = D^-1/2 (edges + self-loops) D^-1/2.

    edges, weights   A, int64 [2, E] and float32 [E], shared by all layers and not part of the state
    """

    edges: Tensor
    weights: Tensor

    def __init__(self, conv: nn.Module, edges: Tensor, weights: Tensor, dropout: float, activation: nn.Module) -> None:
        super().__init__()
        self.nodes = int(edges.max()) + 1
        self.dropout, self.conv, self.activation = nn.Dropout(dropout), conv, activation
        self.register_buffer("edges", edges, persistent=False)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) != self.nodes:
            raise UserError(f"gcn was built for a graph of {self.nodes} nodes, but this batch has {len(x)}; give all")
        return self.activation(self.conv(self.dropout(x), self.edges, self.weights))


@within_ranges("model")
def gcn(
    image: Size,
    classes: int,
    graph: Tensor | None = None,
    *,
    width: Annotated[int, Ge(1)] = 16,
    depth: Annotated[int, Ge(2)] = 3,
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.5,
) -> BlockModel:
    """`depth` graph convolutions (Kipf & Welling, 2017), the last of which gives the classes: it is the head, so there
    are `depth` - 1 units. Dropout comes before each, as in the paper. Uses torch_geometric's GCNConv.

    graph  directed edges, int64 [2, E], which the data bring: both directions of an undirected one. Its largest index
           is the last node
    """
    if graph is None or len(image) != 1:
        raise UserError("gcn reads the nodes of a graph, but the data have none; use data=cora, or another model")
    conv, normalised = _torch_geometric()
    edges, weights = normalised(graph, num_nodes=int(graph.max()) + 1)
    sizes = [image[0], *[width] * (depth - 1)]
    layers = {
        f"gcn{i + 1}": GraphLayer(conv(n, width), edges, weights, dropout, nn.ReLU()) for i, n in enumerate(sizes[:-1])
    }
    head = GraphLayer(conv(width, classes), edges, weights, dropout, nn.Identity())
    model = BlockModel(layers, head, image=image, classes=classes, name="gcn")
    model.samples = head.nodes
    return model


def _torch_geometric() -> tuple[Any, Any]:
    """(inputs, outputs) -> a GCNConv whose product is an ordinary linear layer, which feedback alignment can replace;
    and the function that normalises edges."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it uses torch.jit.script
            from torch_geometric.nn import GCNConv
            from torch_geometric.nn.conv.gcn_conv import gcn_norm
    except ImportError as error:
        raise UserError("model=gcn needs torch_geometric: pip install 'locallearn[graph]'") from error

    def conv(inputs: int, outputs: int) -> nn.Module:
        layer = GCNConv(inputs, outputs, normalize=False)
        layer.lin = nn.Linear(inputs, outputs, bias=False)
        nn.init.xavier_uniform_(layer.lin.weight)
        return layer

    return conv, gcn_norm
