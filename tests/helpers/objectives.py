"""Every objective that has a yaml."""

from __future__ import annotations

import torch
import yaml
from torch import nn

from locallearn.config.compose import choices
from locallearn.config.targets import instantiate
from locallearn.objectives import Objective

FILES = choices("objective")


class Teacher(nn.Module):
    """Answers with the first three numbers of an input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :3]


def make(name: str) -> Objective:
    return instantiate(yaml.safe_load(FILES[name].read_text()), "objective", [], teacher=Teacher())
