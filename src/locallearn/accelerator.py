"""The one file that knows devices. Everybody else asks whether a tensor lies on the CPU, where nothing waits; on
anything else reading a number makes the host wait, and draws come from a generator of the device's own.

PyTorch has a module for each kind of accelerator, such as `torch.cuda`, and these have the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from operator import attrgetter
from types import ModuleType

import torch
from torch import Tensor

KIND = "cuda"
"""The kind of accelerator that a run may have."""
AHEAD = 64
"""Draws of so many steps go to an accelerator together."""


def module(device: torch.device) -> ModuleType | None:
    """What PyTorch has for this kind of device, such as `torch.cuda`; nothing for what needs nothing."""
    return None if device.type in ("cpu", "meta") else torch.get_device_module(device)


def is_cpu(device: torch.device) -> bool:
    """Whether what is asked of the device is done when the call returns."""
    return device.type == "cpu"


def count() -> int:
    """The accelerators of this machine that PyTorch can use; asking starts none."""
    own = torch.get_device_module(KIND)
    return own.device_count() if own.is_available() else 0


def names() -> list[str]:
    """What they are called."""
    return [torch.get_device_module(KIND).get_device_name(index) for index in range(count())]


def name(device: torch.device) -> str | None:
    """What it is called; None for a CPU."""
    return own.get_device_name(device) if (own := module(device)) else None


def rounded(device: torch.device) -> list[str] | None:
    """What is computed from float32 rounded to 10 bits (TF32) there, as PyTorch's flags say; None for a CPU."""
    precisions = attrgetter("cuda.matmul.fp32_precision", "cudnn.conv.fp32_precision")(torch.backends)
    flags = zip(("products", "convolutions"), precisions, strict=True)
    return None if module(device) is None else [name for name, precision in flags if precision == "tf32"]


def memory_bytes(device: torch.device) -> int | None:
    """The memory that it has; None for a CPU."""
    return own.get_device_properties(device).total_memory if (own := module(device)) else None


def peak_memory_bytes(device: torch.device) -> int | None:
    """The most memory that tensors have taken there since `reset_peak_memory`; None for a CPU."""
    return own.max_memory_allocated(device) if (own := module(device)) else None


def reset_peak_memory() -> None:
    """Give back memory that nothing needs, and count the peak from here. Starts no accelerator."""
    own = torch.get_device_module(KIND)
    if own.is_initialized():
        own.empty_cache()
        for index in range(own.device_count()):
            own.reset_peak_memory_stats(index)


def use(device: torch.device) -> None:
    """Make it the current one of this process: whatever is asked of an accelerator without an index goes there."""
    if (own := module(device)) and device.index is not None:
        own.set_device(device)


def synchronise(device: torch.device) -> None:
    """Wait until everything that was asked of the device is done."""
    if own := module(device):
        own.synchronize(device)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`, by a copy for which the host does not wait: for that it must lie in memory that
    is never swapped out."""
    return tensor.to(device) if is_cpu(device) else tensor.pin_memory().to(device, non_blocking=True)


def sent_ahead(draw: Callable[[int], Tensor], steps: Sequence[int], device: torch.device) -> Iterator[Tensor]:
    """What `draw` gives for each step, always of one shape, on `device`; an accelerator gets many steps in one copy."""
    if is_cpu(device):
        yield from map(draw, steps)
        return
    for first in range(0, len(steps), AHEAD):
        yield from sent(torch.stack([draw(step) for step in steps[first : first + AHEAD]]), device)


@lru_cache
def constant(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """These numbers on a device, for good: `torch.tensor(numbers, device=device)` makes the host wait each time."""
    with torch.inference_mode(False):
        return sent(torch.tensor(numbers, dtype=dtype), device)


def read(tensors: Sequence[Tensor]) -> list[list[float]]:
    """The numbers of each of several tensors of one device, in float64: for all of them the host waits once."""
    numbers = iter(torch.cat([t.detach().reshape(-1).double() for t in tensors]).tolist())
    return [list(islice(numbers, t.numel())) for t in tensors]


def generators(device: torch.device) -> list[torch.Generator]:
    """PyTorch's global generators that code on `device` draws from: that of the CPU, and that of the device itself.
    `torch.cuda.manual_seed` and its like mean the current device, which may be another one."""
    own = module(device)
    if own is None:
        return [torch.default_generator]
    own.init()  # before it there are none
    index = own.current_device() if device.index is None else device.index
    return [torch.default_generator, own.default_generators[index]]
