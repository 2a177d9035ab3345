"""Every strategy that has a yaml."""

from __future__ import annotations

import yaml

from locallearn.auxiliary import MLP
from locallearn.config.compose import choices
from locallearn.config.targets import instantiate
from locallearn.contract import Strategy
from locallearn.objectives import CrossEntropy

FILES = choices("strategy")
ANY_MODEL = sorted(FILES.keys() - {"petra"})
"""Those that train a model of any units."""


def make(name: str) -> Strategy:
    """The strategy of a yaml; options may follow its name, as in "loco reach=3"."""
    name, *options = name.split()
    config = yaml.safe_load(FILES[name].read_text())
    config |= {key: yaml.safe_load(value) for key, _, value in (option.partition("=") for option in options)}
    return instantiate(config, "strategy", [], objective=CrossEntropy(), auxiliary=MLP(layers=1, width=16))
