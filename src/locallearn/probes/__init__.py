"""Measurements beside training; `conf/probe/*.yaml` is the list of them."""

from locallearn.probes.base import Probe

__all__ = ["Probe"]
