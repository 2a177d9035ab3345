"""From a model, a strategy and a cut to a learner."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import nn

from locallearn import seeds
from locallearn.contract import BlockSpec, Strategy
from locallearn.engine.block import TrainedBlock
from locallearn.engine.learner import Learner
from locallearn.engine.link import Link
from locallearn.engine.optim import Optim
from locallearn.engine.promises import check_class, check_separate, modules_of
from locallearn.engine.replicas import Replicas
from locallearn.engine.stage import Stage
from locallearn.errors import UserError
from locallearn.models import BlockModel

Pixels: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}


def assemble(
    model: BlockModel,
    strategy: Strategy,
    optim: Optim,
    cut: list[range],
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    channels_last: bool = False,
    compiled: bool = False,
    micro_batches: int = 1,
    total_steps: int | None = None,
    pixels: Pixels | None = None,
    own: range | None = None,
    link: Link | None = None,
    replicas: Replicas | None = None,
    stage: Callable[..., Stage] = Stage,
) -> Learner:
    """Cut a model into blocks, give each its auxiliary modules and optimizers, and join them into a learner.

    Auxiliary modules draw from streams of their own, so that every strategy starts from the same model under one seed.
    Without `total_steps` the learning rate is constant. `pixels` is that of `Data`.
    A stage of a pipeline makes only its `own` blocks of the cut, and has a `link` to its neighbours. See `Stage` for
    `replicas`; `stage` makes what drives the blocks.
    """
    check_class(strategy)
    device, dtype = torch.device(device), DTYPES[precision]
    if total_steps is None:  # nobody knows how far training is
        optim = dataclasses.replace(optim, schedule="constant", warmup=0.0)
    shapes = [model.image, *model.shapes()]
    _place(model, cut, own, device, dtype)
    sizes = tuple(shapes[units.stop] for units in cut)
    specs = [
        BlockSpec(k, len(cut), model.image, shapes[units.start], sizes[k], model.classes, sizes, seed, pixels)
        for k, units in enumerate(cut)
    ]
    blocks = []
    for spec in specs if own is None else specs[own.start : own.stop]:
        layers, head, auxiliary = _modules(model, strategy, cut[spec.index], spec, device, dtype)
        for module in (layers, head, auxiliary):
            if module is not None and channels_last:
                module.to(memory_format=torch.channels_last)
            if module is not None and compiled and module is not auxiliary:
                module.compile()
        separate = strategy.separate
        blocks.append(
            TrainedBlock(spec, layers, head, auxiliary, separate, optim, seed, micro_batches, device, replicas)
        )
    driver = stage(
        blocks,
        strategy,
        bf16=precision == "bf16",
        micro_batches=micro_batches,
        link=link,
        replicas=replicas,
    )
    learner = Learner(model, driver, cut, total_steps=total_steps, dtype=dtype, channels_last=channels_last)
    check_ownership(learner)
    return learner


def _modules(
    model: BlockModel, strategy: Strategy, units: range, spec: BlockSpec, device: torch.device, dtype: torch.dtype
) -> tuple[nn.Module, nn.Module | None, nn.ModuleDict]:
    """The units of a block and, at the last one, the head, as the strategy adapts them; and its auxiliary modules."""
    with seeds.stream(spec.seed, "auxiliary", spec.index):
        auxiliary = modules_of(strategy, spec).to(device=device, dtype=dtype)
    with seeds.stream(spec.seed, "adapt", spec.index):
        layers = strategy.adapt(model.block(units), spec).to(device=device, dtype=dtype)
        head = strategy.adapt(model.head, spec).to(device=device, dtype=dtype) if spec.last else None
    return layers, head, auxiliary


def _place(model: BlockModel, cut: list[range], own: range | None, device: torch.device, dtype: torch.dtype) -> None:
    """Put the model on its device; a stage keeps its own part, and no memory for that of others."""
    if own is None:
        model.to(device=device, dtype=dtype)
        return
    parts = [(model.units[i], index in own) for index, units in enumerate(cut) for i in units]
    for module, is_own in [*parts, (model.head, len(cut) - 1 in own)]:
        module.to(device=device, dtype=dtype) if is_own else module.to("meta")


def check_ownership(learner: Learner) -> None:
    """Each trainable parameter must be in exactly one group of exactly one block's optimizers."""
    if len(learner.blocks) == len(learner.cut):
        check_separate(learner.strategy, learner.blocks)
    owners = Counter(
        id(p)
        for block in learner.blocks
        for optimizer in block.optimizers.values()
        if optimizer is not None
        for group in optimizer.param_groups
        for p in group["params"]
    )
    for name, p in learner.parameters():
        if p.requires_grad and owners[id(p)] != 1:
            raise UserError(f"parameter {name} has {owners[id(p)]} optimizers; every trainable parameter needs one")
