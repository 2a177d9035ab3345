"""Every objective that has a yaml."""

from __future__ import annotations

import yaml

from locallearn.config.compose import choices
from locallearn.config.targets import instantiate
from locallearn.objectives import Objective

FILES = choices("objective")


def make(name: str) -> Objective:
    return instantiate(yaml.safe_load(FILES[name].read_text()), "objective", [])
