"""Every random draw comes from a stream named by what it is for, so that adding one consumer never shifts another.

A stream is a pure function of (seed, names), e.g. (0, "order", epoch=3): nothing has to be stored to resume a run, and
serial and pipelined runs draw the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_MASK = (1 << 63) - 1


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream `names` under `seed`; equal on every machine and Python."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") & _MASK


def mix(stream: int, *counters: int) -> int:
    """A cheap 63-bit seed from a derived one and counters, for use inside a step (splitmix64 finaliser)."""
    z = stream
    for counter in counters:
        z = (z + 0x9E3779B97F4A7C15 * (counter + 1)) & 0xFFFFFFFFFFFFFFFF
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        z ^= z >> 31
    return z & _MASK


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator at the start of the stream `names`."""
    return torch.Generator().manual_seed(derive(seed, *names))


@contextmanager
def stream(seed: int, *names: str | int) -> Iterator[None]:
    """Run a piece of code whose draws use PyTorch's global generator, without leaving a trace in it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, *names))
        yield
