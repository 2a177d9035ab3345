"""What a run does not read of what could be set. The classes say it of their own options (`unread`); here stands what
concerns several of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from locallearn.callbacks.early_stopping import EarlyStopping
from locallearn.config.explicit import Unread
from locallearn.config.registry import choices
from locallearn.config.targets import Experiment, resolve
from locallearn.errors import UserError
from locallearn.options import fields_of

if TYPE_CHECKING:
    from locallearn.contract import BlockSpec
    from locallearn.data import Data
    from locallearn.engine import Learner

LOCAL = ("objective", "auxiliary")
"""Groups that only some strategies read."""


def in_settings(exp: Experiment, folders: Sequence[Path] = ()) -> Iterator[Unread]:
    """What the settings alone tell, before data are read and a model is built."""
    fields = fields_of(type(exp.strategy))
    objective = getattr(exp.strategy, "objective", None)
    for group in filter(exp.explicit.sets, LOCAL):  # to name those who would read it takes a look at every yaml file
        if group not in fields:
            yield _group(group, "strategy", folders, partial(_has, group))
        elif group == "auxiliary" and objective is not None and not objective.reads_auxiliary:
            yield _group(group, "objective", folders, lambda target: target.reads_auxiliary)
    for group, options in (("optim", exp.optim), ("data", exp.source), ("runtime", exp.runtime)):
        yield from _options(group, options.unread())
    for group, chosen in (("probe", exp.probes), ("callback", exp.callbacks)):
        for name, each in chosen.items():
            yield from _options(f"{group}.{name}", each.unread())
    if isinstance(exp.model.options.get("width"), list):
        yield Unread("model.depth", "model.width=NUMBER")
    if exp.settings.blocks == "max" or isinstance(exp.settings.blocks, list):
        yield Unread("balance", "blocks=NUMBER")
    if not exp.settings.evaluations.number and any(isinstance(each, EarlyStopping) for each in exp.callbacks.values()):
        yield Unread("callback", "evaluate_every=1, or another number of epochs or steps")
    if exp.settings.checkpoint.every == "never":
        yield Unread("checkpoint.keep", "checkpoint.every=1ep, or another number of epochs or steps")
    if not taught(exp):
        yield Unread("init.teacher", "objective=distil")
    if exp.settings.init.run is None and exp.settings.init.weights is None:
        yield Unread("init.blocks", "init.run=RUN or init.weights=FILE")
    if exp.explicit.varies is None:
        yield Unread("sweep", "-m, a sweep of several runs")


def in_blocks(exp: Experiment, learner: Learner, data: Data | None = None) -> Iterator[Unread]:
    """What only the blocks and the data can tell."""
    specs = [block.spec for block in learner.blocks]
    several = "blocks=2 or more"
    auxiliary = [module for block in learner.blocks for module in block.auxiliary.values()]
    if not auxiliary:
        builds = several if len(specs) == 1 else "strategy=NAME whose modules() build it"
        own = [group for group in LOCAL if _own(exp, group) is not None]
        yield from (Unread(group, builds) for group in own if group == "auxiliary" or not _without_modules(exp, specs))
    for group, options in (("strategy", exp.strategy), ("objective", _own(exp, "objective"))):
        readers = options.unread(specs) if options is not None else {}
        yield from _options(group, {name: reader for name, reader in readers.items() if name not in LOCAL})
    if (network := _own(exp, "auxiliary")) is not None:
        sizes = [block.spec.emits for block in learner.blocks if len(block.auxiliary)]
        yield from _options("auxiliary", network.unread(sizes))
    if not any(p.requires_grad for module in auxiliary for p in module.parameters()):
        reader = "strategy=dgl or another that trains auxiliary networks" if len(specs) > 1 else several
        yield from (Unread(f"optim.{name}", reader) for name in ("auxiliary_lr", "auxiliary_weight_decay"))
    if len(specs) == 1:
        yield Unread("runtime.staleness", several)
    if len(learner.model.image) < 3:
        yield Unread("channels_last", "data=NAME of images")
    if data is not None and data.pixels is None:
        yield Unread("data.normalise", "data=NAME of images")
    if data is not None and data.own_validation:
        yield Unread("data.validation", "data=NAME without a validation part of its own")
    if data is not None and data.graph is not None:
        yield Unread("batch_size", "data=NAME that is not a graph")


def taught(exp: Experiment) -> bool:
    """Whether the run has an objective that learns from a teacher."""
    objective = _own(exp, "objective")
    return objective is not None and objective.taught


def _without_modules(exp: Experiment, specs: Sequence[BlockSpec]) -> bool:
    """Whether the objective is read though it has built nothing."""
    objective = _own(exp, "objective")
    local = len(specs) > 1 or not getattr(exp.strategy, "joint", True)
    return taught(exp) or (objective is not None and not objective.builds and local)


def _own(exp: Experiment, group: str) -> Any:
    """The chosen objective or auxiliary network, if the strategy has it."""
    return getattr(exp.strategy, group, None) if group in fields_of(type(exp.strategy)) else None


def _has(field: str, target: Any) -> bool:
    return field in fields_of(target)


def _options(group: str, unread: Mapping[str, str]) -> Iterator[Unread]:
    yield from (Unread(f"{group}.{name}", reader) for name, reader in unread.items())


def _group(group: str, cause: str, folders: Sequence[Path], reads: Callable[[Any], bool]) -> Unread:
    """A group that is not read, and the choices of another group that would read it."""
    names = [name for name, file in choices(cause, folders).items() if _reads(file, cause, reads)]
    return Unread(group, f"{cause}={', '.join(names[:-1])} or {names[-1]}", frozenset(names))


def _reads(file: Path, group: str, reads: Callable[[Any], bool]) -> bool:
    try:
        return reads(resolve(_target(file.read_text(encoding="utf-8")), group, []))
    except (UserError, OSError, yaml.YAMLError):  # a file of the user's that is not for this run
        return False


@cache
def _target(text: str) -> Any:
    """The class that a yaml file names; a sweep asks the same files for every run."""
    content = yaml.safe_load(text)
    return content.get("_target_") if isinstance(content, dict) else None
