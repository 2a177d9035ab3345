"""What `locallearn tune` asks beside the settings of a run. Without torch, so that its `-h` answers at once."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

from locallearn.errors import UserError


@dataclass(frozen=True)
class TuneOptions:
    """What `locallearn tune` asks beside the settings of a run.

    trials  runs in all, those of earlier starts counted
    space   what is searched: a file of conf/tune/, or any FILE.yaml
    """

    trials: int = 20
    space: str = "lr"

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> tuple[TuneOptions, list[str]]:
        """The options among NAME=VALUE arguments, and all others. Raises UserError."""
        names = [field.name for field in dataclasses.fields(cls)]
        given = {name: value for name, _, value in (text.partition("=") for text in arguments) if name in names}
        trials = given.get("trials", str(cls.trials))
        if not re.fullmatch(r"[1-9]\d*", trials):
            raise UserError(f"trials={trials}: must be a whole number, at least 1")
        rest = [text for text in arguments if text.partition("=")[0] not in names]
        return cls(int(trials), given.get("space", cls.space)), rest
