"""What a block reports, as sums over samples: its loss, correct predictions and notes; cheap enough for every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from locallearn.accelerator import is_cpu
from locallearn.task import CLASSES, CLASSIFICATION, Task

HELD = 1 << 16  # logits held back until they are counted, in numbers: 256 KiB of them


class Totals:
    """Sums over items of the loss and of what the metrics of a task are made of, and how many items there were.

    On the CPU they are Python numbers, and `add` returns the loss to look at. Small batches of classification are set
    aside and counted many at a time: between the kernels of a step, with cold caches, counting one takes 70 us, setting
    it aside 20. The sums of other tasks may be fractions, whose order must not depend on when somebody reads them.
    On a GPU they stay in one float64 tensor there, because reading a number would synchronise; a sum that is not finite
    stays so until somebody asks.
    """

    def __init__(self, device: torch.device, task: Task = CLASSES) -> None:
        self._task = task
        self._sums = [0.0, 0.0, 0.0]
        self._held: list[tuple[float, Tensor, Tensor | None]] = []
        self._tensor = None if is_cpu(device) else torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, loss: Tensor, logits: Tensor | None = None, y: Tensor | None = None) -> float | None:
        """Add the mean loss [] over the items of y [B, ...] that have a target (without y it counts as one item), and
        the sums of the task for the logits [B, ...]; returns the loss on the CPU."""
        if self._tensor is None:
            value = loss.item()
            if y is None or self._task.kind != CLASSIFICATION or y.is_floating_point():
                self._add_at_once(value, logits, y)
            else:
                self._hold(value, logits, y)
            return value
        sums = None if logits is None or y is None else self._task.sums(logits, y)
        if sums is not None and len(sums) != len(self._tensor) - 2:
            self._tensor = _widened(self._tensor, len(sums))
        count = None if y is None else self._task.count(y)
        self._tensor[0] += loss.detach() if count is None else loss.detach() * count
        self._tensor[-1] += 1 if count is None else count
        if sums is not None:
            self._tensor[1:-1] += sums
        return None

    @property
    def loss(self) -> Tensor:
        """The sum of the losses, float64 []: finite if all that was added is."""
        self._count()
        return torch.tensor(self._sums[0], dtype=torch.float64) if self._tensor is None else self._tensor[0]

    def read(self) -> list[float]:
        """[loss, *sums of the task, items]; of classification [loss, correct, samples]. Synchronises a GPU."""
        self._count()
        return list(self._sums) if self._tensor is None else self._tensor.tolist()

    def write(self, sums: list[float]) -> None:
        """Go on from what `read` gave; zeros begin anew."""
        self._held.clear()
        self._sums = list(sums)
        if self._tensor is not None:
            self._tensor = self._tensor.new_tensor(sums)

    def _add_at_once(self, value: float, logits: Tensor | None, y: Tensor | None) -> None:
        self._count()  # sums of floats keep their order
        count = 1 if y is None else int(self._task.count(y))
        self._sums[0] += value * count
        self._sums[-1] += count
        if logits is not None and y is not None:
            sums = self._task.sums(logits.detach(), y).tolist()
            if len(sums) != len(self._sums) - 2:
                self._sums = _widened(torch.tensor(self._sums, dtype=torch.float64), len(sums)).tolist()
            self._sums[1:-1] = [a + b for a, b in zip(self._sums[1:-1], sums, strict=True)]

    def _hold(self, value: float, logits: Tensor | None, y: Tensor) -> None:
        """Set a batch aside, as copies: its buffers may be used again."""
        if self._held and not _alike(self._held[0], logits, y):
            self._count()
        self._held.append((value, y.clone(), None if logits is None else logits.detach().clone()))
        if len(self._held) * (y if logits is None else logits).numel() >= HELD:
            self._count()

    def _count(self) -> None:
        """Add what was set aside; all of one shape."""
        if not self._held:
            return
        values, labels, logits = zip(*self._held, strict=True)
        self._held.clear()
        y = torch.stack(labels)  # [N, B]
        samples = (y >= 0).flatten(1).count_nonzero(dim=1).tolist()
        for value, count in zip(values, samples, strict=True):
            self._sums[0] += value * count
        self._sums[2] += sum(samples)
        if logits[0] is not None:
            self._sums[1] += (torch.stack(logits).argmax(dim=2) == y).count_nonzero().item()


def _alike(held: tuple[float, Tensor, Tensor | None], logits: Tensor | None, y: Tensor) -> bool:
    """Whether a batch can be stacked on one that was set aside."""
    _, labels, first = held
    same = first is logits is None or (first is not None and logits is not None and first.shape == logits.shape)
    return same and labels.shape == y.shape


class BlockTotals:
    """The sums of one block since `reset`: of its loss and metrics, and of each number that it noted.

    Their `state` is plain: {"totals": what `Totals.read` gives, "predicts": bool, "notes": {name: [sum, 0, count]}}.
    """

    def __init__(self, device: torch.device, task: Task = CLASSES) -> None:
        self._device = device
        self._loss = Totals(device, task)
        self._notes: dict[str, Totals] = {}
        self._predicts = False

    def report(self, loss: Tensor, logits: Tensor | None, y: Tensor | None) -> float | None:
        """Add a loss [] and, if there are any, logits [B, ...] for y [B, ...]; returns the loss on the CPU."""
        self._predicts |= logits is not None and y is not None
        return self._loss.add(loss, logits, y)

    def note(self, name: str, value: Tensor) -> float | None:
        """Add a number [] under a name of its own; returns it on the CPU."""
        if name not in self._notes:
            self._notes[name] = Totals(self._device)
        return self._notes[name].add(value)

    def sums(self) -> dict[str, Tensor]:
        """The sum [] under each name, which is finite if all that was added is."""
        return {name: totals.loss for name, totals in {"loss": self._loss, **self._notes}.items()}

    def reset(self) -> None:
        self._loss.write([0.0, 0.0, 0.0])
        self._notes.clear()
        self._predicts = False

    def state(self) -> dict[str, Any]:
        """For a checkpoint, for `means` and for `merge`. Synchronises a GPU."""
        notes = {name: totals.read() for name, totals in self._notes.items()}
        return {"totals": self._loss.read(), "predicts": self._predicts, "notes": notes}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.reset()
        self._loss.write(state["totals"])
        self._predicts = state["predicts"]
        for name, sums in state["notes"].items():
            self._notes[name] = Totals(self._device)
            self._notes[name].write(sums)

    @staticmethod
    def merge(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The state of a block from those of its replicas."""

        def total(sums: Sequence[Sequence[float]]) -> list[float]:
            return [sum(column) for column in zip(*sums, strict=True)]

        first = states[0]
        return {
            "totals": total([state["totals"] for state in states]),
            "predicts": first["predicts"],
            "notes": {name: total([state["notes"][name] for state in states]) for name in first["notes"]},
        }

    @staticmethod
    def means(state: Mapping[str, Any], task: Task) -> dict[str, float]:
        """Mean loss, metrics and notes of a state; only what was reported."""
        loss, *sums, items = state["totals"]
        means = task.numbers(loss, sums if state["predicts"] else None, items) if items else {}
        return means | {name: value / count for name, (value, _, count) in state["notes"].items()}


def _widened(sums: Tensor, size: int) -> Tensor:
    """[loss, ..., items] with `size` numbers between, which are zero: nothing was predicted before."""
    return torch.cat([sums[:1], sums.new_zeros(size), sums[-1:]])
