"""A model together with the strategy that answers for it: what is left of a run once training is over."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from locallearn.contract import Block, BlockSpec, Packet, Strategy
from locallearn.engine.assemble import modules_of_block
from locallearn.engine.learner import Learner
from locallearn.engine.packets import settled
from locallearn.models import BlockModel


class AnsweringBlock(NamedTuple):
    """What `Strategy.through`, `settle` and `predict` may ask a block for."""

    spec: BlockSpec
    layers: nn.Module
    head: nn.Module | None
    auxiliary: nn.ModuleDict

    @property
    def last(self) -> bool:
        return self.spec.last


class AnsweringModel(BlockModel):
    """Inputs [B, *image] -> logits [B, classes], by the way in which a strategy answers (`look`, `through` or
    `settle`, `predict`).

    It shares units and head with the model; what ships with it lies in `auxiliary`, by block and name.
    """

    def __init__(self, model: BlockModel, strategy: Strategy, blocks: Sequence[Any]) -> None:
        options: Any = {"image": model.image, "classes": model.classes, "name": model.name, "names": model.names}
        super().__init__(list(model.units), model.head, **options)
        for name in ("inputs", "vocabulary", "form", "samples", "channels_first", "taken"):
            setattr(self, name, getattr(model, name))
        self._strategy = strategy
        self._blocks: list[Block] = list(blocks)
        ships = strategy.ships
        own = {str(b.spec.index): {n: m for n, m in b.auxiliary.items() if n in ships} for b in blocks}
        self.auxiliary = nn.ModuleDict({k: nn.ModuleDict(modules) for k, modules in own.items() if modules})

    def forward(self, x: Any) -> Tensor:
        """See the class."""
        if self.inputs is not None and not isinstance(x, Tensor):
            x = self.inputs.pack(x)
        packet = self._strategy.look(Packet(x, torch.empty(0, dtype=torch.int64)), self._blocks[0].spec)
        if self._strategy.settles(len(self._blocks)):
            *_, packet = settled(self._strategy, None, self._blocks, packet)
        else:
            for block in self._blocks:
                packet = self._strategy.through(block, packet)
        logits = self._strategy.predict(self._blocks[-1], packet)
        assert logits is not None, "the last block answers"
        return logits


def answering_blocks(
    model: BlockModel,
    strategy: Strategy,
    cut: Sequence[range],
    specs: Sequence[BlockSpec],
    trained: frozenset[int] | None,
) -> list[AnsweringBlock]:
    """The blocks of a model as a strategy answers with them; modules that do not ship are left out."""
    blocks = []
    for spec, units in zip(specs, cut, strict=True):
        layers, head, auxiliary = modules_of_block(model, strategy, units, spec, trained)
        shipped = nn.ModuleDict({name: m for name, m in auxiliary.items() if name in strategy.ships})
        blocks.append(AnsweringBlock(spec, layers, head, shipped))
    return blocks


def answering_model(learner: Learner) -> BlockModel:
    """What answers once training is over, in eval mode: the plain model, or one that answers as the strategy does."""
    plain = learner.strategy.plain
    return (learner.model if plain else AnsweringModel(learner.model, learner.strategy, learner.blocks)).eval()


def answers(name: str, ships: Collection[str]) -> bool:
    """Whether a tensor of a learner's state is of a module that ships with the model."""
    kind, _, rest = name.partition(".")
    return kind == "auxiliary" and rest.split(".")[1] in ships


def exported(learner: Learner) -> dict[str, Tensor]:
    """The tensors of `answering_model`: the weights of the plain model, and as `auxiliary.K.NAME...` those of modules
    that ship with it; a stage has the part of its own blocks."""
    shipped: dict[str, Tensor] = {}
    for block in learner.blocks:
        for name in learner.strategy.ships & set(block.auxiliary):
            state = block.auxiliary[name].state_dict()
            shipped |= {f"auxiliary.{block.spec.index}.{name}.{n}": t for n, t in state.items()}
    return learner.model_state() | shipped
