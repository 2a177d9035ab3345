"""P14, in a process of its own: the way to the first step. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import os
import sys


def by_command(overrides: list[str], before: bool) -> None:
    """The command line, which leaves as soon as its first step is done, or, with `before`, as it begins."""
    from locallearn.cli import main as cli
    from locallearn.engine import Learner

    learn = Learner.learn

    def leave(self: Learner, *batch: object) -> None:
        if not before:
            learn(self, *batch)
        os._exit(0)

    Learner.learn = leave
    sys.argv = ["locallearn", *overrides]
    sys.exit(cli.main(overrides) or 1)


def by_hand(name: str, batch: int) -> None:
    """The same step in a script that somebody writes for one of these nets, on grey images of 32x32."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    def conv(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    torch.set_num_threads(1)
    layers: list[nn.Module] = []
    if name == "lenet":
        for inputs, outputs in ((1, 6), (6, 16)):
            layers += [nn.Conv2d(inputs, outputs, 5), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    else:
        channels = 1
        for width, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(repeats):
                layers += conv(channels, width)
                channels = width
            layers.append(nn.MaxPool2d(2))
        layers += [nn.Flatten(), nn.Linear(512, 10)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    F.cross_entropy(model(torch.randn(batch, 1, 32, 32)), torch.randint(10, (batch,))).backward()
    optimizer.step()
