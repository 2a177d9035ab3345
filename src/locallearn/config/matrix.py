"""Which strategy trains which model, by putting each pair together on the meta device, where nothing costs
memory or time. A pair that is refused says why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from locallearn.config.settings import AUTO_BLOCKS
from locallearn.config.targets import instantiate, model_builder
from locallearn.engine import Optim, Place, Setup, assemble
from locallearn.errors import UserError
from locallearn.figures.text import fitted, table
from locallearn.models import BlockModel
from locallearn.task import BOXES
from locallearn.tasks import CLASSES, Detection, Tokens

IMAGE, SEQUENCE, FEATURES, TEXT = (3, 32, 32), (20, 57), (16,), (20,)
NUMBER = 10  # of classes, or of tokens


@dataclass
class Matrix:
    """cells[model][strategy] is None where the pair works, else the reason; `reads` says what each model read;
    `refused` holds the models that could not be built at all (an extra is missing)."""

    strategies: list[str]
    reads: dict[str, str] = field(default_factory=dict)
    cells: dict[str, dict[str, str | None]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def render(self, width: int | None = None) -> str:
        """The table with numbered reasons below it, in at most `width` columns."""
        reasons: list[str] = []

        def mark(reason: str | None) -> str:
            if reason is None:
                return "yes"
            if reason not in reasons:
                reasons.append(reason)
            return f"({reasons.index(reason) + 1})"

        rows = [("model", "reads", *self.strategies)]
        for model, cells in self.cells.items():
            rows.append((model, self.reads[model], *(mark(cells[s]) for s in self.strategies)))
        lines = [table(rows, width, left=range(len(rows[0])), again=2)]
        lines += [f"({i}) {reason}" for i, reason in enumerate(reasons, 1)]
        lines += [f"{model}: {reason}" for model, reason in self.refused.items()]
        return fitted("\n".join(lines), width)


def matrix(strategies: Mapping[str, Path], models: Mapping[str, Path], options: Mapping[str, Any]) -> Matrix:
    """Every strategy on every model, with their yaml's options and blocks=auto.

    options  the plain configurations of the groups `objective`, `auxiliary` and `optim`, which every pair gets
    """
    objective, auxiliary, optim = (instantiate(options[g], g, []) for g in ("objective", "auxiliary", "optim"))
    pairs = Matrix(list(strategies))
    for name, file in models.items():
        try:
            model, pairs.reads[name] = _built(yaml.safe_load(file.read_text()))
        except UserError as error:
            pairs.refused[name] = str(error)
            continue
        pairs.cells[name] = {}
        cut = model.cut(min(AUTO_BLOCKS, len(model.units)))
        sizes = model.shapes()
        vars(model)["shapes"] = lambda: sizes  # noqa: B023  most of the time would go into asking once per strategy
        for strategy, path in strategies.items():
            config = yaml.safe_load(path.read_text())
            recipe = instantiate(config, "strategy", [], objective=objective, auxiliary=auxiliary)
            pairs.cells[name][strategy] = _reason(model, recipe, optim, cut)
    return pairs


def _built(config: Mapping[str, Any]) -> tuple[BlockModel, str]:
    """A model on the meta device, and what it reads: the first of images, sequences, a graph and tokens that it
    accepts."""
    build, first = model_builder(config, []), None
    ring = torch.stack([torch.arange(8), torch.arange(8).roll(1)])
    inputs: dict[str, tuple] = {"images": (IMAGE,), "sequences": (SEQUENCE,), "a graph": (FEATURES, ring)}
    inputs["tokens"] = (TEXT, None, NUMBER)
    for kind, (size, *more) in inputs.items():
        try:
            return build(size, NUMBER, *more).to("meta"), kind
        except UserError as error:
            first = first or error
    assert first is not None
    raise first


def _reason(model: BlockModel, strategy: Any, optim: Optim, cut: list[range]) -> str | None:
    """None if the pair can be put together, else the sentence that refuses it."""
    try:
        boxes = Detection(tuple(map(str, range(NUMBER)))) if model.form == BOXES else None
        setup = Setup(total_steps=1, task=boxes or (CLASSES if model.vocabulary is None else Tokens()))
        assemble(model, strategy, optim, cut, setup, Place(torch.device("meta")))
    except UserError as error:
        return str(error)
    return None
