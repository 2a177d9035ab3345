"""One replica of tests/equality/test_replicas.py, and what it is compared with."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from helpers.nets import fitting, tiny_batches, tiny_learner, tiny_model, without_norms
from helpers.strategies import make
from locallearn.engine import Learner
from locallearn.engine.replicas import Replicas

STEPS, SAMPLES = 4, 12
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Buffers of batch norms: replicas average them, micro-batches move them one after the other."""


def trained(name: str, norm: bool, micro_batches: int, replicas: Replicas | None = None) -> Learner:
    """A learner after some steps, with or without batch norm in its units."""
    strategy = make(name)
    model = fitting(strategy, tiny_model(dropout=0.2))
    if not norm:
        without_norms(model)
    learner = tiny_learner(strategy, model, total_steps=STEPS, micro_batches=micro_batches, replicas=replicas)
    for x, y in tiny_batches(STEPS, SAMPLES):
        learner.learn(x, y)
    learner.stage.drain()
    return learner


def main(rank: int, strategies: list[str], sizes: list[int], folder: str) -> None:
    """Be a replica of each strategy, one of so many, and leave the state of each."""
    torch.set_num_threads(1)
    place = {"init_method": f"file://{folder}/meet", "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", rank=rank, world_size=max(sizes), **place)
    for size in sizes:
        group = dist.new_group(list(range(size)))
        for name in strategies if rank < size else ():
            for norm in (True, False):
                learner = trained(name, norm, 1, Replicas(group, rank, size))
                state = {n: t.contiguous().clone() for n, t in learner.state().items()}
                save_file(state, f"{folder}/{name}-{norm}-{size}-{rank}.safetensors")
    dist.destroy_process_group()
