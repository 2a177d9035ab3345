"""P14, in a process of its own: the way to the first step. Nothing heavy is imported before it is needed.

python scripts/bench/first.py step|before SETTING...  # the command line, which leaves after or before a step
python scripts/bench/first.py bare MODEL BATCH           # the same step in a script that somebody writes
"""

from __future__ import annotations

import os
import sys


def by_command(overrides: list[str], before: bool) -> int:
    from locallearn.cli import main as cli
    from locallearn.engine import Learner

    learn = Learner.learn

    def leave(self: Learner, *batch: object) -> None:
        if not before:
            learn(self, *batch)
        os._exit(0)

    Learner.learn = leave
    sys.argv = ["locallearn", *overrides]
    return cli.main(overrides) or 1


def by_hand(name: str, batch: int) -> None:
    """One of two nets on grey images of 32x32."""
    import torch
    from torch import nn
    from torch.nn import functional as F

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
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        layers += [nn.Flatten(), nn.Linear(512, 10)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    F.cross_entropy(model(torch.randn(batch, 1, 32, 32)), torch.randint(10, (batch,))).backward()
    optimizer.step()


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    sys.exit(by_hand(rest[0], int(rest[1])) if what == "bare" else by_command(rest, before=what == "before"))
