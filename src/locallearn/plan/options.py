"""What `locallearn plan` asks beside the settings of a run. Without torch, so that its `-h` answers at once."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Interval

from locallearn.errors import UserError
from locallearn.options import CommandOptions

MOST_STAGES = 4096


@dataclass(frozen=True)
class PlanOptions(CommandOptions):
    """What `locallearn plan` asks beside the settings of a run.

    stages         devices
    replicas       pipelines of so many stages that share every batch
    micro_batches  parts of a batch, or of the share of a replica, where the schedule divides it
    bandwidth      of a link between two stages, GB/s; without both, the link between two processes here is measured
    latency        of a message, microseconds; where only one of the two is given, they are 10 and 20
    depth          copies of the model's blocks one after the other: a deeper network than the model, to simulate
    picture        a file for the schedules, .svg or .png
    """

    stages: Annotated[int, Interval(ge=1, le=MOST_STAGES)] = 2
    replicas: Annotated[int, Interval(ge=1, le=MOST_STAGES)] = 1
    micro_batches: Annotated[int, Interval(ge=1, le=MOST_STAGES)] = 4
    bandwidth: Annotated[float, Gt(0)] | None = None
    latency: Annotated[float, Ge(0)] | None = None
    depth: Annotated[int, Ge(1)] = 1
    picture: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stages % self.depth:
            raise UserError(
                f"depth={self.depth} but stages={self.stages}: every copy of the model gets the same number of stages; "
                f"choose a multiple of {self.depth}"
            )
        if self.picture and Path(self.picture).suffix not in (".svg", ".png"):
            raise UserError(f"picture={self.picture}: must end in .svg or .png")
        if self.picture and importlib.util.find_spec("matplotlib") is None:
            raise UserError("picture= needs matplotlib: pip install matplotlib, or leave picture= out")
