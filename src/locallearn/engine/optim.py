"""Optimizers by parameter group, and the learning rate as a function of progress: no scheduler to checkpoint."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Gt, Interval
from torch import nn
from torch.optim import Optimizer

from locallearn.engine.updates import TorchAdam, TorchAdamW, TorchNAdam, TorchSGD, fusable
from locallearn.errors import UserError, described
from locallearn.options import OneOf, Options


def one_cycle(progress: float) -> float:
    """Smith & Topin's one-cycle policy (arXiv 1708.07120) as `torch.optim.lr_scheduler.OneCycleLR` has it by default:
    from 1/25 up to the whole rate over the first 30 %, then down to 4e-6 of it, by half cosines. Momentum is kept."""
    start, end, rise = 1 / 25, 1 / 25e4, 0.3
    if progress < rise:
        return 1 + (start - 1) * _half_cosine(progress / rise)
    return end + (1 - end) * _half_cosine((progress - rise) / (1 - rise))


def _half_cosine(progress: float) -> float:
    """From 1 to 0."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Callable[[float, Optim], float]] = {
    "constant": lambda p, o: 1.0,
    "linear": lambda p, o: o.floor + (1.0 - o.floor) * (1.0 - p),
    "cosine": lambda p, o: o.floor + (1.0 - o.floor) * _half_cosine(p),
    "late_linear": lambda p, o: min(1.0, 2.0 * (1.0 - p)),
    "step": lambda p, o: o.decay ** sum(p >= m for m in o.milestones),
    "one_cycle": lambda p, o: one_cycle(p),
}


@dataclass(frozen=True)
class Optim(Options, ABC):
    """What every optimizer shares.

    lr, weight_decay  of a block's units and head
    decay_vectors     false: weight decay holds for parameters of two axes or more alone, matrices and convolutions, and
                      not for biases and norms (as GPT-2 and its kin are trained)
    schedule          of the learning rate: constant, linear or cosine to the floor, late_linear (to zero over the
                      second half), step, one_cycle, or a function of your own, progress in [0, 1] -> factor
    floor             where linear and cosine end, as a share of the rate
    warmup            share of training over which the rate rises linearly from zero
    hold              share of the rest of training over which the rate then stays, before the schedule begins
    milestones        with schedule=step: the shares of training at which the rate is multiplied by `decay`
    clip              largest gradient norm per block; 0: no clipping
    auxiliary_lr, auxiliary_weight_decay   of the auxiliary modules; None: as the units
    """

    _group = "optim"

    lr: Annotated[float, Ge(0)] = 0.05
    weight_decay: Annotated[float, Ge(0)] = 0.0
    decay_vectors: bool = True
    schedule: Annotated[str, OneOf(tuple(SCHEDULES))] | Callable[[float], float] = "cosine"
    floor: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    warmup: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    hold: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    milestones: list[Annotated[float, Interval(ge=0, le=1)]] = field(default_factory=lambda: [0.5, 0.75])
    decay: Annotated[float, Ge(0)] = 0.1
    clip: Annotated[float, Ge(0)] = 0.0
    auxiliary_lr: Annotated[float, Ge(0)] | None = None
    auxiliary_weight_decay: Annotated[float, Ge(0)] | None = None

    @staticmethod
    def refuse(options: Mapping[str, object]) -> None:
        """Say of options what their types cannot. Raises UserError."""
        if options.get("schedule") == "plateau":
            raise UserError(
                "optim.schedule=plateau would wait for a validation number, and a schedule here is a function of "
                "progress alone: choose step with optim.milestones, cosine, or a function of your own"
            )

    def __post_init__(self) -> None:
        self.refuse({"schedule": self.schedule})
        super().__post_init__()
        if callable(self.schedule):
            for progress in (0.0, 0.5, 1.0):
                self.factor(progress)

    def unread(self) -> Mapping[str, str]:
        """Options that nothing reads beside the others, and what would read them; see `Strategy.unread`."""
        unread = {} if self.schedule == "step" else dict.fromkeys(("milestones", "decay"), "optim.schedule=step")
        if self.schedule not in ("linear", "cosine"):
            unread["floor"] = "optim.schedule=linear or cosine"
        if self.schedule == "constant":
            unread["hold"] = "another optim.schedule"
        if not self.weight_decay and not self.auxiliary_weight_decay:
            unread["decay_vectors"] = "optim.weight_decay above 0"
        return unread

    def factor(self, progress: float) -> float:
        """The share of the base rate at `progress` in [0, 1]."""
        if progress < self.warmup:
            return progress / self.warmup
        progress = (progress - self.warmup) / (1 - self.warmup)
        progress = max(0.0, (progress - self.hold) / (1 - self.hold))
        if isinstance(self.schedule, str):
            return SCHEDULES[self.schedule](progress, self)
        return _factor_of(self.schedule, progress)

    def of_block(
        self, layers: nn.Module, head: nn.Module | None, auxiliary: nn.ModuleDict, separate: frozenset[str]
    ) -> dict[str, Optimizer | None]:
        """One optimizer for the `main` part of a block, and one for each auxiliary module that has its own; None where
        nothing learns."""
        main = [*layers.parameters(), *(head.parameters() if head is not None else ())]
        joint = [p for name, m in auxiliary.items() if name not in separate for p in m.parameters()]
        parts = {"main": self.groups(_trainable(main), _trainable(joint))}
        for name in sorted(separate & set(auxiliary)):
            parts[name] = self.groups([], _trainable(auxiliary[name].parameters()))
        return {name: self.build(groups) if groups else None for name, groups in parts.items()}

    def groups(self, main: list[nn.Parameter], auxiliary: list[nn.Parameter]) -> list[dict]:
        """Parameter groups of one optimizer; `base_lr` is what the schedule multiplies."""
        aux_lr = self.lr if self.auxiliary_lr is None else self.auxiliary_lr
        aux_decay = self.weight_decay if self.auxiliary_weight_decay is None else self.auxiliary_weight_decay
        groups = []
        for parameters, lr, decay in ((main, self.lr, self.weight_decay), (auxiliary, aux_lr, aux_decay)):
            spared = [p for p in parameters if p.dim() < 2 and not self.decay_vectors]
            decayed = [p for p in parameters if p.dim() >= 2] if spared else parameters
            groups += [
                {"params": own, "lr": lr, "base_lr": lr, "weight_decay": share}
                for own, share in ((decayed, decay), (spared, 0.0))
                if own
            ]
        return groups

    @abstractmethod
    def build(self, groups: list[dict]) -> Optimizer:
        """The PyTorch optimizer over these groups."""


def _factor_of(schedule: Callable[[float], float], progress: float) -> float:
    """What a schedule of the user's says. Raises UserError for what is no factor."""
    try:
        factor = float(schedule(progress))
    except Exception as error:
        raise UserError(f"optim.schedule at progress {progress:g}: {described(error)}") from error
    if not 0 <= factor < math.inf:
        raise UserError(f"optim.schedule is {factor} at progress {progress:g}: must be a finite factor of at least 0")
    return factor


def _trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return list(dict.fromkeys(p for p in parameters if p.requires_grad))


@dataclass(frozen=True)
class SGD(Optim):
    """Stochastic gradient descent with momentum."""

    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.momentum == 0:
            raise UserError("optim.nesterov=true needs a momentum: set optim.momentum=0.9 or optim.nesterov=false")

    def build(self, groups: list[dict]) -> Optimizer:
        return TorchSGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, fused=fusable(groups))


@dataclass(frozen=True)
class Adam(Optim):
    """Adam (Kingma & Ba 2015); `weight_decay` is an L2 term in the gradient."""

    lr: Annotated[float, Ge(0)] = 2e-3
    beta1: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Interval(ge=0, lt=1)] = 0.999
    eps: Annotated[float, Gt(0)] = 1e-8

    def build(self, groups: list[dict]) -> Optimizer:
        return TorchAdam(groups, lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps, fused=fusable(groups))


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    weight_decay: Annotated[float, Ge(0)] = 0.01

    def build(self, groups: list[dict]) -> Optimizer:
        return TorchAdamW(groups, lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps, fused=fusable(groups))


@dataclass(frozen=True)
class NAdamW(AdamW):
    """AdamW with Nesterov's look-ahead (Dozat 2016), PyTorch's NAdam with decoupled weight decay.

    The share mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2) of the look-ahead rises from a half of beta1 in the first
    update to beta1; the gradient counts 1 - mu_t. With beta1=0.99 it is what AsyncPP (Ajanthan et al. 2025, arXiv
    2505.01099) trains with late gradients: `runtime.staleness`.
    """

    momentum_decay: Annotated[float, Ge(0)] = 4e-3

    def build(self, groups: list[dict]) -> Optimizer:
        return TorchNAdam(
            groups,
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            momentum_decay=self.momentum_decay,
            decoupled_weight_decay=True,
        )
