"""What the processes of a run have to say of an epoch, joined into one record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
        record |= {f"train/{name}": value for name, value in found.items() if name in ("loss", "accuracy")}
    for k, found in numbers.items():
        record |= {f"block/{k:02d}/{name}": value for name, value in found.items()}
    for report in reports:
        record |= report["numbers"]
    record["learning_rate"] = reports[-1]["learning_rate"]
    record["peak_memory_bytes"] = max(report["peak_memory_bytes"] for report in reports)
    if len(reports) > 1:
        for rank, report in enumerate(reports):
            if rank % replicas == 0:
                stage = f"stage/{rank // replicas:02d}"
                record[f"{stage}/peak_memory_bytes"] = report["peak_memory_bytes"]
                record[f"{stage}/waiting"] = report["waiting"]
    return record
