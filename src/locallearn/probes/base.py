"""What is measured beside training. A probe looks and never changes: a run with probes ends with the same weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from locallearn.data import Data
from locallearn.engine import Learner


class Probe(ABC):
    """A measurement at every evaluation. Concrete ones are frozen dataclasses of typed options."""

    @abstractmethod
    def look(self, learner: Learner, data: Data) -> dict[str, float]:
        """Numbers for this epoch's record, by the name they get there."""


@dataclass(frozen=True)
class Nothing(Probe):
    """No probe."""

    def look(self, learner: Learner, data: Data) -> dict[str, float]:
        return {}
