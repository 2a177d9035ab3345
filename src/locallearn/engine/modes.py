"""Training and eval mode of blocks. A module that the user keeps in eval mode, such as a batch norm, stays in it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


class Modes:
    """Of the modules of one block."""

    def __init__(self, roots: Sequence[nn.Module], auxiliary: nn.Module) -> None:
        self._roots = roots
        self._layers = [m for root in roots if root is not auxiliary for m in root.modules() if not any(m.children())]
        self._before: list[tuple[nn.Module, bool]] = []  # while the block waits in eval mode: the modes that it had

    def awake(self) -> bool:
        """Whether some layer of the units or the head is in training mode."""
        return any(m.training for m in self._layers)

    def set(self, learns: bool) -> None:
        """Eval mode where the block does not learn, and else what it was before. Walks the modules only when that
        changes."""
        if learns and self._before:
            for module, mode in self._before:
                module.training = mode
            self._before.clear()
        elif not learns and (not self._before or self.awake()):
            self._before = self._before or [(m, m.training) for root in self._roots for m in root.modules()]
            for root in self._roots:
                root.eval()

    def wake(self) -> None:
        """Training mode for all of them."""
        for root in self._roots:
            root.train()
