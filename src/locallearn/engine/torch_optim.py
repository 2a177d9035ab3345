"""Any optimizer of PyTorch as an `Optim`, its own arguments as options; and the state of optimizers, by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer

from locallearn import seeds
from locallearn.engine.optim import Optim
from locallearn.engine.updates import TorchAdam, TorchAdamW, TorchNAdam, TorchSGD, take_step
from locallearn.errors import UserError, in_one_line

OURS = (SGD, Adam, AdamW, NAdam, TorchSGD, TorchAdam, TorchAdamW, TorchNAdam)
NUMBERS = {"bool": torch.bool, "int": torch.int64, "float": torch.float64}
"""How plain numbers of a state are stored; their names end in `:int` and so on."""
GROUP = "group:"
"""Before the name of a number that an optimizer keeps for a whole group; it stands with the group's first parameter."""
HOW = {"foreach", "fused", "capturable", "differentiable"}
"""Arguments that decide how a step is computed, not what: they are PyTorch's to choose."""


@dataclass(frozen=True)
class TorchOptim(Optim):
    """An optimizer of any class. `of_class` makes the subclass that has the arguments of that class as options.

    lr, weight_decay  null: the default of the class
    """

    optimizer: ClassVar[type[Optimizer]]
    own: ClassVar[frozenset[str]] = frozenset()
    """The arguments of the class that are options here."""

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, _default(self.optimizer, name))
            if getattr(self, name) is None:
                raise UserError(f"optim.{name} is missing: {self.optimizer.__name__} has no default for it")
        super().__post_init__()
        self._check()

    def unread(self) -> Mapping[str, str]:
        decays = {} if "weight_decay" in self.own else ("weight_decay", "auxiliary_weight_decay")
        return {**super().unread(), **dict.fromkeys(decays, "optim=NAME whose optimizer has a weight_decay")}

    def build(self, groups: list[dict]) -> Optimizer:
        arguments = {name: getattr(self, name) for name in self.own}
        try:
            return self.optimizer(groups, **arguments)
        except Exception as error:  # a user's class raises whatever it does
            raise UserError(f"optim: {self.optimizer.__name__} cannot be built: {in_one_line(error)}") from error

    def _check(self) -> None:
        """Take two steps with one weight. Raises UserError for an optimizer that wants another gradient, or calls the
        loss by itself, or whose state no checkpoint could hold."""
        name = self.optimizer.__name__
        closure = inspect.signature(self.optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise UserError(
                f"optim: {name} evaluates the loss several times a step, and a block learns from one pass: choose an "
                "optimizer whose step() needs no closure"
            )
        weight = nn.Parameter(torch.ones(2, 2))
        optimizer = self.build(self.groups([weight], []))
        try:
            with seeds.stream(0, "optimizer"):
                for _ in range(2):
                    weight.grad = torch.ones_like(weight)
                    take_step(optimizer)
        except Exception as error:
            raise UserError(f"optim: {name} cannot take a step with a dense gradient: {in_one_line(error)}") from error
        groups = {key: value for key, value in optimizer.param_groups[0].items() if isinstance(value, Tensor)}
        for key, value in {**groups, **optimizer.state.get(weight, {})}.items():
            if not isinstance(value, Tensor | int | float | None) or key in groups:
                raise UserError(
                    f"optim: {name} keeps a {type(value).__name__} as {key!r}, which no checkpoint holds: its state "
                    "must be tensors and numbers for each parameter"
                )


_MADE: dict[Any, type[TorchOptim]] = {}


def of_class(optimizer: type[Optimizer]) -> type[TorchOptim]:
    """The `Optim` that builds optimizers of this class. Raises UserError for one that takes no learning rate."""
    if optimizer not in _MADE:
        _MADE[optimizer] = _made(optimizer)
    return _MADE[optimizer]


def _made(optimizer: type[Optimizer]) -> type[TorchOptim]:
    arguments = {p.name: p for p in list(inspect.signature(optimizer).parameters.values())[1:]}
    named = {name: p for name, p in arguments.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    if "lr" not in named:
        raise UserError(f"optim: {optimizer.__name__} must have an argument lr, for the schedule to multiply")
    shared = {each.name for each in fields(Optim)} - {"lr", "weight_decay"} | HOW
    rate = Annotated[float, Ge(0)] | None
    options: list[Any] = [(name, rate, field(default=None)) for name in ("lr", "weight_decay")]
    for name, p in named.items():
        if name not in ("lr", "weight_decay") and name not in shared:
            default: Any = field(kw_only=True) if p.default is p.empty else field(default=p.default, kw_only=True)
            options.append((name, Any, default))
    own = frozenset(named) - shared
    space = {"optimizer": optimizer, "own": own, "__doc__": (optimizer.__doc__ or "").strip().partition("\n")[0]}
    made = make_dataclass(optimizer.__name__, options, bases=(TorchOptim,), namespace=space, frozen=True)
    made.__module__ = __name__
    return made


def _default(optimizer: type[Optimizer], name: str) -> Any:
    """The number that a class has for an argument; 0 for one that it does not take; None if it must be given."""
    argument = inspect.signature(optimizer).parameters.get(name)
    default = 0.0 if argument is None else argument.default
    return default if isinstance(default, int | float) else None


def state_of(optimizer: Optimizer) -> Iterator[tuple[Tensor, str, Tensor]]:
    """All that an optimizer remembers, as (parameter, name, tensor): of each parameter, and of a group the numbers that
    have moved from where they began."""
    for p, state in optimizer.state.items():
        for key, value in state.items():
            if value is not None:
                yield p, *_stored(key, value)
    for group in optimizer.param_groups:
        for key, first in _numbers(optimizer):
            if group[key] != first:
                yield group["params"][0], *_stored(f"{GROUP}{key}", group[key])


def _numbers(optimizer: Optimizer) -> Iterator[tuple[str, Any]]:
    """What an optimizer may count in its groups, and where that began; ours count nothing there."""
    if type(optimizer) not in OURS:
        for key, value in optimizer.defaults.items():
            if isinstance(value, int | float) and key not in ("lr", "weight_decay"):
                yield key, value


def forget(optimizer: Optimizer) -> None:
    """Put an optimizer back to where it began."""
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group.update(_numbers(optimizer))


def _stored(key: str, value: Any) -> tuple[str, Tensor]:
    if isinstance(value, Tensor):
        return key, value
    kind = type(value).__name__
    return f"{key}:{kind}", torch.tensor(value, dtype=NUMBERS[kind])


def misfit(optimizer: Optimizer, p: Tensor, value: Tensor) -> bool:
    """Whether a saved tensor cannot be of the state of `p`. Some optimizers keep less than the shape of a weight."""
    fits = value.shape == p.shape if type(optimizer) in OURS else value.numel() <= p.numel()
    return bool(value.dim()) and not fits


def put_back(optimizer: Optimizer, p: Tensor, key: str, value: Tensor) -> None:
    """Give an optimizer a tensor that `state_of` has named."""
    name, _, kind = key.removeprefix(GROUP).partition(":")
    if key.startswith(GROUP):
        next(group for group in optimizer.param_groups if group["params"][0] is p)[name] = value.item()
    elif kind:
        optimizer.state[p][name] = value.item()
    else:
        same = value.shape == p.shape and value.dim() > 0
        like = torch.empty_like(p, dtype=value.dtype) if same else torch.empty_like(value)
        device = p.device if value.dim() else value.device
        optimizer.state[p][key] = like.to(device).copy_(value)
