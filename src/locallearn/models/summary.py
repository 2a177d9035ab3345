"""A table of a cut before any training: what each block is, what it costs, and what its auxiliary networks add."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from locallearn.analysis.cost import Flops
from locallearn.analysis.quiet import undisturbed
from locallearn.figures.text import fitted, table
from locallearn.models.base import BlockModel, Size, measure

HEAD = ("block", "units", "emits", "parameters", "FLOPs", "aux parameters", "aux FLOPs", "aux share")


class BlockRow(NamedTuple):
    """One block. FLOPs are of one image's forward pass; None where an auxiliary module needs more than the features."""

    block: int
    units: str
    emits: Size
    parameters: int
    flops: int
    aux_parameters: int
    aux_flops: int | None

    @property
    def share(self) -> float | None:
        """Auxiliary FLOPs over the block's own."""
        return None if self.aux_flops is None or not self.flops else self.aux_flops / self.flops


def summary(
    model: BlockModel, cut: Sequence[range], auxiliary: Sequence[Mapping[str, nn.Module]] = ()
) -> list[BlockRow]:
    """A row for each block of `cut` with the auxiliary modules of its index; the head belongs to the last block."""
    costs, inputs = measure(model), model.blank()
    rows = []
    for k, units in enumerate(cut):
        own = [costs[i] for i in units]
        modules = list(auxiliary[k].values()) if k < len(auxiliary) else []
        emits = own[-1].shape
        h = torch.zeros((len(inputs), *emits), dtype=_dtype(model), device=inputs.device)
        parameters, flops = sum(c.parameters for c in own), sum(c.flops for c in own)
        if k == len(cut) - 1:
            parameters += _parameters([model.head])
            flops += _flops([model.head], h) or 0
        names = own[0].name if len(own) == 1 else f"{own[0].name} .. {own[-1].name}"
        rows.append(BlockRow(k, names, emits, parameters, flops, _parameters(modules), _flops(modules, h)))
    return rows


def totals(rows: Sequence[BlockRow]) -> dict[str, int | None]:
    """Forward FLOPs of one sample through the model, and through what only trains it (None where that is unknown)."""
    auxiliary = [row.aux_flops for row in rows]
    known = [flops for flops in auxiliary if flops is not None]
    return {
        "flops": sum(row.flops for row in rows),
        "auxiliary_flops": sum(known) if len(known) == len(auxiliary) else None,
    }


def _dtype(model: BlockModel) -> torch.dtype:
    """Of what units emit."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _parameters(modules: Sequence[nn.Module]) -> int:
    return sum(p.numel() for p in {p for module in modules for p in module.parameters()})


def _flops(modules: Sequence[nn.Module], h: Tensor) -> int | None:
    """Forward FLOPs per image on the features h [B, ...], or None if some module takes neither h nor h and labels."""
    total = 0
    labels = torch.zeros(len(h), dtype=torch.int64, device=h.device)
    for module in modules:
        takes = len(inspect.signature(module.forward).parameters)
        with undisturbed(module), Flops() as counter:
            try:
                module(*(h, labels)[:takes])
            except Exception:  # it may need other features, or whatever its strategy gives it
                return None
        total += counter.total // len(h)
    return total


def render(rows: Sequence[BlockRow], width: int | None = None) -> str:
    """The rows as text of at most `width` columns, and what is dropped at inference."""
    cells: list[tuple[str, ...]] = [HEAD]
    for row in rows:
        units = row.units if len(row.units) <= 24 else f"{row.units[:9]}...{row.units[-12:]}"
        aux_flops = "n/a" if row.aux_flops is None else short(row.aux_flops)
        share = "n/a" if row.share is None else f"{row.share:.1%}"
        numbers = short(row.parameters), short(row.flops), short(row.aux_parameters), aux_flops, share
        cells.append((str(row.block), units, "x".join(map(str, row.emits)), *numbers))
    kept, aux = sum(row.parameters for row in rows), sum(row.aux_parameters for row in rows)
    inference = f"keeps all {short(kept)} parameters: no auxiliary network has any"
    if aux:
        share = f"{aux / (kept + aux):.1%}"
        inference = f"drops the auxiliary networks: {short(aux)} of {short(kept + aux)} parameters ({share})"
    return "\n".join([table(cells, width, left=(1, 2), again=2), fitted(f"inference {inference}", width)])


def short(number: float) -> str:
    """1234567 -> 1.23 M"""
    for size, letter in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{letter}" if number < 999.5 * size else f"{number / size:.0f}{letter}"
    return str(number)
