"""Running sums of a block's loss and correct predictions, cheap enough for every step."""

from __future__ import annotations

import torch
from torch import Tensor


class Totals:
    """Sums over samples of the loss and of the correct predictions, and how many samples there were.

    On the CPU they are Python numbers, and `add` returns the loss to look at. On a GPU they stay in one float64 tensor
    there, because reading a number would synchronise; a sum that is not finite stays so until somebody asks.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = [0.0, 0.0, 0.0]
        self._tensor = None if device.type == "cpu" else torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, loss: Tensor, labelled: Tensor | None, correct: Tensor | None) -> float | None:
        """Add the mean loss [] over the labelled samples (a mask [B]; None counts as one sample) and a mask [B] of the
        correct ones; returns the loss on the CPU."""
        count = None if labelled is None else labelled.count_nonzero()
        right = None if correct is None else correct.count_nonzero()
        if self._tensor is None:
            value = loss.item()
            samples = 1 if count is None else count.item()
            self._sums[0] += value * samples
            self._sums[1] += 0 if right is None else right.item()
            self._sums[2] += samples
            return value
        self._tensor[0] += loss.detach() if count is None else loss.detach() * count
        self._tensor[2] += 1 if count is None else count
        if right is not None:
            self._tensor[1] += right
        return None

    def read(self) -> list[float]:
        """[loss, correct, samples]. Synchronises a GPU."""
        return list(self._sums) if self._tensor is None else self._tensor.tolist()

    def write(self, sums: list[float]) -> None:
        """Go on from what `read` gave; zeros begin anew."""
        self._sums = list(sums)
        if self._tensor is not None:
            self._tensor.copy_(self._tensor.new_tensor(sums))
