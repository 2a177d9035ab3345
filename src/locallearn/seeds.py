"""Every random draw comes from a stream named by what it is for, so that adding one consumer never shifts another.

A stream is a pure function of (seed, names), e.g. (0, "order", epoch=3): nothing has to be stored to resume a run, and
serial and pipelined runs draw the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from locallearn.accelerator import generators

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


class StepSeeds:
    """`mix(stream, step, micro, part)` for the micro-batches and parts of a step, worked out for a run of steps ahead:
    between the kernels of a step, with cold caches, one call of `mix` takes 8 us, in a row 2."""

    AHEAD = 64

    def __init__(self, stream: int, parts: int) -> None:
        self._stream = stream
        self._parts = range(parts)
        self._micros = range(1)
        self._steps = range(0)
        self._table: list[list[list[int]]] = []

    def __call__(self, step: int, micro: int, part: int) -> int:
        if step not in self._steps or micro not in self._micros:
            self._micros = range(max(micro + 1, len(self._micros)))
            self._steps = range(step, step + max(1, self.AHEAD // len(self._micros)))
            self._table = [
                [[mix(self._stream, s, m, p) for p in self._parts] for m in self._micros] for s in self._steps
            ]
        return self._table[step - self._steps.start][micro][part]


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator at the start of the stream `names`."""
    return torch.Generator().manual_seed(derive(seed, *names))


def restart(seed: int, device: torch.device) -> None:
    """Put the global generators of `device` at the start of the stream `seed`."""
    for generator in generators(device):
        generator.manual_seed(seed)


class Undisturbed:
    """While entered, PyTorch's global generators may be seeded at will; afterwards those of `device` are as they were.

    It may be entered again while it is: only the outermost one copies, so that a loop which enters it once spares each
    of its steps the copy (12 us in place; `torch.random.fork_rng`, which copies every time, 60 us).
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._depth = 0
        self._before: list[Tensor] = []

    def __enter__(self) -> None:
        if not self._depth:
            self._before = [generator.get_state() for generator in generators(self._device)]
        self._depth += 1

    def __exit__(self, *exception: object) -> None:
        self._depth -= 1
        if not self._depth:
            for generator, state in zip(generators(self._device), self._before, strict=True):
                generator.set_state(state)


def noise_like(t: Tensor, *counters: int) -> Tensor:
    """Normal numbers in the shape of t, from a stream of their own that follows from PyTorch's seed and `counters`: the
    global generators go on as if nothing had been drawn."""
    with restarted(mix(torch.initial_seed(), *counters), t.device):
        return torch.randn_like(t)


@contextmanager
def restarted(seed: int, device: torch.device) -> Iterator[None]:
    """Run a piece of code with PyTorch's global generators, of the CPU and of `device`, at the start of the stream
    `seed`, and without leaving a trace in them."""
    with Undisturbed(device):
        restart(seed, device)
        yield


def stream(
    seed: int,
    *names: str | int,
    device: torch.device = torch.device("cpu"),  # noqa: B008  # frozen
) -> AbstractContextManager[None]:
    """`restarted` at the start of the stream `names`."""
    return restarted(derive(seed, *names), device)
