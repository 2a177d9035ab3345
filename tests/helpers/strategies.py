"""Every strategy that has a yaml, and one that has none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import yaml
from torch import Tensor

from helpers import objectives
from helpers.marks import slow
from locallearn.auxiliary import MLP, PointwiseMLP
from locallearn.config.compose import choices
from locallearn.config.targets import instantiate
from locallearn.contract import Block, BlockSpec, Packet, Published, Route, Send, Step, Strategy, backward, task_loss

FILES = choices("strategy")
ANY_MODEL = sorted(FILES.keys() - {"petra"})
"""Those that train a model of any units."""
ALIKE = {
    *("brsf", "frsf", "usf"),  # as fa
    *("checkpoint", "deep_supervision", "pgi_causal"),  # as backprop and pgi
    *("greedy", "infomax", "shallow", "cafo", "hpff"),  # as dgl, mono_forward and loco
    *("cdni", "sdfa", "fw_dtp", "diffusion_blocks"),  # as dni, dfa, dtp and noprop
    *("equilibrium", "dual_propagation"),  # as predictive_coding
}
"""Those whose steps are those of another but for a matrix, a loss or an order."""


def slow_where_alike(names: Iterable[str]) -> list[Any]:
    """The names as parameters of a test; those in `ALIKE` are slow ones."""
    return [slow(name) if name in ALIKE else name for name in sorted(names)]


ROUTES = ("backprop", "dgl", "dni", "dfa", "pepita")
"""One strategy of each route."""


def quick_of_each_route(names: Iterable[str]) -> list[Any]:
    """The names as parameters of a test; those that are not in `ROUTES` are slow ones."""
    return [name if name in ROUTES else slow(name) for name in sorted(names)]


@dataclass(frozen=True)
class Follower(Strategy):
    """A block below the last one moves the mean of what it emits towards the sum of those of the weights and of the
    batch statistics of the block above it or, with `top`, of the last one."""

    every: int = 1
    lag: int = 0
    top: bool = False
    route: ClassVar[Route] = Route.NONE

    def reads(self, spec: BlockSpec) -> Mapping[str, Published]:
        source = spec.depth - 1 if self.top else spec.index + 1
        return {} if spec.last else {"layers": Published(source, self.every, self.lag)}

    def publish(self, block: Block, name: str) -> Sequence[Tensor]:
        assert name == "layers"
        return [t for t in block.layers.state_dict().values() if t.is_floating_point()]

    def step(self, block: Block, packet: Packet) -> Step:
        h = block.layers(packet.h)
        yield Send(packet.at(h))
        if block.last:
            loss = task_loss(block, h, packet.y)
        else:
            goal = torch.stack([t.mean() for t in block.published("layers").tensors]).sum()
            loss = (h.mean() - goal).square()
            block.report(loss)
        backward(loss)
        block.update()


OWN = {"follower": Follower}
HEADS = {"mlp": MLP(layers=1, width=16), "pointwise_mlp": PointwiseMLP(width=8)}


def make(name: str) -> Strategy:
    """The strategy of a yaml; options may follow its name, as in "loco reach=3 objective=masked"."""
    name, *options = name.split()
    if name in OWN:
        return OWN[name](**{key: yaml.safe_load(value) for key, _, value in (each.partition("=") for each in options)})
    config = yaml.safe_load(FILES[name].read_text())
    config |= {key: yaml.safe_load(value) for key, _, value in (option.partition("=") for option in options)}
    objective = objectives.make(config.pop("objective", "cross_entropy"))
    auxiliary = HEADS[config.pop("auxiliary", "mlp")]
    return instantiate(config, "strategy", [], objective=objective, auxiliary=auxiliary)
