"""From the `_target_` of a group's yaml to an object: of our own classes, and of packages allowed on this command line,
no others. Together the objects are an `Experiment`."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from locallearn.auxiliary import Auxiliary
from locallearn.callbacks import Callback
from locallearn.config.explicit import Explicit
from locallearn.config.record import RecordSettings
from locallearn.config.settings import Settings
from locallearn.contract import Size, Strategy
from locallearn.data import Source
from locallearn.engine import Optim
from locallearn.engine.promises import check_class
from locallearn.engine.torch_optim import of_class
from locallearn.errors import UserError, did_you_mean
from locallearn.inputs import Inputs
from locallearn.models import BlockModel, answering, as_blocks, head_apart
from locallearn.models.bottleneck import NONE, Bottleneck
from locallearn.objectives import Objective
from locallearn.options import checked, fields_of, takes_function
from locallearn.probes import Probe
from locallearn.runtime import Runtime
from locallearn.task import SAMPLE, Task

KINDS: dict[str, type] = {
    "strategy": Strategy,
    "objective": Objective,
    "auxiliary": Auxiliary,
    "bottleneck": Bottleneck,
    "optim": Optim,
    "data": Source,
    "runtime": Runtime,
    "probe": Probe,
    "callback": Callback,
}
"""The class that a group's target must derive from. A `model` is a builder function instead."""
RENAMED = {
    "locallearn.probes.linear.Linear": "locallearn.probes.linear.LinearProbe",
    "locallearn.probes.reconstruction.Reconstruction": "locallearn.probes.reconstruction.ReconstructionProbe",
    "locallearn.probes.similarity.Similarity": "locallearn.probes.similarity.SimilarityProbe",
}
"""Targets by the names that they had when older runs wrote their config.yaml."""


ASKED = frozenset({"graph", "vocabulary", "inputs"})
"""What a builder may ask for, beside image and classes."""


@dataclass(frozen=True)
class ModelBuilder:
    """(image, classes, form, ...) -> BlockModel. A builder of the user's may return any module, which answers in the
    `form` of the task; it is cut by name.

    asks  which of these the target declares: `graph`, the edges [2, E] of the data; `vocabulary`, how many tokens they
          have; `inputs`, what the tensors of a sample are. Each is None where the data have none
    bottleneck  what is put behind its units
    blocks  into which blocks it will be cut, see `head_apart`
    """

    target: Callable[..., Any]
    options: Mapping[str, Any]
    asks: frozenset[str]
    bottleneck: Bottleneck = NONE
    blocks: int | str | list[int] = "auto"

    @property
    def bare(self) -> ModelBuilder:
        """The same without given weights, for a model that gets others: nothing is downloaded or read."""
        given = self.options.get("weights") is not None and self.target.__module__.startswith("locallearn.")
        return replace(self, options={**self.options, "weights": None}) if given else self

    def __call__(
        self,
        image: Size,
        classes: int,
        graph: Tensor | None = None,
        vocabulary: int | None = None,
        form: str = SAMPLE,
        inputs: Inputs | None = None,
    ) -> BlockModel:
        seen = {"graph": graph, "vocabulary": vocabulary, "inputs": inputs}
        more = {name: seen[name] for name in self.asks}
        if vocabulary is not None and "vocabulary" not in more:
            raise UserError(
                f"model {self.target.__name__} reads numbers, but the data are tokens of a vocabulary of {vocabulary}: "
                "choose model=gpt, or a builder that declares `vocabulary`"
            )
        if inputs is not None and "inputs" not in more:
            raise UserError(
                f"model {self.target.__name__} reads one tensor, but a sample has {len(inputs.parts)} ({inputs}): give "
                "a module that reads these, or a builder that declares `inputs`"
            )
        try:
            module = self.target(image=image, classes=classes, **more, **self.options)
        except UserError:
            raise
        except (TypeError, ValueError) as error:
            raise UserError(f"model: {error}") from error
        if isinstance(module, nn.Module) and not isinstance(module, BlockModel):
            module = as_blocks(module, image=image, classes=classes, vocabulary=vocabulary, form=form, inputs=inputs)
        if isinstance(module, BlockModel):
            return head_apart(self.bottleneck.applied(module), self.blocks)
        path = f"{self.target.__module__}.{self.target.__qualname__}"
        raise UserError(f"model._target_={path}: must return a torch module, not a {type(module).__name__}")


def model_for(
    build: ModelBuilder,
    image: Size,
    classes: int,
    form: str,
    graph: Tensor | None = None,
    vocabulary: int | None = None,
    inputs: Inputs | None = None,
) -> BlockModel:
    """The model that a builder makes, on the CPU, for inputs and a form of answers. Raises UserError."""
    edges = None if graph is None else graph.cpu()
    return answering(build(image, classes, edges, vocabulary, form, inputs), form)


@dataclass(frozen=True)
class Experiment:
    """What a configuration means. `config` is the plain mapping it came from."""

    config: dict[str, Any]
    settings: Settings
    strategy: Strategy
    optim: Optim
    source: Source
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
    objects: Mapping[str, Any] = field(default_factory=dict)
    """What was given from Python and not made from `config`, by group."""
    callbacks: Mapping[str, Callback] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.names['strategy']}-{self.names['model']}-{self.names['data']}-s{self.settings.seed}"


def resolve(path: object, group: str, allow: Iterable[str]) -> Callable[..., Any]:
    """The class or function at a dotted path, if it may be reached and is of its group's kind."""
    return _of_kind(reach(path, group, allow), str(path), group)


def reach(path: object, group: str, allow: Iterable[str]) -> Any:
    """What a dotted path names, if it lies in locallearn or in a package that is allowed. Raises UserError."""
    if not isinstance(path, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", path):
        raise UserError(f"{group}._target_={path!s:.100}: must be the dotted path of a class, such as mine.models.Mine")
    prefixes = ["locallearn", *(["torch.optim"] if group == "optim" else []), *allow]
    if not any(path == p or path.startswith(p + ".") for p in prefixes):
        raise UserError(
            f"{group}._target_={path} lies outside locallearn and is not run; if you trust it, allow its package on "
            f"this command line: allow=[{path.split('.')[0]}], or --allow {path.split('.')[0]} for a run folder"
        )
    module_name, _, name = RENAMED.get(path, path).rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"{group}._target_={path}: cannot import {module_name} ({error})") from error
    target = getattr(module, name, None)
    if target is None:
        known = [n for n in vars(module) if not n.startswith("_")]
        raise UserError(
            f"{group}._target_={path}: {module_name} has no {name}; {did_you_mean(name, known)}".rstrip("; ")
        )
    return target


def _of_kind(target: Any, path: str, group: str) -> Callable[..., Any]:
    if group == "model":
        if not inspect.isfunction(target) or not {"image", "classes"} <= inspect.signature(target).parameters.keys():
            raise UserError(f"model._target_={path}: must be a function (image, classes, *, ...) that returns a model")
        if path.startswith("locallearn.") and not target.__module__.startswith("locallearn."):
            raise UserError(f"model._target_={path}: is not a model of locallearn")
        return target
    if group.startswith("record."):
        if not inspect.isclass(target) or not all(callable(getattr(target, name, None)) for name in ("log", "close")):
            raise UserError(f"{group}._target_={path}: must be a class with log(record) and close(status, summary)")
        return target
    if group == "optim" and inspect.isclass(target) and issubclass(target, Optimizer):
        return of_class(target)
    kind = Task if group == "data.task" else KINDS[group.partition(".")[0]]
    if not (inspect.isclass(target) and issubclass(target, kind)) or inspect.isabstract(target):
        raise UserError(
            f"{group}._target_={path}: must be a complete class derived from {kind.__module__}.{kind.__name__}"
        )
    return target


def instantiate(config: Mapping[str, Any], group: str, allow: Iterable[str], **supplied: Any) -> Any:
    """Build a group's object from its plain configuration, checked against the fields of its target first.

    `supplied` are arguments of the caller's; those that the target does not declare are left out.
    """
    return built(resolve(config.get("_target_"), group, allow), config, group, allow, **supplied)


def built(
    target: Callable[..., Any], config: Mapping[str, Any], group: str, allow: Iterable[str], **supplied: Any
) -> Any:
    """`instantiate` for a target that is known."""
    supplied = {name: value for name, value in supplied.items() if name in fields_of(target)}
    hints = {name: hint for name, (hint, _) in fields_of(target).items()}
    given = {k: _named(v, hints.get(k), f"{group}.{k}", allow) for k, v in config.items() if k != "_target_"}
    if isinstance(target, type) and issubclass(target, Optim):
        target.refuse(given)
    options = checked(target, given, group, supplied)
    try:
        instance = target(**options, **supplied)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{group}: {error}") from error
    if isinstance(instance, Strategy):
        check_class(instance)
    return instance


def _named(value: Any, hint: Any, where: str, allow: Iterable[str]) -> Any:
    """What an option names by a `_target_`, where it may be a function or a task; any other value as it is."""
    if not isinstance(value, Mapping) or "_target_" not in value:
        return value
    options = {name: each for name, each in value.items() if name != "_target_"}
    if where == "data.task":
        target = _of_kind(reach(value["_target_"], where, allow), str(value["_target_"]), where)
        return target(**checked(target, options, where))
    if not takes_function(hint):
        return value
    target = reach(value["_target_"], where, allow)
    ours = value["_target_"].startswith("locallearn.")
    if not inspect.isfunction(target) or (ours and not target.__module__.startswith("locallearn.")):
        raise UserError(f"{where}._target_={value['_target_']}: must be a function")
    return functools.partial(target, **options)


def model_builder(config: Mapping[str, Any], allow: Iterable[str]) -> ModelBuilder:
    """The builder that a configuration means. Raises UserError."""
    target = resolve(config.get("_target_"), "model", allow)
    asks = frozenset(ASKED & fields_of(target).keys())
    supplied = ("image", "classes", *asks)
    options = checked(target, {k: v for k, v in config.items() if k != "_target_"}, "model", supplied)
    return ModelBuilder(target, options, asks)
