"""What `locallearn plan` asks beside the settings of a run. Without torch, so that its `-h` answers at once."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from locallearn.errors import UserError

MOST_STAGES = 4096


@dataclass(frozen=True)
class PlanOptions:
    """What `locallearn plan` asks beside the settings of a run.

    stages         devices
    micro_batches  parts of a batch where the schedule divides it
    bandwidth      of a link between two stages, GB/s
    latency        of a message, microseconds
    depth          copies of the model's blocks one after the other: a deeper network than the model, to simulate
    picture        a file for the schedules, .svg or .png
    """

    stages: int = 2
    micro_batches: int = 4
    bandwidth: float = 10.0
    latency: float = 20.0
    depth: int = 1
    picture: str = ""

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> tuple[PlanOptions, list[str]]:
        """The options among NAME=VALUE arguments, and all others. Raises UserError."""
        kinds: dict[str, Any] = {name: type(getattr(cls, name)) for name in cls.names()}
        values: dict[str, Any] = {}
        rest = []
        for argument in arguments:
            name, _, value = argument.partition("=")
            if name not in kinds:
                rest.append(argument)
                continue
            try:
                values[name] = kinds[name](value)
            except ValueError:
                wanted = "a whole number" if kinds[name] is int else "a number"
                raise UserError(f"{argument}: must be {wanted}, such as {name}={getattr(cls, name)}") from None
        return cls(**values), rest

    @classmethod
    def names(cls) -> list[str]:
        return [f.name for f in dataclasses.fields(cls)]

    def __post_init__(self) -> None:
        for name in ("stages", "micro_batches", "depth"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        if max(self.stages, self.micro_batches) > MOST_STAGES:
            raise UserError(
                f"stages={self.stages} micro_batches={self.micro_batches}: at most {MOST_STAGES} of each are simulated"
            )
        if not (self.bandwidth > 0 and math.isfinite(self.bandwidth)):
            raise UserError(f"bandwidth={self.bandwidth}: must be above 0, in GB/s")
        if not (self.latency >= 0 and math.isfinite(self.latency)):
            raise UserError(f"latency={self.latency}: must be at least 0, in microseconds")
        if self.stages % self.depth:
            raise UserError(
                f"depth={self.depth} but stages={self.stages}: every copy of the model gets equally many stages; "
                f"choose a multiple of {self.depth}"
            )
        if self.picture and Path(self.picture).suffix not in (".svg", ".png"):
            raise UserError(f"picture={self.picture}: must end in .svg or .png")
        if self.picture and importlib.util.find_spec("matplotlib") is None:
            raise UserError("picture= needs matplotlib: pip install matplotlib, or leave picture= out")
