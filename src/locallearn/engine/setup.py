"""What all blocks of a learner have in common, and where those of one process live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import nn

from locallearn.engine.link import Link
from locallearn.engine.replicas import Replicas
from locallearn.task import CLASSES, Task

Pixels: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp16": torch.float32, "fp64": torch.float64}
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Setup:
    """How the blocks of a learner compute, and what is known of the training ahead.

    seed           of auxiliary modules, and of what steps draw at random
    precision      fp32, bf16 or fp16 (weights in float32, autocast; fp16 also scales gradients) or fp64
    channels_last  the memory layout of maps
    compiled       whether torch.compile works on units and head
    micro_batches  parts of a batch whose gradients are averaged
    total_steps    None if nobody knows; then the learning rate is constant
    train_blocks   the blocks that learn; None: all of them
    pixels         see `BlockSpec`
    task           what is asked of the model
    """

    seed: int = 0
    precision: str = "fp32"
    channels_last: bool = False
    compiled: bool = False
    micro_batches: int = 1
    total_steps: int | None = None
    train_blocks: frozenset[int] | None = None
    pixels: Pixels | None = None
    task: Task = CLASSES

    @property
    def dtype(self) -> torch.dtype:
        """The type of weights."""
        return DTYPES[self.precision]

    @property
    def half(self) -> torch.dtype | None:
        """The type of 16 bits that autocast computes in, if any."""
        return HALVES.get(self.precision)


class BlockModules(NamedTuple):
    """See `contract.Block`."""

    layers: nn.Module
    head: nn.Module | None
    auxiliary: nn.ModuleDict


class Place(NamedTuple):
    """Where the blocks of one process live, and what joins them to those of other processes.

    own       which blocks of the cut; None: all of them
    link      to the stages of a pipeline below and above
    replicas  copies of this stage; see `Stage`
    """

    device: torch.device = torch.device("cpu")
    own: range | None = None
    link: Link | None = None
    replicas: Replicas | None = None
