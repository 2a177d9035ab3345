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
    replicas       how many such pipelines share every batch
    micro_batches  parts of a batch (of a replica's share) where the schedule divides it
    bandwidth      of a link between two stages, GB/s; if neither this nor latency is given, a link here is measured
    latency        of a message, microseconds; if only one of the two is given, the other is 10 GB/s or 20
    depth          copies of the model's blocks in a row, to simulate a deeper network
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
