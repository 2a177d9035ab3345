"""MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100, SVHN and STL-10, in the files and folders that torchvision uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from locallearn.data.vision import VisionSet, torchvision_datasets

DIGITS = tuple(map(str, range(10)))


@dataclass(frozen=True)
class MNIST(VisionSet):
    """60,000 and 10,000 grey 28x28 digits. torchvision knows the sums of the archives only, hence those given here."""

    name: ClassVar[str] = "mnist"
    base: ClassVar[str] = "MNIST"
    labels: ClassVar[tuple[str, ...]] = DIGITS
    sums: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }

    def files(self) -> dict[str, str]:
        return {f"{self.base}/raw/{file}": md5 for file, md5 in self.sums.items()}

    def archives(self) -> dict[str, str]:
        return {f"{self.base}/raw/{file}": md5 for file, md5 in self.kind().resources}

    def part(self, root: str, train: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        # Not through the class of torchvision: it prefers files of an old format, unchecked, where there are any.
        reader, start = torchvision_datasets().mnist, f"{root}/{self.base}/raw/{'train' if train else 't10k'}"
        images = reader.read_image_file(f"{start}-images-idx3-ubyte")[:, None]  # [N, 1, 28, 28]
        return images, reader.read_label_file(f"{start}-labels-idx1-ubyte"), self.labels


@dataclass(frozen=True)
class FashionMNIST(MNIST):
    """60,000 and 10,000 grey 28x28 pictures of clothes."""

    name: ClassVar[str] = "fashion_mnist"
    base: ClassVar[str] = "FashionMNIST"
    labels: ClassVar[tuple[str, ...]] = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
    sums: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    }


@dataclass(frozen=True)
class Archived(VisionSet):
    """A set of colour photographs that torchvision keeps in one archive, with lists of the files inside."""

    crop: int = 4
    flip: bool = True

    def files(self) -> dict[str, str]:
        kind = self.kind()
        meta = getattr(kind, "meta", None)
        names = [(meta["filename"], meta["md5"])] if meta else []
        return {f"{kind.base_folder}/{file}": md5 for file, md5 in [*kind.train_list, *kind.test_list, *names]}

    def archives(self) -> dict[str, str]:
        return {self.kind().filename: self.kind().tgz_md5}


@dataclass(frozen=True)
class CIFAR10(Archived):
    """50,000 and 10,000 colour 32x32 photographs of 10 classes."""

    name: ClassVar[str] = "cifar10"
    base: ClassVar[str] = "CIFAR10"

    def part(self, root: str, train: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        read = self.kind()(root, train=train)  # checks the sums once more, just before it unpickles
        images = torch.from_numpy(read.data).permute(0, 3, 1, 2)  # [N, 32, 32, 3] -> [N, 3, 32, 32]
        return images, torch.tensor(read.targets), tuple(read.classes)


@dataclass(frozen=True)
class CIFAR100(CIFAR10):
    """50,000 and 10,000 colour 32x32 photographs of 100 classes."""

    name: ClassVar[str] = "cifar100"
    base: ClassVar[str] = "CIFAR100"


@dataclass(frozen=True)
class SVHN(VisionSet):
    """73,257 and 26,032 colour 32x32 house numbers; the extra training images are not used. Never flipped: digits."""

    name: ClassVar[str] = "svhn"
    base: ClassVar[str] = "SVHN"

    def files(self) -> dict[str, str]:
        listed = self.kind().split_list
        return {file: md5 for _, file, md5 in (listed["train"], listed["test"])}

    def archives(self) -> dict[str, str]:
        return self.files()

    def fetch(self, root: str) -> None:
        for split in ("train", "test"):
            self.kind()(root, split=split, download=True)

    def part(self, root: str, train: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        read = self.kind()(root, split="train" if train else "test")
        return torch.from_numpy(read.data), torch.from_numpy(read.labels), DIGITS


@dataclass(frozen=True)
class STL10(Archived):
    """5,000 and 8,000 colour 96x96 photographs of 10 classes; the 100,000 without labels are not used."""

    name: ClassVar[str] = "stl10"
    base: ClassVar[str] = "STL10"

    def kind(self) -> Any:
        """torchvision's class without the 2.6 GB of images without labels, which it would check at every start."""
        whole = super().kind()
        return type("STL10", (whole,), {"train_list": whole.train_list[:2]})

    def part(self, root: str, train: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        read = self.kind()(root, split="train" if train else "test")
        names = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
        return torch.from_numpy(read.data), torch.from_numpy(read.labels).long(), names
