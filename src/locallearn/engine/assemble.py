"""From a model, a strategy and a cut to a learner."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from locallearn import seeds
from locallearn.contract import BlockSpec, Strategy, Unit
from locallearn.engine.block import TrainedBlock
from locallearn.engine.learner import Learner
from locallearn.engine.optim import Optim
from locallearn.engine.promises import (
    check_class,
    check_parts,
    check_separate,
    check_task,
    check_whole,
    modules_of,
    only_computes,
)
from locallearn.engine.published import reads_of
from locallearn.engine.setup import BlockModules, Place, Setup
from locallearn.engine.stage import Stage
from locallearn.errors import UserError
from locallearn.models import BlockModel
from locallearn.models.fresh import builder
from locallearn.scaling import widen


def assemble(
    model: BlockModel,
    strategy: Strategy,
    optim: Optim,
    cut: list[range],
    setup: Setup = Setup(),  # noqa: B008  # frozen
    place: Place = Place(),  # noqa: B008
    stage: Callable[..., Stage] = Stage,
) -> Learner:
    """Cut a model into blocks, give each its auxiliary modules and optimizers, and join them into a learner.

    Auxiliary modules draw from streams of their own, so that every strategy starts from the same model under one seed.

    Args:
        model: It is trained in place.
        strategy: Who gets which gradient.
        optim: What every block learns with.
        cut: The units of each block, from the input upward.
        setup: How blocks compute.
        place: Where they live; a stage of a pipeline makes its own blocks alone.
        stage: Makes what drives the blocks.

    Raises:
        UserError: If strategy, model and cut do not fit together. The model is then as it was.
    """
    check_class(strategy)
    check_task(strategy, setup.task)
    check_parts(strategy, setup.micro_batches, place.replicas.size if place.replicas else 1)
    check_whole(strategy, model.name, model.samples)
    if setup.total_steps is None:  # nobody knows how far training is
        optim = dataclasses.replace(optim, schedule="constant", warmup=0.0)
    _check_types(model, setup.precision)
    _check_shared(model, cut)
    specs = specs_of(model, cut, setup)
    _check_trained(setup, len(cut), strategy)
    move = _Move(place.device, setup.dtype, setup.channels_last)
    with unchanged_if_refused(model):
        _place(model, cut, place.own, move._replace(channels_last=False))  # `adapt` draws in the order of memory
        blocks = []
        for spec in specs if place.own is None else specs[place.own.start : place.own.stop]:
            modules = _modules(model, strategy, cut[spec.index], spec, move, setup.train_blocks)
            if setup.half == torch.float16:
                widen(modules.layers, modules.head, *modules.auxiliary.values())
            if setup.compiled:
                modules.layers.compile()
                if modules.head is not None:
                    modules.head.compile()
            optimizers = optim.of_block(*modules, strategy.separate)
            blocks.append(TrainedBlock(spec, modules, optim, optimizers, setup, place))
        options: dict[str, Any] = {"half": setup.half, "micro_batches": setup.micro_batches}
        idle = [k for k in range(len(cut)) if only_computes(strategy, k, len(cut), setup.train_blocks)]
        if reads := reads_of(strategy, specs, idle):
            options["reads"] = reads
        driver = stage(blocks, strategy, **options, link=place.link, replicas=place.replicas)
        learner = Learner(model, driver, cut, setup)
        check_ownership(learner)
    return learner


def specs_of(model: BlockModel, cut: list[range], setup: Setup) -> list[BlockSpec]:
    """What a strategy may know of each block."""
    shapes = [model.image, *model.shapes()]
    sizes = tuple(shapes[units.stop] for units in cut)
    tokens = model.vocabulary if model.inputs is None else model.inputs.vocabulary
    reversible = tuple(model.reversible(units) for units in cut)
    levels = tuple(
        getattr(model.units[units.stop - 1], "levels", (size,)) for units, size in zip(cut, sizes, strict=True)
    )
    of_run = model.classes, sizes, setup.seed, setup.pixels, model.channels_first, setup.task, tokens, reversible
    built = [
        Unit(i, shapes[i], shapes[i + 1], builder(unit, shapes[i], shapes[i + 1], model.initialise))
        for i, unit in enumerate(model.units)
    ]
    return [
        BlockSpec(
            k,
            len(cut),
            model.image,
            shapes[units.start],
            sizes[k],
            *of_run,
            above=tuple(built[units.stop :]),
            levels=levels,
        )
        for k, units in enumerate(cut)
    ]


class _Move(NamedTuple):
    """Where and how tensors of a model are held. Integers keep their type, complex numbers stay complex. Only maps
    [., ., ., .] have a layout with the channels last."""

    device: torch.device
    dtype: torch.dtype
    channels_last: bool

    def module(self, module: nn.Module) -> None:
        if self.device.type != "meta":
            for buffer in module.buffers():
                buffer.data = self.tensor(buffer)  # other modules may have it, too, such as the one that the user cut
        module._apply(self.tensor)

    def tensor(self, t: Tensor) -> Tensor:
        kind = self.dtype.to_complex() if t.is_complex() else self.dtype if t.is_floating_point() else t.dtype
        layout = torch.channels_last if self.channels_last and t.dim() == 4 else torch.preserve_format
        return t.to(self.device, kind, memory_format=layout)


def _modules(
    model: BlockModel, strategy: Strategy, units: range, spec: BlockSpec, move: _Move, trained: frozenset[int] | None
) -> BlockModules:
    """`modules_of_block`, where they belong; those of a frozen block do not learn."""
    modules = modules_of_block(model, strategy, units, spec, trained)
    for module in modules:
        if module is not None:
            move.module(module)
            if trained is not None and spec.index not in trained and module is not modules.auxiliary:
                module.requires_grad_(False)
    return modules


def modules_of_block(
    model: BlockModel, strategy: Strategy, units: range, spec: BlockSpec, trained: frozenset[int] | None
) -> BlockModules:
    """The units of a block and, at the last one, the head, as the strategy adapts them; and its auxiliary modules."""
    idle = only_computes(strategy, spec.index, spec.depth, trained)
    with seeds.stream(spec.seed, "auxiliary", spec.index):
        auxiliary = nn.ModuleDict() if idle else modules_of(strategy, spec)
    with seeds.stream(spec.seed, "adapt", spec.index):
        layers = strategy.adapt(model.block(units), spec)
        head = strategy.adapt(model.head, spec) if spec.last else None
    return BlockModules(layers, head, auxiliary)


def _place(model: BlockModel, cut: list[range], own: range | None, move: _Move) -> None:
    """Put the model on its device; a stage keeps its own part, and no memory for that of others."""
    parts = [(model.units[i], own is None or index in own) for index, units in enumerate(cut) for i in units]
    for module, is_own in [*parts, (model.head, own is None or len(cut) - 1 in own)]:
        move.module(module) if is_own else module.to("meta")


def _check_types(model: BlockModel, precision: str) -> None:
    """Raise UserError where a user's weights would be rounded."""
    for name, p in model.named_parameters():
        if p.dtype in (torch.float64, torch.complex128) and precision != "fp64":
            raise UserError(
                f"{model.name} holds {name} in {str(p.dtype).removeprefix('torch.')}, and precision={precision} would "
                "round it in place: choose precision=fp64, or convert the module with .float()"
            )


def _check_shared(model: BlockModel, cut: list[range]) -> None:
    """Raise UserError for a weight that two blocks would train."""
    owners: dict[nn.Parameter, int] = {}
    for block, units in enumerate(cut):
        head = [model.head] if units.stop == len(model.units) else []
        for p in (p for module in [*(model.units[i] for i in units), *head] for p in module.parameters()):
            if p.requires_grad and owners.setdefault(p, block) != block:
                name = next(name for name, each in model.named_parameters() if each is p)
                raise UserError(
                    f"{model.name} shares {name} between blocks {owners[p]} and {block}, and a parameter has one "
                    "optimizer: choose blocks=1, or weights that are not shared, such as model.tie=false"
                )


def _check_trained(setup: Setup, depth: int, strategy: Strategy) -> None:
    """Raise UserError for blocks that are to learn and are not there, and where nobody would answer."""
    trained = sorted(setup.train_blocks or ())
    if trained and trained[-1] >= depth:
        blocks = f"blocks 0 to {depth - 1}" if depth > 1 else "one block, 0"
        raise UserError(f"train_blocks={trained}: the model is cut into {blocks}; choose of these")
    if trained and strategy.ships and trained[-1] < depth - 1:
        raise UserError(
            f"train_blocks={trained} leaves out block {depth - 1}, from which {type(strategy).__name__} answers by a "
            "module that must learn: add it"
        )


@contextmanager
def unchanged_if_refused(model: nn.Module) -> Iterator[None]:
    """If what follows is refused, the model has its tensors back as they were: on their device, in type and layout."""
    homes: list[dict[str, Any]] = [home for m in model.modules() for home in (m._parameters, m._buffers)]
    before = [(home, name, t, t.data, t.requires_grad) for home in homes for name, t in home.items() if t is not None]
    try:
        yield
    except Exception:
        for home, name, t, data, learns in before:
            home[name] = t
            t.data = data
            t.requires_grad_(learns)
        raise


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
