"""A traced module as a line of operations, and where a cut may go through it.

A cut may go where exactly one tensor crosses: not beside a residual branch, not between two uses of one weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from torch import Tensor, fx, nn

from locallearn.analysis.quiet import undisturbed
from locallearn.errors import unknown
from locallearn.inputs import Inputs
from locallearn.models.axes import Axes, usual
from locallearn.models.trace import trace

AXES = ("channels_first", "channels_last")
MOST_DIMENSIONS = 5  # [B, C, D, H, W]


class Flow:
    """A traced module as a line of nodes: what crosses each position, and where a cut may go.

    Position i is the gap behind node i. `bounds` maps the only value that crosses a gap to the first such position;
    `unknown` has those where a cut could go if it were known which axis holds the features.
    `axes` knows which axis of a value holds its features, unless `asked` says so (see `as_blocks`).
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        sample: Tensor,
        asked: str | Mapping[str, str] | None = None,
        inputs: Inputs | None = None,
    ) -> None:
        self.module, self.asked = module, asked
        for word in [asked] if isinstance(asked, str) else (asked or {}).values():
            if word not in AXES:
                raise unknown("axes", word, AXES)
        self.tracer, self.graph = trace(module, name, inputs)
        self.nodes = list(self.graph.nodes)
        self.at = {node: i for i, node in enumerate(self.nodes)}
        self.last = {node: max((self.at[user] for user in node.users), default=-1) for node in self.nodes}
        self.image, self.logits = self.nodes[0], self.nodes[-1].args[0]
        self.axes = Axes()
        self.values, self.overwritten = self._run(sample)
        self.tied = self._tied()
        self.bounds: dict[fx.Node, int] = {}
        self.unknown: dict[fx.Node, int] = {}
        for i in range(len(self.nodes) - 1):
            alone = self.crossing(i)
            if len(alone) == 1 and not self.tied_at(i) and self._packet(alone[0]):
                (self.unknown if self.axis(alone[0]) is None else self.bounds).setdefault(alone[0], i)

    def crossing(self, i: int) -> list[fx.Node]:
        """The values that are made up to position i and needed behind it. Weights can be read anywhere."""
        return [node for node in self.nodes[: i + 1] if node.op != "get_attr" and self.last[node] > i]

    def between(self, before: fx.Node, after: fx.Node) -> list[fx.Node]:
        """The nodes from behind the bound `before` (or the image) up to the bound `after` (or the logits), without
        reads of attributes, which every piece makes for itself."""
        first = self.bounds[before] if before in self.bounds else self.at[before]
        last = self.bounds[after] if after in self.bounds else len(self.nodes) - 2
        return [node for node in self.nodes[first + 1 : last + 1] if node.op != "get_attr"]

    def paths(self, node: fx.Node) -> list[str]:
        """The submodules that are called once and return this value."""
        return [path for path, calls in self.tracer.calls.items() if len(calls) == 1 and calls[0].value is node]

    def weights(self, node: fx.Node) -> list[Tensor]:
        """The parameters and buffers that a node reads."""
        if node.op == "call_module":
            module = self.module.get_submodule(str(node.target))
            return [*module.parameters(), *module.buffers()]
        values = [attrgetter(str(n.target))(self.module) for n in node.all_input_nodes if n.op == "get_attr"]
        return [value for value in values if isinstance(value, Tensor)]

    def tied_at(self, i: int) -> bool:
        """Whether some weight is used on both sides of position i: it could not belong to one block."""
        return any(first <= i < last for first, last in self.tied)

    def _tied(self) -> list[tuple[int, int]]:
        uses: dict[int, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for weight in self.weights(node):
                uses.setdefault(id(weight), []).append(i)
        return [(min(places), max(places)) for places in uses.values() if len(places) > 1]

    def _packet(self, node: fx.Node) -> bool:
        """Whether a node's value can be handed from block to block: [B, ...] numbers, neither image nor logits."""
        value, batch = self.values.get(node), self.values[self.image].shape[0]
        if node is self.image or node is self.logits or value is None or value.dim() > MOST_DIMENSIONS:
            return False
        return value.is_floating_point() and value.shape[:1] == (batch,)

    def axis(self, node: fx.Node) -> int | None:
        """Which axis of a value holds its features, or None if nobody knows."""
        asked = self.asked
        if isinstance(asked, Mapping):
            asked = next((asked[path] for path in self.paths(node) if path in asked), None)
        if asked is None:
            return self.axes.of(self.values[node])
        return 1 if asked == AXES[0] else self.values[node].dim() - 1

    def turn(self, node: fx.Node) -> tuple[int, int] | None:
        """The axis of a value's features, and the one where blocks expect it; None if it is there."""
        axis, expected = self.axis(node), usual(self.values[node].dim())
        return None if axis is None or axis == expected else (axis, expected)

    def _run(self, sample: Tensor) -> tuple[dict[fx.Node, Tensor], set[fx.Node]]:
        """The value of each node that is a tensor, and the nodes whose value a later node overwrites in place."""
        line = _Recorder(fx.GraphModule(self.module, self.graph))
        with undisturbed(self.module):
            line.module.train()  # an in-place dropout does nothing in evaluation
            with self.axes:
                line.run(sample)
        changed = {node for node, (value, version) in line.seen.items() if value._version != version}
        return {node: value for node, (value, _) in line.seen.items()}, changed


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps every tensor with the version that it had when it was made."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.seen: dict[fx.Node, tuple[Tensor, int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op != "output":
            self.seen[n] = (value, value._version)
        return value
