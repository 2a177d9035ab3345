"""How fast `data=folder` streams, against its decoder alone: 2,000 JPEGs of 320x240 at 224 pixels.

    python scripts/folder_speed.py

Rounds in turn, A B A B; the fastest of each, for whatever else runs can only slow them. The first batch, for which the
workers must be started, is said apart.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from locallearn.data.folder import Folder
from locallearn.data.stream import read_image
from locallearn.training.environment import keep_freed_memory

FILES, SIZE, BATCH, ROUNDS = 2000, 224, 64, 3


def write(root: Path) -> None:
    """Two classes of smooth colours under noise, which compress as photographs do (27 kB each)."""
    draws = np.random.default_rng(0)
    for i in range(FILES):
        colours = Image.fromarray(draws.integers(0, 256, (8, 10, 3), dtype=np.uint8))
        smooth = np.asarray(colours.resize((320, 240), Image.Resampling.BICUBIC)).astype(int)
        pixels = smooth + draws.normal(0, 8, (240, 320, 1)).astype(int)
        folder = root / "ab"[i % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:04}.jpg", quality=88)


def decoded(files: list[Path]) -> tuple[float, float]:
    """Images a second of the decoder alone, in this process."""
    start = time.perf_counter()
    for file in files:
        read_image(file, SIZE)
    return len(files) / (time.perf_counter() - start), 0.0


def streamed(root: Path, workers: int) -> tuple[float, float]:
    """Training images a second after the first batch, and the seconds until that."""
    data = Folder(root=str(root), size=SIZE, memory_share=0, workers=workers).load(0, torch.device("cpu"))
    start = time.perf_counter()
    ends = [time.perf_counter() - start for _ in moments(data.batches(0, BATCH))]
    return BATCH * (len(ends) - 1) / (ends[-1] - ends[0]), ends[0]


def moments(batches: Iterator[object]) -> Iterator[None]:
    for _ in batches:
        yield


def main() -> int:
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root)
        files = sorted(root.rglob("*.jpg"))
        found: dict[str, list[tuple[float, float]]] = {}
        for _ in range(ROUNDS):
            found.setdefault("decoder alone", []).append(decoded(files[: FILES // 2]))
            for workers in (1, 2):
                found.setdefault(f"workers={workers}", []).append(streamed(root, workers))
    for name, rounds in found.items():
        speed, first = max(rounds)
        print(f"{name}: {speed:.0f} images/s" + (f", the first batch after {first:.2f} s" if first else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
