"""How well blocks predict: the metrics of a task over batches of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from locallearn import names
from locallearn.accelerator import read
from locallearn.engine.block import TrainedBlock
from locallearn.task import Task


def scores(
    task: Task,
    blocks: Sequence[TrainedBlock],
    predict: Callable[[Tensor], Sequence[Tensor | None]],
    batches: Iterable[tuple[Tensor, Tensor]],
) -> dict[str, float]:
    """The metrics of the task for the model (`loss` and `accuracy`, 0 to 1), and its `inner` ones for each block that
    can predict (`block/00/accuracy`, ...), from inputs [B, *image] and targets [B, ...] on the device of the blocks.
    `predict` gives what each block answers. Nothing if no sample has a target."""
    items = torch.zeros((), dtype=torch.int64, device=blocks[0].device)
    totals: dict[int, Tensor] = {}
    sums: dict[int, Tensor] = {}
    rows: list[Tensor] = []
    for inputs, targets in batches:
        items += task.count(targets)  # the labels of another split's nodes of one graph are hidden
        for k, answers in enumerate(predict(inputs)):
            if answers is None:
                continue
            sums[k] = sums.get(k, 0.0) + task.sums(answers, targets)
            if blocks[k].last or names.LOSS in task.inner:
                totals[k] = totals.get(k, 0.0) + task.total(answers, targets).double()
            if blocks[k].last and (row := task.rows(answers, targets)) is not None:
                rows.append(row)
    (count,), *found = read([items, *totals.values(), *sums.values()])
    if not count:
        return {}
    losses = {k: total for k, (total,) in zip(totals, found, strict=False)}
    parts = zip(sums, found[len(totals) :], strict=True)
    of = {k: task.numbers(losses.get(k), own, int(count)) for k, own in parts}
    model: dict[str, float] = {}
    if blocks[-1].last:
        model = of[len(blocks) - 1] | (task.finish(torch.cat(rows).cpu()) if rows else {})
    inner = {blocks[k].spec.index: {n: v for n, v in own.items() if n in task.inner} for k, own in of.items()}
    return model | names.of_blocks(inner)
