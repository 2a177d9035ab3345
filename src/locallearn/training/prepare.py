"""From a checked configuration to a learner and its data: all that a run builds before it writes anything."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from locallearn import seeds
from locallearn.config.experiment import Experiment
from locallearn.data import Data
from locallearn.engine import Learner, assemble
from locallearn.engine.replicas import Replicas
from locallearn.errors import UserError
from locallearn.runtime.link import Pipe
from locallearn.training.environment import choose_device


class Part(NamedTuple):
    """What one process of a pipeline has of a run."""

    own: range
    device: torch.device
    link: Pipe
    replicas: Replicas | None


def prepare(exp: Experiment, cut: list[range] | None = None, part: Part | None = None) -> tuple[Learner, Data]:
    """Load the data, build the model and cut it. `cut` is that of an earlier part of the same run. Raises UserError."""
    settings = exp.settings
    stage = exp.runtime.stage(exp.names["strategy"], exp.strategy, settings.micro_batches)
    device = choose_device(settings.device) if part is None else part.device
    data = exp.source.load(settings.seed, device)
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
    check_norms(learner, data.batch(settings.batch_size) // (settings.micro_batches * exp.runtime.replicas))
    return learner, data


def check_norms(learner: Learner, together: int) -> None:
    """The variance of one sample is none."""
    parts = [part for block in learner.blocks for part in (block.layers, block.head, block.auxiliary) if part]
    if together == 1 and any(isinstance(m, nn.BatchNorm1d) for part in parts for m in part.modules()):
        raise UserError(
            "the network has batch normalisation, which needs at least 2 samples at a time and gets 1: choose a "
            "larger batch_size or fewer micro_batches, or add training samples"
        )


def check_batch(exp: Experiment, data: Data) -> None:
    """A batch must be divisible into micro-batches and replicas."""
    micro_batches, replicas = exp.settings.micro_batches, exp.runtime.replicas
    names = {"micro_batches": micro_batches, "runtime.replicas": replicas}
    parts = " and ".join(f"{name}={count}" for name, count in names.items() if count > 1)
    if parts and data.graph is not None:
        each = " and ".join(f"{name}=1" for name, count in names.items() if count > 1)
        raise UserError(f"{parts} but a graph is not divided; choose {each}")
    batch = data.batch(exp.settings.batch_size)
    if batch % (micro_batches * replicas):
        verb = "do" if " and " in parts else "does"
        raise UserError(f"{parts} {verb} not divide the batch of {batch} training samples")
