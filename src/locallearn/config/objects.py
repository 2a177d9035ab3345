"""The objects of one run, and the builder of its model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from locallearn.config.explicit import Explicit
from locallearn.config.record import RecordSettings
from locallearn.config.settings import Settings
from locallearn.config.targets import resolve
from locallearn.contract import Size, Strategy
from locallearn.data import DataSource
from locallearn.engine import Optim
from locallearn.errors import UserError
from locallearn.models import BlockModel, as_blocks
from locallearn.options import checked, fields_of
from locallearn.probes import Probe
from locallearn.runtime import Runtime


@dataclass(frozen=True)
class ModelBuilder:
    """(image, classes, graph) -> BlockModel. A builder of the user's may return any module; it is cut by name.

    reads_graph  whether the target declares `graph`, the edges [2, E] of the data, or None where these have none
    """

    target: Callable[..., Any]
    options: Mapping[str, Any]
    reads_graph: bool

    def __call__(self, image: Size, classes: int, graph: Tensor | None = None) -> BlockModel:
        more = {"graph": graph} if self.reads_graph else {}
        try:
            module = self.target(image=image, classes=classes, **more, **self.options)
        except UserError:
            raise
        except (TypeError, ValueError) as error:
            raise UserError(f"model: {error}") from error
        if isinstance(module, BlockModel):
            return module
        if isinstance(module, nn.Module):
            return as_blocks(module, image=image, classes=classes)
        path = f"{self.target.__module__}.{self.target.__qualname__}"
        raise UserError(f"model._target_={path}: returned {type(module).__name__}, not a torch module")


@dataclass(frozen=True)
class Experiment:
    """What a configuration means. `config` is the plain mapping it came from."""

    config: dict[str, Any]
    settings: Settings
    strategy: Strategy
    optim: Optim
    source: DataSource
    model: ModelBuilder
    runtime: Runtime
    probes: dict[str, Probe]
    record: RecordSettings
    names: dict[str, str]
    """The chosen name in each group, for titles and folder names."""
    overrides: list[str]
    """What the user changed on the command line, for `overrides.yaml`."""
    explicit: Explicit = field(default_factory=Explicit)
    """What the user has set, and a run must read."""

    @property
    def title(self) -> str:
        return f"{self.names['strategy']}-{self.names['model']}-{self.names['data']}-s{self.settings.seed}"


def model_builder(config: Mapping[str, Any], allow: Iterable[str]) -> ModelBuilder:
    """The builder that a configuration means. Raises UserError."""
    target = resolve(config.get("_target_"), "model", allow)
    supplied = ("image", "classes", *({"graph"} & fields_of(target).keys()))
    options = checked(target, {k: v for k, v in config.items() if k != "_target_"}, "model", supplied)
    return ModelBuilder(target, options, "graph" in supplied)
