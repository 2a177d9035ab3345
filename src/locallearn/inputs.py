"""Inputs of several tensors, such as a picture and a few numbers, or tokens and their mask.

One tensor goes from block to block, so the tensors of a sample lie behind one another in one vector of float32, which
goes wherever a single input goes; where the model begins they are taken apart again, with their shapes and types.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from locallearn.errors import UserError
from locallearn.options import convert

Size: TypeAlias = tuple[int, ...]
Kind: TypeAlias = Literal["numbers", "tokens", "truths"]

EXACT = 2**24
"""Whole numbers below it are float32 without rounding."""


@dataclass(frozen=True)
class InputPart:
    """One tensor of a sample.

    shape  without the batch; () is one number
    kind   numbers (floats), tokens (whole numbers) or truths (bool)
    name   of the argument under which the model takes it; None where it takes it by its place
    vocabulary  how many tokens there are
    """

    shape: Size
    kind: Kind
    name: str | None = None
    vocabulary: int | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __str__(self) -> str:
        words = f"{self.kind} {list(self.shape)}"
        return f"{self.name}: {words}" if self.name else words


@dataclass(frozen=True)
class Inputs:
    """The tensors of a sample, in the order in which they lie in one vector."""

    parts: tuple[InputPart, ...]

    @staticmethod
    def of(given: Any, what: str, batch: bool) -> Inputs:
        """What the tensors `given` are, by their place or by name: of one sample, or of a `batch`. Raises UserError."""
        parts = []
        for name, t in named(given).items():
            if not isinstance(t, Tensor) or t.dtype == torch.uint8 or t.is_complex():
                shown = str(t.dtype).removeprefix("torch.") if isinstance(t, Tensor) else type(t).__name__
                raise UserError(
                    f"{what}: {_called(name)} is {shown}; where a sample has several tensors, give each as floats, "
                    "whole numbers or bools, and pixels as floats that you have normalised"
                )
            if batch and not t.dim():
                raise UserError(f"{what}: {_called(name)} is a single number; give one for each sample")
            shape = tuple(t.shape[1:] if batch else t.shape)
            parts.append(InputPart(shape, _kind(t), None if isinstance(name, int) else name))
        if not any(part.size for part in parts):
            raise UserError(f"{what} hold no numbers; give at least one tensor that is not empty")
        return Inputs(tuple(parts))

    @staticmethod
    def saved(parts: Sequence[Any] | None) -> Inputs | None:
        """From the plain values of a manifest."""
        return Inputs(tuple(convert(part, InputPart, "manifest.json: inputs") for part in parts)) if parts else None

    @property
    def image(self) -> Size:
        """The shape of a packed sample."""
        return (sum(part.size for part in self.parts),)

    @property
    def unnumbered(self) -> Inputs:
        """The same without the sizes of vocabularies, which a smaller set may not reach."""
        return Inputs(tuple(replace(part, vocabulary=None) for part in self.parts))

    @property
    def vocabulary(self) -> int | None:
        """The most tokens that one of the tensors has; None where all are numbers."""
        return max((part.vocabulary or 2 for part in self.parts if part.kind != "numbers"), default=None)

    def __str__(self) -> str:
        return " and ".join(map(str, self.parts))

    def pack(self, given: Any, what: str = "the inputs", batch: bool = True) -> Tensor:
        """The tensors of a batch as one, [B, D]; of one sample as [D]. Raises UserError for other tensors."""
        tensors = self._ordered(given, batch)
        if tensors is None or (batch and len({len(t) for t in tensors}) > 1):
            each = " for each sample" if batch else ""
            raise UserError(f"{what}: {_shown(given)}; the model reads {self}{each}")
        for part, t in zip(self.parts, tensors, strict=True):
            if part.kind == "tokens" and t.is_cpu and t.numel() and (highest := int(t.abs().max())) >= EXACT:
                raise UserError(f"{what}: token {highest}: must be below {EXACT} in inputs of several tensors")
        kind = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
        lines = [(len(t), part.size) if batch else (part.size,) for part, t in zip(self.parts, tensors, strict=True)]
        return torch.cat([t.to(kind).reshape(line) for t, line in zip(tensors, lines, strict=True)], -1)

    def _ordered(self, given: Any, batch: bool) -> list[Tensor] | None:
        """The tensors in the order of the parts; None where they are others."""
        tensors, names = named(given), [i if part.name is None else part.name for i, part in enumerate(self.parts)]
        if set(tensors) != set(names):
            return None
        ordered = [torch.as_tensor(tensors[name]) for name in names]
        shapes = [(tuple(t.shape[1:] if batch else t.shape), _kind(t)) for t in ordered]
        return ordered if shapes == [(part.shape, part.kind) for part in self.parts] else None

    def unpack(self, x: Any) -> tuple[list[Any], dict[str, Any]]:
        """What the model is called with, by place and by name, of a packed batch [B, D]; a trace can follow it."""
        placed, by_name, start = [], {}, 0
        for part in self.parts:
            t = x[:, start : start + part.size]
            t = t.unflatten(1, part.shape) if part.shape else t.squeeze(1)
            t = t if part.kind == "numbers" else t.long() if part.kind == "tokens" else t.bool()
            start += part.size
            if part.name is None:
                placed.append(t)
            else:
                by_name[part.name] = t
        return placed, by_name

    def noise(self, batch: int, generator: torch.Generator) -> Tensor:
        """Random inputs [B, D] on the CPU: normal numbers, tokens and truths evenly."""
        columns = []
        for part in self.parts:
            size = batch, part.size
            if part.kind == "numbers":
                columns.append(torch.randn(size, generator=generator))
            else:
                columns.append(torch.randint(part.vocabulary or 2, size, generator=generator).float())
        return torch.cat(columns, 1)

    def counted(self, samples: Iterable[Tensor], vocabulary: int | None = None) -> Inputs:
        """The same with the number of tokens: `vocabulary`, or as many as packed samples [N, D] show."""
        highest = torch.zeros(self.image[0])
        for x in samples:
            highest = torch.maximum(highest, x.max(0).values.cpu()) if len(x) else highest
        parts = []
        for part, columns in zip(self.parts, highest.split([part.size for part in self.parts]), strict=True):
            count = 1 + int(columns.max()) if part.size else 1
            parts.append(replace(part, vocabulary=vocabulary or count) if part.kind == "tokens" else part)
        return Inputs(tuple(parts))


def several(given: Any) -> bool:
    """Whether an input consists of several tensors: a mapping, or a tuple or list that is not a row of numbers."""
    if isinstance(given, Mapping):
        return True
    arrays = isinstance(given, tuple | list) and all(
        hasattr(each, "shape") or hasattr(each, "getbands") for each in given
    )
    return arrays and any(hasattr(each, "getbands") or len(each.shape) for each in given)


def named(given: Any) -> dict[Any, Any]:
    """The tensors by name, or by their place."""
    return {str(name): t for name, t in given.items()} if isinstance(given, Mapping) else dict(enumerate(given))


def _kind(t: Tensor) -> Kind:
    return "truths" if t.dtype == torch.bool else "numbers" if t.is_floating_point() else "tokens"


def _called(name: Any) -> str:
    return f"number {name}" if isinstance(name, int) else str(name)


def _shown(given: Any) -> str:
    shapes = {name: str(list(t.shape)) if hasattr(t, "shape") else type(t).__name__ for name, t in named(given).items()}
    return "got " + (", ".join(f"{_called(name)} {shape}" for name, shape in shapes.items()) or "no tensors")
