"""Measurements during training; `conf/probe/*.yaml` lists them. What a probe needs can be imported from here."""

from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.probes.base import CLASS_LABELS, Arrays, Curve, Every, Moment, Pictures, Probe, Row, Seen
from locallearn.probes.depth import by_layer, chosen, layers, outputs, sample

__all__ = [
    "CLASS_LABELS", "Arrays", "Curve", "Data", "Every", "Learner", "Moment", "Pictures", "Probe", "Row", "Seen",
    "by_layer", "chosen", "layers", "outputs", "sample",
]  # fmt: skip
