"""What the checks use: the device, nets and pictures, times, and what the host waits for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

from helpers import shadow
from helpers.nets import assembled
from helpers.strategies import make
from locallearn import accelerator
from locallearn.analysis.cost import now
from locallearn.data import Data
from locallearn.data.augment import Augment
from locallearn.data.dataset import Split
from locallearn.data.normalise import IMAGENET, Normaliser
from locallearn.data.store import Memory
from locallearn.engine import SGD, Learner
from locallearn.models.resnet import cifar_resnet
from locallearn.models.vgg import vgg

Outcome: TypeAlias = tuple[str, dict[str, Any]]
"""What a check returns: a sentence, and numbers by name."""
IMAGE, CLASSES = (3, 32, 32), 10


def on(device: str) -> torch.device:
    """The device of that name, the current one of this process."""
    if device == "shadow":
        shadow.register()
    assert device == "cpu" or accelerator.count(), "there is no such device here"
    chosen = torch.device(device) if device == "cpu" else torch.device(device, 0)
    accelerator.use(chosen)
    return chosen


def resnet(depth: int) -> Any:
    torch.manual_seed(0)
    return cifar_resnet(IMAGE, CLASSES, depth=depth)


def learner_of(strategy: str, model: Any, device: torch.device, blocks: int = 3, **options: Any) -> Learner:
    optim = SGD(lr=0.01, schedule="constant")
    return assembled(model, make(strategy), optim, model.cut(blocks), device=device, total_steps=1000, **options)


def images(batch: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    return torch.randn(batch, *IMAGE, generator=draws), torch.randint(CLASSES, (batch,), generator=draws)


def pictures(count: int, device: torch.device) -> Data:
    """`count` random pictures, cropped and flipped as those of CIFAR-10 are."""
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, *IMAGE), dtype=torch.uint8, generator=draws).to(device)
    split = Split(Memory(pixels), torch.arange(count), torch.arange(count).remainder(CLASSES).to(device))
    normaliser = Normaliser.of(IMAGENET, device)
    return Data("random", tuple(map(str, range(CLASSES))), (split,) * 3, 0, Augment(crop=4, flip=True), normaliser)


def timed(device: torch.device, call: Callable[[], object], times: int = 10) -> float:
    """Seconds of a call: the mean over `times` calls, after three to warm up."""
    for _ in range(3):
        call()
    started = now(device)
    for _ in range(times):
        call()
    return (now(device) - started) / times


def vgg16() -> Any:
    torch.manual_seed(0)
    return vgg(IMAGE, CLASSES, depth=16)


@contextmanager
def waiting(device: torch.device) -> Iterator[list[str]]:
    """What the host waits for meanwhile; a CPU is never waited for."""
    found: list[str] = []
    if device.type == "shadow":
        with shadow.watched() as found:
            yield found
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        yield found
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    found += [f"{w.message} at {w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
