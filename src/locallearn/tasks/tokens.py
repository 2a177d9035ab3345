"""The next token at every position of a sequence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from locallearn.errors import UserError
from locallearn.task import POSITION, TOKENS, Task, class_numbers

LARGE, CHUNK = 4096, 2**24
"""Above a vocabulary of LARGE tokens the loss is computed for CHUNK logits at a time, and again in the backward pass:
autograd would keep a second copy of all of them."""


@dataclass(frozen=True)
class Tokens(Task):
    """Next tokens: z [B, T, vocabulary], y int64 [B, T], -1 where a position has none.

    L = mean over positions of -log softmax(z_t)_{y_t}, in nats; e = (softmax(z) - onehot(y)) / n. The score is the
    loss: less is better. Perplexity is exp(L), `bits_per_character` L / ln 2 over the characters of a token.

    characters  in a token, on average
    """

    characters: Annotated[float, Gt(0)] = 1.0
    kind: ClassVar[str] = TOKENS
    wanted: ClassVar[str] = "the next token at every position"
    form: ClassVar[str] = POSITION
    score: ClassVar[str] = "loss"
    metrics: ClassVar[Mapping[str, bool]] = {
        "loss": False,
        "bits_per_character": False,
        "perplexity": False,
        "accuracy": True,
    }
    inner: ClassVar[frozenset[str]] = frozenset({"loss"})

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        return self.total(z, y) / self.count(y).clamp(min=1)

    def count(self, y: Tensor) -> Tensor:
        return (y >= 0).count_nonzero()

    def total(self, z: Tensor, y: Tensor) -> Tensor:
        z, y = z.flatten(0, -2), y.flatten().clamp(min=-1)
        if z.shape[1] <= LARGE:
            return _surprise(z, y)
        rows = max(CHUNK // z.shape[1], 1)
        parts = zip(z.split(rows), y.split(rows), strict=True)
        return sum(
            (checkpoint(_surprise, *part, use_reentrant=False, preserve_rng_state=False) for part in parts),
            z.new_zeros(()),
        )

    def sums(self, z: Tensor, y: Tensor) -> Tensor:
        """[correct]"""
        return (z.argmax(dim=-1) == y).count_nonzero().double()[None]

    def numbers(self, total: float | None, sums: Sequence[float] | None, count: float) -> dict[str, float]:
        numbers: dict[str, float] = {}
        if total is not None:
            loss = total / count
            bits = loss / math.log(2) / self.characters
            numbers = {"loss": loss, "bits_per_character": bits, "perplexity": math.exp(min(loss, 700.0))}
        return numbers if sums is None else numbers | {"accuracy": sums[0] / count}

    def error(self, z: Tensor, y: Tensor) -> Tensor:
        return (z.softmax(-1) * (y >= 0)[..., None] - self.context(y, z.shape[-1]).to(z.dtype)) / self.count(y).clamp(
            min=1
        )

    def flat(self, h: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
        return (h.flatten(0, 1), y.flatten()) if h.dim() == 3 and h.shape[:2] == y.shape else None

    def context(self, y: Tensor, classes: int) -> Tensor:
        return (y[..., None] == torch.arange(classes, device=y.device)).float()

    def random(self, batch: int, classes: int, image: Sequence[int], generator: torch.Generator) -> Tensor:
        return torch.randint(classes, (batch, image[0]), generator=generator)

    def checked(self, y: Any, count: int, classes: int, look: bool = True) -> Tensor:
        y = class_numbers(y, count, "T", "next tokens", "one per position")
        if look and y.numel() and (highest := int(y.max())) >= classes:
            raise UserError(
                f"next token {highest}, but the vocabulary has {classes}, 0 to {classes - 1} (below 0: none): correct "
                "the tokens, or choose a model with a larger vocabulary"
            )
        return y


def _surprise(z: Tensor, y: Tensor) -> Tensor:
    """The sum [] of -log softmax(z)_y over rows z [N, V] with a target in y [N], -1 where there is none."""
    return F.cross_entropy(z, y, ignore_index=-1, reduction="sum")
