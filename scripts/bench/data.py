"""P12: training batches from memory against torchvision, sample by sample."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bench.goals import Report
from bench.method import Bench, Sample, between, mark
from locallearn.data import Data, Split
from locallearn.data.augment import Augment
from locallearn.data.normalise import Normaliser
from locallearn.data.store import Memory

MEAN, STD = torch.tensor([0.49, 0.48, 0.45]).double(), torch.tensor([0.25, 0.24, 0.26]).double()
BATCH = 128


class Pictures(Dataset):
    """What torchvision's CIFAR-10 does with an image: from an array in memory to PIL to a normalised tensor."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist()
        to_tensor = [transforms.ToTensor(), transforms.Normalize(MEAN.tolist(), STD.tolist())]
        moves = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose([transforms.ToPILImage(), *moves, *to_tensor])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def measure(bench: Bench, report: Report) -> None:
    """Crop by 4, flip and normalise 50,000 random images of 3x32x32, in batches of 128, with one thread."""
    g = torch.Generator().manual_seed(0)
    count = 2560 if bench.quick else 50_000
    images = torch.randint(256, (count, 3, 32, 32), generator=g, dtype=torch.uint8)
    labels = torch.randint(10, (count,), generator=g)
    split = Split(Memory(images), torch.arange(count), labels)
    normaliser = Normaliser(MEAN, STD, torch.device("cpu"))
    moved = Data("random", tuple("0123456789"), (split, split, split), 0, Augment(crop=4, flip=True), normaliser)
    still = Data("random", tuple("0123456789"), (split, split, split), 0, Augment(), normaliser)
    loader = DataLoader(Pictures(images, labels), BATCH, shuffle=True, drop_last=True)
    variants = {
        "ours": lambda: _timed(bench, moved.batches(0, BATCH), moved.steps(BATCH)),
        "ours, not moved": lambda: _timed(bench, still.batches(0, BATCH), still.steps(BATCH)),
        "torchvision": lambda: _timed(bench, loader, 2 if bench.quick else 32),
    }
    series = bench.run(variants, bench.rounds(more=2))
    ours, plain, theirs = (series[name] for name in variants)
    speed = bench.joined([ours], lambda seconds: 1 / seconds)
    parts = {f"{name}_per_s": s.median and 1 / s.median for name, s in series.items()}
    without = bench.joined([ours, plain], lambda a, b: b / a).value
    why = f"taking and normalising alone are {'?' if without is None else f'{without:.0%}'} of the time"
    report.add("P12 speed", "50,000 random images", speed, why, **parts)
    report.add("P12 torchvision", "50,000 random images", bench.ratio(theirs, ours), why)


def _timed(bench: Bench, batches: Iterable[object], count: int) -> Sample:
    """Seconds per image over `count` batches."""
    start = mark(bench.pids)
    for _ in itertools.islice(batches, count):
        pass
    return between(start, mark(bench.pids), count * BATCH)
