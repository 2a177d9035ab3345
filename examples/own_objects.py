"""A module, a data set, a strategy and a callback of your own as a run: two processes train it, and one goes on.

python examples/own_objects.py          # half a minute; writes runs/own/
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset

import locallearn
from locallearn.callbacks import Callback, RunView
from locallearn.strategies.greedy import DGL


class Net(nn.Module):
    """Nothing in it knows of blocks: it is cut wherever that is possible."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU())
        self.classifier = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.deep(self.down(self.stem(x))).mean((2, 3)))


class Digits(Dataset):
    """Scikit-learn's digits, each moved by up to a pixel. The draws are PyTorch's own: the run seeds them."""

    classes = tuple("0123456789")

    def __init__(self, part: slice, moves: bool) -> None:
        images, labels = load_digits(return_X_y=True)
        self.images = torch.tensor(images[part] / 8 - 1).float().view(-1, 1, 8, 8)
        self.targets = torch.tensor(labels[part])
        self.moves = moves

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        image = self.images[place]
        if self.moves:
            right, down = torch.randint(-1, 2, (2,)).tolist()
            image = image.roll((down, right), dims=(1, 2))
        return image, self.targets[place]


@dataclass(frozen=True)
class Sparse(DGL):
    """Every block learns from its own classifier, and to be silent: L = cross-entropy + beta * mean |h|."""

    beta: Annotated[float, Ge(0)] = 0.01

    def loss(self, block, h, packet):
        return super().loss(block, h, packet) + self.beta * h.abs().mean()


class Largest(Callback):
    """Records the largest weight of each block at every evaluation."""

    def measure(self, run: RunView) -> dict[str, float]:
        largest = {}
        for block in run.learner.blocks:
            weights = [p.detach().abs().max() for p in block.layers.parameters()]
            largest[f"block/{block.spec.index:02d}/largest_weight"] = float(torch.stack(weights).max())
        return largest


def main() -> None:
    torch.manual_seed(0)
    objects = {
        "model": Net(),
        "data": {"train": Digits(slice(0, 1400), moves=True), "test": Digits(slice(1400, None), moves=False)},
        "strategy": partial(Sparse, beta=0.01),
        "optim": partial(torch.optim.NAdam, lr=0.01),
        "callbacks": [Largest()],
    }
    settings = {"auxiliary": "linear", "blocks": 2, "epochs": 2, "out": "runs/own"}
    result = locallearn.train(runtime="pipeline", **objects, **settings, **{"optim.schedule": "one_cycle"})
    longer = locallearn.resume(result.run_dir, epochs=4, runtime="serial", **objects)
    before, after = (each.metrics["test/accuracy"] for each in (result, longer))
    print(f"test accuracy {before:.3f} after 2 epochs, {after:.3f} after 4")
    net = objects["model"]
    locallearn.load(longer.run_dir, model=net)  # the trained weights, in the module of yours
    images = objects["data"]["test"].images
    assert torch.allclose(net.eval()(images), longer.model(images), atol=1e-5)


if __name__ == "__main__":
    main()
