"""PyTorch's optimizers as a block calls them: without what they cost beside the update."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, optim
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from locallearn import accelerator


class _WithoutCompiler(Optimizer):
    """Groups of parameters are added without a word to PyTorch's compiler, whose import takes as long as PyTorch's."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)


class TorchSGD(_WithoutCompiler, optim.SGD):
    """`torch.optim.SGD`."""


class TorchAdam(_WithoutCompiler, optim.Adam):
    """`torch.optim.Adam`."""


class TorchAdamW(_WithoutCompiler, optim.AdamW):
    """`torch.optim.AdamW`."""


class TorchNAdam(_WithoutCompiler, optim.NAdam):
    """`torch.optim.NAdam`."""


def take_step(optimizer: Optimizer) -> None:
    """`optimizer.step()` without what PyTorch puts around it, unless hooks hang on it: a mark for the profiler
    (half the time of the update of a small block) and, for its own optimizers, a word to the compiler."""
    align(optimizer)
    step: Any = type(optimizer).step
    own = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    if own or _global_optimizer_pre_hooks or _global_optimizer_post_hooks:
        optimizer.step()
    elif isinstance(optimizer, _WithoutCompiler):
        with torch.no_grad():
            inspect.unwrap(step)(optimizer)
    else:
        getattr(step, "__wrapped__", step)(optimizer)


def clear(optimizer: Optimizer) -> None:
    """Take the gradients away."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = None  # `zero_grad` does the same for 60 us more, most of it for the profiler


def gradients_of(optimizer: Optimizer) -> list[Tensor]:
    """Those that are there."""
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def sum_of_norms(gradients: list[Tensor]) -> Tensor:
    """Not finite if any number is not; half the time of `nn.utils.get_total_norm`."""
    return torch.stack(torch._foreach_norm(gradients)).sum()


def fusable(groups: list[dict]) -> bool:
    """Whether PyTorch's fused kernels can update these parameters: one pass over memory where the plain ones make
    several (Adam on a CPU takes an eighth of the time). They know floating-point numbers on a CPU or a GPU alone, and
    go through them in the order of memory, which must have no gaps."""
    parameters = [p for group in groups for p in group["params"]]
    known = all(p.is_floating_point() and p.device.type in ("cpu", accelerator.KIND) for p in parameters)
    return known and all(torch.empty_like(p).stride() == p.stride() for p in parameters)


def align(optimizer: Optimizer) -> None:
    """Give gradients and state the memory layout of their parameter. Where a gradient was put there by hand, or a
    module got another layout after its first step, fused kernels would mix up the numbers in silence."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None and _differs(p.grad, p):
                p.grad = torch.empty_like(p).copy_(p.grad)
            for key, value in optimizer.state.get(p, {}).items():
                if isinstance(value, Tensor) and value.dim() and _differs(value, p):
                    optimizer.state[p][key] = torch.empty_like(p).copy_(value)


def _differs(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape lie in memory in another order; the stride along a size of 1 says nothing."""
    return a.stride() != b.stride() and not (a.is_contiguous() and b.is_contiguous())
