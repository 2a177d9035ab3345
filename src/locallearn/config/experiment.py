"""One run, checked: every object that can be made without reading data or building a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from locallearn.auxiliary import Auxiliary
from locallearn.config import unread
from locallearn.config.given import Given, given
from locallearn.config.record import RecordSettings
from locallearn.config.settings import GROUPS, Settings
from locallearn.config.targets import instantiate, resolve
from locallearn.config.typed import checked, fields_of
from locallearn.contract import Size, Strategy
from locallearn.data import DataSource
from locallearn.engine import Optim
from locallearn.errors import UserError
from locallearn.models import BlockModel, as_blocks
from locallearn.objectives import Objective
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
        given = {"graph": graph} if self.reads_graph else {}
        try:
            module = self.target(image=image, classes=classes, **given, **self.options)
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
    given: Given = field(default_factory=Given)
    """What the user has set, and a run must read."""

    @property
    def title(self) -> str:
        return f"{self.names['strategy']}-{self.names['model']}-{self.names['data']}-s{self.settings.seed}"


def experiment(
    config: Mapping[str, Any],
    names: Mapping[str, str] | None = None,
    overrides: Iterable[str] = (),
    folders: Sequence[Path] = (),
    varies: Mapping[str, Sequence[str]] | None = None,
) -> Experiment:
    """Check a plain configuration and make its objects. Raises UserError; nothing is written and nothing is built.

    names      the chosen name of each group
    overrides  what is set; what of it no object reads is refused
    folders    the user's own yaml files
    varies     for a run of a sweep: the keys that the sweep varies, and their values
    """
    overrides = list(overrides)
    plain = {key: value for key, value in config.items() if key not in GROUPS}
    settings = Settings(**checked(Settings, plain, ""))
    optional = ("probe", "record")
    groups = {group: _mapping(config, group) for group in GROUPS if group not in optional}
    groups |= {group: config.get(group) or {} for group in optional}
    allow = settings.allow
    auxiliary: Auxiliary = instantiate(groups["auxiliary"], "auxiliary", allow)
    objective: Objective = instantiate(groups["objective"], "objective", allow)
    strategy = instantiate(groups["strategy"], "strategy", allow, objective=objective, auxiliary=auxiliary)
    probes = probes_of(groups["probe"], (names or {}).get("probe"), allow)
    record = RecordSettings.parse(groups["record"])
    chosen = {group: (names or {}).get(group) or _name(groups[group]) for group in GROUPS}
    chosen |= {"probe": "+".join(probes) or "none", "record": "+".join(record.sinks) or "jsonl"}
    exp = Experiment(
        config={key: value for key, value in config.items() if key not in ("allow", "dry_run")},
        settings=settings,
        strategy=strategy,
        optim=instantiate(groups["optim"], "optim", allow),
        source=instantiate(groups["data"], "data", allow),
        model=model_builder(groups["model"], allow),
        runtime=instantiate(groups["runtime"], "runtime", allow),
        probes=probes,
        record=record,
        names=chosen,
        overrides=overrides,
        given=given(overrides, config, chosen, folders, varies),
    )
    exp.given.refuse(unread.in_settings(exp, folders))
    return exp


def probes_of(config: Mapping[str, Any], name: str | None, allow: Iterable[str]) -> dict[str, Probe]:
    """The probes by name. A yaml of the user's without a `@package` line stands alone, under the name of its file."""
    if "_target_" in config:
        config = {name or _name(config): config}
    return {str(key): instantiate(_mapping(config, key), f"probe.{key}", allow) for key in config}


def model_builder(config: Mapping[str, Any], allow: Iterable[str]) -> ModelBuilder:
    """The builder that a configuration means. Raises UserError."""
    target = resolve(config.get("_target_"), "model", allow)
    given = ("image", "classes", *({"graph"} & fields_of(target).keys()))
    options = checked(target, {k: v for k, v in config.items() if k != "_target_"}, "model", given)
    return ModelBuilder(target, options, "graph" in given)


def _mapping(config: Mapping[str, Any], group: str) -> Mapping[str, Any]:
    value = config.get(group)
    if not isinstance(value, Mapping):
        raise UserError(f"{group} is missing: choose one, as in {group}=NAME; `locallearn list` shows the names")
    return value


def _name(config: Mapping[str, Any]) -> str:
    """A name for a group's choice when only its target is known."""
    target = config.get("_target_")
    return str(target).rpartition(".")[2].lower() if target else "none"
