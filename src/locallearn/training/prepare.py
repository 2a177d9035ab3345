"""From a checked configuration to a learner and its data: all that a run builds before it writes anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from locallearn import seeds
from locallearn.config.experiment import Experiment
from locallearn.config.unread import in_blocks
from locallearn.data import Data
from locallearn.engine import Learner, assemble
from locallearn.engine.batch import SINGLE
from locallearn.engine.replicas import Replicas
from locallearn.errors import RunError, UserError, described, in_one_line, memory_ran_out, needs_several_values
from locallearn.plan.measure import rehearse
from locallearn.runtime.link import Pipe
from locallearn.training.environment import choose_device
from locallearn.training.run_data import as_known


class Part(NamedTuple):
    """What one process of a pipeline has of a run."""

    own: range
    device: torch.device
    link: Pipe
    replicas: Replicas | None


@contextmanager
def fits_in_memory() -> Iterator[None]:
    """Sizes that no memory holds are a mistake of the user."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if memory_ran_out(error) is None and "overflow" not in str(error):
            raise
        raise UserError(f"data and model do not fit into memory; choose smaller ones ({in_one_line(error)})") from error


@fits_in_memory()
def prepare(
    exp: Experiment, cut: list[range] | None = None, part: Part | None = None, known: Mapping[str, Any] | None = None
) -> tuple[Learner, Data]:
    """Load the data, build the model and cut it. `cut` is that of an earlier part of the same run, and `known` the
    manifest of that part: its normalisation is used, and its classes must be those of the data. Raises UserError."""
    settings = exp.settings
    stage = exp.runtime.stage(exp.names["strategy"], exp.strategy, settings.micro_batches)
    device = choose_device(settings.device) if part is None else part.device
    data = as_known(exp.source, settings.seed, device, known or {})
    check_batch(exp, data)
    with seeds.stream(settings.seed, "model"):
        model = exp.model(data.image, len(data.classes), data.graph)
    if cut is not None and cut[-1].stop != len(model.units):
        raise UserError(f"manifest.json: the run was cut at unit {cut[-1].stop}, but its model has {len(model.units)}")
    learner = assemble(
        model,
        exp.strategy,
        exp.optim,
        cut or model.cut(settings.blocks_for(len(model.units)), settings.balance),
        seed=settings.seed,
        device=device,
        precision=settings.precision,
        channels_last=settings.channels_last,
        compiled=settings.compile,
        micro_batches=settings.micro_batches,
        total_steps=settings.epochs * data.steps(settings.batch_size),
        pixels=data.pixels,
        own=part and part.own,
        link=part and part.link,
        replicas=part and part.replicas,
        stage=stage,
    )
    if part is None:
        exp.explicit.refuse(in_blocks(exp, learner, data))
    if part is None and data.graph is None and data.batch(settings.batch_size) == _parts(exp):
        check_single(learner, data)
    elif part is None and not type(exp.strategy).__module__.startswith("locallearn."):
        try_out(learner, data)
    return learner, data


def try_out(learner: Learner, data: Data) -> None:
    """A step of a strategy of the user's on a copy of the blocks, so that its mistakes are said before a run has a
    folder. Raises UserError."""
    name = type(learner.strategy).__name__
    try:
        rehearse(learner, *next(iter(data.batches(0, 2))))
    except (UserError, RunError) as error:
        if isinstance(error, UserError):
            raise
    except Exception as error:
        if memory_ran_out(error):
            raise
        raise UserError(f"{name} cannot take a step: {described(error)}") from error


def _parts(exp: Experiment) -> int:
    """Into how many parts a batch is divided."""
    return exp.settings.micro_batches * exp.runtime.replicas


def check_single(learner: Learner, data: Data) -> None:
    """Refuse blocks that cannot learn from a single sample: where a batch norm has one value of each channel, there is
    no variance. Whether it has depends on the sizes of maps, in auxiliary networks too, so it is tried."""
    try:
        rehearse(learner, *next(iter(data.batches(0, 1))))
    except RunError:  # a loss that is not finite: the run itself will say so
        return
    except ValueError as error:
        if not needs_several_values(error):
            raise
        raise UserError(SINGLE) from error


def check_batch(exp: Experiment, data: Data) -> None:
    """A batch must be divisible into micro-batches and replicas."""
    micro_batches, replicas = exp.settings.micro_batches, exp.runtime.replicas
    names = {"micro_batches": micro_batches, "runtime.replicas": replicas}
    parts = " and ".join(f"{name}={count}" for name, count in names.items() if count > 1)
    if parts and data.graph is not None:
        each = " and ".join(f"{name}=1" for name, count in names.items() if count > 1)
        raise UserError(f"{parts} but a graph is not divided; choose {each}")
    batch = data.batch(exp.settings.batch_size)
    if batch % _parts(exp):
        verb = "do" if " and " in parts else "does"
        raise UserError(f"{parts} {verb} not divide the batch of {batch} training samples")
