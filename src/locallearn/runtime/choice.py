"""How a user says where blocks run; `conf/runtime/*.yaml` is the list."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Annotated, Literal

from annotated_types import Ge

from locallearn.contract import Strategy
from locallearn.engine import Stage
from locallearn.errors import UserError
from locallearn.models.cut import partition
from locallearn.options import Options
from locallearn.runtime.wire.meeting import carriers_between


class Runtime(Options):
    """Where blocks run. Concrete ones are frozen dataclasses of typed options."""

    _group = "runtime"

    staleness: int = 0
    """Steps by which feedback is late at each boundary between blocks: see `engine.Stage`."""
    replicas: int = 1

    @property
    def processes(self) -> int:
        return 1

    def unread(self) -> Mapping[str, str]:
        """Options that nothing reads beside the others, and what would read them; see `Strategy.unread`."""
        return {}

    def wires(self, hosts: Sequence[str], gpus: int) -> list[str]:
        """What carries the messages of every process to the stage above, given the host of each process by rank, and
        the GPUs of each host that are to be used. Raises UserError for what cannot be."""
        return []

    def stage(self, name: str, strategy: Strategy, micro_batches: int) -> Callable[..., Stage]:
        """What drives the blocks, a constructor like `Stage`. Raises UserError for what the runtime cannot do with the
        strategy, called `name`."""
        return partial(Stage, staleness=self.staleness)


@dataclass(frozen=True)
class Serial(Runtime):
    """All blocks in this process."""

    staleness: Annotated[int, Ge(0)] = 0


@dataclass(frozen=True)
class Pipeline(Runtime):
    """One process per stage, and per replica of it.

    stages    processes that one sample passes
    replicas  copies of each stage, which share every batch
    split     blocks of each stage, such as [3,1]; auto: measured, so that the slowest stage is as fast as it can be
    message   exact, or bf16 for activations and gradients on their way
    wire      what carries messages: ring (memory that two processes of one machine share), gloo (between any
              machines), auto (ring where it can be), or nccl (from GPU to GPU)
    """

    stages: Annotated[int, Ge(1)] = 2
    replicas: Annotated[int, Ge(1)] = 1
    split: Literal["auto"] | list[Annotated[int, Ge(1)]] = "auto"
    message: Literal["exact", "bf16"] = "exact"
    wire: Literal["auto", "gloo", "ring", "nccl"] = "auto"
    staleness: Annotated[int, Ge(0)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.split, list) and len(self.split) != self.stages:
            raise UserError(f"runtime.split={self.split}: must be {self.stages} numbers of blocks, one for each stage")

    @property
    def processes(self) -> int:
        return self.stages * self.replicas

    def unread(self) -> Mapping[str, str]:
        return {} if self.stages > 1 else dict.fromkeys(("message", "wire"), "runtime.stages=2 or more")

    def stage(self, name: str, strategy: Strategy, micro_batches: int) -> Callable[..., Stage]:
        if self.message != "exact" and strategy.exact:
            raise UserError(
                f"runtime.message={self.message} rounds what blocks send, but strategy={name} needs every bit of it: "
                "choose runtime.message=exact"
            )
        return super().stage(name, strategy, micro_batches)

    def wires(self, hosts: Sequence[str], gpus: int) -> list[str]:
        return carriers_between(self.wire, hosts, self.replicas, gpus)

    def divide(self, blocks: int, seconds: Sequence[float] | None) -> list[range]:
        """The blocks of each stage, given the time of each block (None: all alike). Raises UserError."""
        if self.stages > blocks:
            raise UserError(
                f"runtime.stages={self.stages} but the model is cut into {blocks} blocks; choose at most {blocks} "
                f"stages, or more blocks, such as blocks={self.stages}"
            )
        if isinstance(self.split, list) and sum(self.split) != blocks:
            raise UserError(
                f"runtime.split={self.split} has {sum(self.split)} blocks, but the model is cut into {blocks}; choose "
                f"numbers that add up to {blocks}, or auto"
            )
        if isinstance(self.split, list):
            edges = [0, *accumulate(self.split)]
        else:
            edges = partition(seconds or [1.0] * blocks, self.stages)
        return [range(a, b) for a, b in pairwise(edges)]
