"""Measurements beside training; `conf/probe/*.yaml` is the list of them."""

from locallearn.probes.base import Moment, Probe, Row, Seen

__all__ = ["Moment", "Probe", "Row", "Seen"]
