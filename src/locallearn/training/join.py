"""What the processes of a run have to say of an epoch, joined into one record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from locallearn import names
from locallearn.engine.block import added, means

Running = Sequence[tuple[int, Mapping[str, Any]]]
"""(index, sums) of each block of a process."""


def sums(reports: Sequence[Running], replicas: int) -> dict[int, dict[str, Any]]:
    """The sums of every block, over the replicas of its stage; `reports` are by rank."""
    parts: dict[int, list[Mapping[str, Any]]] = {}
    for report in reports:
        for index, running in report:
            parts.setdefault(index, []).append(running)
    assert all(len(found) == replicas for found in parts.values())
    return {index: added(found) for index, found in sorted(parts.items())}


def joined(reports: Sequence[Mapping[str, Any]], replicas: int) -> dict[str, float]:
    """Losses and accuracies on the training batches (`train/` is the last block that learns), what was evaluated, and
    per stage memory and the share of the time that it waited for others."""
    numbers = {k: means(running) for k, running in sums([r["blocks"] for r in reports], replicas).items()}
    record: dict[str, float] = {}
    for found in numbers.values():
        record |= {names.on(names.TRAIN, n): value for n, value in found.items() if n in (names.LOSS, names.ACCURACY)}
    record |= names.of_blocks(numbers)
    for report in reports:
        record |= report["numbers"]
    record["learning_rate"] = reports[-1]["learning_rate"]
    record["peak_memory_bytes"] = max(report["peak_memory_bytes"] for report in reports)
    if len(reports) > 1:
        for rank, report in enumerate(reports):
            if rank % replicas == 0:
                for name in ("peak_memory_bytes", "waiting"):
                    record[names.at(names.STAGE, rank // replicas, name)] = report[name]
    return record
