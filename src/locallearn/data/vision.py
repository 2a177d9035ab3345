"""What the sets of torchvision (benchmarks.py) have in common: their files are checked, or downloaded, then read.

Files already there are used only with the right checksum (CIFAR's are pickles: nothing is unpickled before that), and
are never overwritten. What is missing is downloaded into a temporary folder, checked, and moved into place.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar
from urllib.error import URLError

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional as F

from locallearn.data.files import ALL_CHECKED, WHERE, check_sum, checked_root, has_no
from locallearn.data.source import DataSource, Raw, RawSplit, require
from locallearn.data.store import Memory
from locallearn.errors import UserError

TIMEOUT_SECONDS = 30.0
CHUNK = 4096


@dataclass(frozen=True)
class VisionSet(DataSource):
    """A set of torchvision, as a subclass describes it. `base` is the name of torchvision's class.

    shrink  images are read smaller, by this factor: means over squares of so many pixels a side
    """

    base: ClassVar[str]
    verified: ClassVar[str] = ALL_CHECKED

    shrink: Annotated[int, Ge(1)] = 1

    @abstractmethod
    def files(self) -> dict[str, str]:
        """The md5 of each file that is read, by its path below the root."""

    @abstractmethod
    def archives(self) -> dict[str, str]:
        """The md5 of what torchvision downloads, by path below the root; it is used if it is there already."""

    def kind(self) -> Any:
        """torchvision's class."""
        return getattr(torchvision_datasets(), self.base)

    def fetch(self, root: str) -> None:
        """Let torchvision download and unpack below `root`."""
        self.kind()(root, download=True)

    @abstractmethod
    def part(self, root: str, train: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """Images uint8 [N, C, H, W], labels int64 [N] and class names, from files that were checked."""

    def read(self, device: torch.device) -> Raw:
        root = checked_root(self.name, self.folder())
        with _quiet(self.name, root):
            self._check(root, self.files())
            missing = [path for path in self.files() if not (root / path).is_file()]
            if missing:
                self._check(root, self.archives())
                self._download(root, missing)
            images, labels, classes = self.part(str(root), train=True)
            test_images, test_labels, _ = self.part(str(root), train=False)
        images, test_images = (shrunk(part, self.shrink) for part in (images, test_images))
        return Raw(classes, RawSplit(Memory(images), labels), RawSplit(Memory(test_images), test_labels))

    def _check(self, root: Path, sums: Mapping[str, str]) -> None:
        """Raise UserError for the first file that is there but has another checksum."""
        for path, expected in sums.items():
            if (root / path).is_file():
                check_sum(root / path, "md5", expected, "delete it to have it downloaded, or put the right one there")

    def _download(self, root: Path, missing: list[str]) -> None:
        """Download what the set needs and move what is missing into place, whole files only. Raises UserError."""
        made = [folder for folder in (root, *root.parents) if not folder.exists()]
        try:
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as temporary, _patience():
                for archive in filter(lambda path: (root / path).is_file(), self.archives()):
                    (Path(temporary) / archive).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(root / archive, Path(temporary) / archive)  # torchvision may overwrite it
                self.fetch(temporary)
                self._check(Path(temporary), self.files())
                for path in missing:
                    (root / path).parent.mkdir(parents=True, exist_ok=True)
                    (Path(temporary) / path).replace(root / path)
        except Exception as error:  # urllib, tarfile, sockets and torchvision each have their own
            with suppress(OSError):  # of another process that uses it, too
                for folder in made:
                    folder.rmdir()
            raise UserError(
                f"{has_no(self.name, root, missing)}, and the download failed ({_first_line(error)}): put "
                f"{', '.join(self.archives())} (or what is inside) into that folder, or {WHERE} the folder that has "
                "them"
            ) from error


def shrunk(images: Tensor, factor: int) -> Tensor:
    """uint8 [N, C, H, W] -> [N, C, H / factor, W / factor], each pixel the rounded mean of a square. Raises
    UserError."""
    height, width = images.shape[2:]
    even = height % factor == width % factor == 0
    require(even, "shrink", factor, f"a divisor of both sides of images of {height} x {width} pixels")
    if factor == 1:
        return images
    parts = [F.avg_pool2d(part.float(), factor).round_().to(torch.uint8) for part in images.split(CHUNK)]
    return torch.cat(parts)


def torchvision_datasets() -> Any:
    """torchvision.datasets, imported when a set first needs it. Raises UserError if it cannot be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchvision import datasets
    except Exception as error:  # a build that does not match torch raises RuntimeError, not ImportError
        raise UserError(
            f"torchvision cannot be imported ({_first_line(error)}); install the version that goes with torch "
            f"{torch.__version__}, or use data=digits"
        ) from error
    return datasets


@contextmanager
def _quiet(name: str, root: Path) -> Iterator[None]:
    """No warnings, and what a reader raises turned into one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Exception as error:
        reason = _first_line(error)
        raise UserError(f"data={name}: the files in {root} cannot be read ({reason}): replace them") from error


@contextmanager
def _patience() -> Iterator[None]:
    """A server that does not answer is given up after a while; torchvision would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _first_line(error: Exception) -> str:
    if isinstance(error, URLError):
        error = error.reason if isinstance(error.reason, Exception) else error
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".:")
