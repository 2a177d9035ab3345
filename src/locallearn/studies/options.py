"""What `locallearn tune` asks beside the settings of a run. Without torch, so that its `-h` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from locallearn.options import CommandOptions


@dataclass(frozen=True)
class TuneOptions(CommandOptions):
    """What `locallearn tune` asks beside the settings of a run.

    trials  runs in all, including those of earlier starts
    space   what is searched: a file of conf/tune/, or any FILE.yaml
    """

    trials: Annotated[int, Ge(1)] = 20
    space: str = "lr"
