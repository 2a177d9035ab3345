"""The only module that knows kinds of device. All others ask no more than whether a tensor lies on the CPU: on another
device, reading a number makes the host wait, and random numbers come from a generator of the device itself.

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
"""Random numbers for this many steps are copied to an accelerator together."""


def module(device: torch.device) -> ModuleType | None:
    """PyTorch's module for this kind of device, such as `torch.cuda`; None for cpu and meta, which need none."""
    return None if device.type in ("cpu", "meta") else torch.get_device_module(device)


def is_cpu(device: torch.device) -> bool:
    """Whether the device is the CPU, where an operation is done when its call returns."""
    return device.type == "cpu"


def count() -> int:
    """The number of accelerators of this machine that PyTorch can use; asking starts none."""
    own = torch.get_device_module(KIND)
    return own.device_count() if own.is_available() else 0


def names() -> list[str]:
    """The names of the accelerators of this machine."""
    return [torch.get_device_module(KIND).get_device_name(index) for index in range(count())]


def name(device: torch.device) -> str | None:
    """The name of an accelerator; None for a CPU."""
    return own.get_device_name(device) if (own := module(device)) else None


def rounded(device: torch.device) -> list[str] | None:
    """Which operations round float32 to a mantissa of 10 bits (TF32), by PyTorch's flags; None for a CPU."""
    precisions = attrgetter("cuda.matmul.fp32_precision", "cudnn.conv.fp32_precision")(torch.backends)
    flags = zip(("products", "convolutions"), precisions, strict=True)
    return None if module(device) is None else [name for name, precision in flags if precision == "tf32"]


def memory_bytes(device: torch.device) -> int | None:
    """The memory of an accelerator; None for a CPU."""
    return own.get_device_properties(device).total_memory if (own := module(device)) else None


def peak_memory_bytes(device: torch.device) -> int | None:
    """The most memory that tensors have taken on an accelerator since `reset_peak_memory`; None for a CPU."""
    return own.max_memory_allocated(device) if (own := module(device)) else None


def reset_peak_memory() -> None:
    """Free cached memory that no tensor uses, and measure the peak from now on. Starts no accelerator."""
    own = torch.get_device_module(KIND)
    if own.is_initialized():
        own.empty_cache()
        for index in range(own.device_count()):
            own.reset_peak_memory_stats(index)


def use(device: torch.device) -> None:
    """Make an accelerator the current one of this process, to which a device without an index refers."""
    if (own := module(device)) and device.index is not None:
        own.set_device(device)


def synchronise(device: torch.device) -> None:
    """Wait until everything that was asked of the device is done."""
    if own := module(device):
        own.synchronize(device)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`, by a copy for which the host does not wait: this takes memory that is never
    swapped out."""
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
