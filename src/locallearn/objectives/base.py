"""What a local loss must answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TypeAlias

from torch import Tensor, nn

from locallearn.auxiliary import Auxiliary
from locallearn.contract import BlockSpec, Packet

ObjectiveModules: TypeAlias = Mapping[str, nn.Module] | nn.ModuleDict


class Objective(ABC):
    """A local loss. Concrete ones are frozen dataclasses of typed options; they hold no parameters themselves."""

    @abstractmethod
    def modules(self, spec: BlockSpec, auxiliary: Auxiliary) -> dict[str, nn.Module]:
        """The auxiliary modules the loss reads at one block, by name."""

    @abstractmethod
    def loss(self, modules: ObjectiveModules, h: Tensor, packet: Packet) -> tuple[Tensor, Tensor | None]:
        """The loss [] of a block's output h [B, ...] (with its graph), and its logits [B, classes] if it has any."""

    def predict(self, modules: ObjectiveModules, h: Tensor) -> Tensor | None:
        """Logits [B, classes] for h, or None if this loss trains no classifier."""
        return None
