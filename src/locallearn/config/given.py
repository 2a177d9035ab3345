"""The parts of an experiment that were given from Python, each in the place of what yaml would describe."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from locallearn.config.objects import (
    APART,
    class_of,
    described,
    is_optimizer,
    marks,
    missing,
    name_of,
    options_in,
    options_of,
)
from locallearn.config.targets import ASKED, KINDS, ModelBuilder, built, instantiate, model_builder
from locallearn.contract import Strategy
from locallearn.data.objects import ObjectSource, by_part, kinds
from locallearn.engine.promises import check_class
from locallearn.engine.torch_optim import of_class
from locallearn.errors import UserError
from locallearn.models import BlockModel

SEEN = ("image", "classes", *sorted(ASKED))
"""What a function or class that builds a model may ask for."""


def refuse_missing(config: Mapping[str, Any], objects: Mapping[str, Any]) -> None:
    """Raise UserError where a configuration stands for objects that were not given."""

    def is_given(place: str) -> bool:
        group = place.partition(".")[0]
        if place == "data.task":  # beside the data, not in them
            return place in objects
        return bool({place, group} & objects.keys()) or (group in APART and "strategy" in objects)

    if absent := {place: mark for place, mark in marks(config).items() if not is_given(place)}:
        raise missing(absent)


def with_options(groups: Mapping[str, Any], objects: Mapping[str, Any]) -> dict[str, Any]:
    """The configurations of groups with the objects that are options of them, such as a schedule."""
    own = {place.partition("."): value for place, value in objects.items() if "." in place}
    return {**groups, **{group: {**groups[group], option: value} for (group, _, option), value in own.items()}}


def part(group: str, given: Any, config: Mapping[str, Any], allow: Iterable[str], **supplied: Any) -> Any:
    """What a group of an experiment is: the object that was given, or what its yaml describes. Raises UserError."""
    if given is None:
        return instantiate(config, group, allow, **supplied)
    options = options_in(config)
    if group == "optim" and is_optimizer(given):
        cls, own = class_of(given) or (given, {})
        return built(of_class(cls), {**options, **own}, group, allow)
    kind = KINDS[group]
    if group == "data" and not _is_a(given, kind):
        return built(ObjectSource, options, group, allow, parts=by_part(given))
    if not _is_a(given, kind):
        raise UserError(
            f"{group}={name_of(given)}(...): must be a name, a mapping, or an object of a class derived from "
            f"{kind.__module__}.{kind.__name__}" + (", or a class of torch.optim" if group == "optim" else "")
        )
    of = class_of(given)
    instance = built(*of, group, allow, **supplied) if of else given
    if isinstance(instance, Strategy):
        check_class(instance)
    return instance


def _is_a(given: Any, kind: type) -> bool:
    of = class_of(given)
    return issubclass(of[0], kind) if of else isinstance(given, kind)


def several(group: str, given: Any, allow: Iterable[str]) -> dict[str, Any]:
    """Probes or callbacks that were given: one, a list, or a mapping of names to them."""
    return {name: part(group, each, {}, allow) for name, each in _named(group, given).items()}


def _named(group: str, given: Any) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return {str(name): each for name, each in given.items()}
    listed = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
    named = {name_of(each): each for each in listed}
    if len(named) < len(listed):
        raise UserError(
            f"{group}: two of {', '.join(map(name_of, listed))} have the same name; give a mapping of names to them"
        )
    return named


def builder(given: Any, config: Mapping[str, Any], allow: Iterable[str]) -> ModelBuilder:
    """What builds the model: of a module a copy at each call, so that the module stays as it was and every run begins
    with the same weights. Raises UserError."""
    if given is None:
        return model_builder(config, allow)
    if not callable(given):
        raise UserError(
            f"model={name_of(given)}(...): must be a name, a mapping, a torch module, or a function or "
            "class that builds one"
        )
    module = isinstance(given, nn.Module)
    asked = set(SEEN) if module else set(inspect.signature(given).parameters) & set(SEEN)

    def build(**seen: Any) -> Any:
        seen = {name: value for name, value in seen.items() if name in asked}
        return _copied(given, **seen) if module else given(**seen)

    build.__name__ = name_of(given)
    return ModelBuilder(build, {}, ASKED & asked - {"graph"} if module else ASKED & asked)


def _copied(module: nn.Module, image: tuple[int, ...], classes: int, **others: Any) -> nn.Module:
    if isinstance(module, BlockModel) and (module.image, module.classes) != (tuple(image), classes):
        raise UserError(
            f"model={module.name} reads {list(module.image)} and has {module.classes} classes, but the data have "
            f"{list(image)} and {classes}: build it for these, or give other data"
        )
    return copy.deepcopy(module)


def in_place(build: ModelBuilder, given: Any) -> ModelBuilder:
    """The same builder, but of the very module that was given."""
    if not isinstance(given, nn.Module):
        return build
    return ModelBuilder(lambda **seen: given, {}, ASKED - {"graph"}, build.bottleneck, build.blocks)


def told(config: Mapping[str, Any], objects: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with a description of each object in its place. `parts` is what became of the groups."""
    own = {place.partition(".")[0] for place in objects}
    facts: dict[str, Any] = {}
    for group in own:
        thing = parts[group]
        if group == "model":
            facts[group] = described(objects[group])
        elif isinstance(thing, ObjectSource):
            train, *_ = every = kinds(objects[group])
            facts[group] = described(train, every) | {n: v for n, v in options_of(thing).items() if n != "parts"}
        elif isinstance(thing, Mapping):
            own_names = _named(group, objects[group])
            kept = {name: each for name, each in (config.get(group) or {}).items() if name in thing}
            facts[group] = kept | {name: described(thing[name]) for name in own_names}
        else:
            facts[group] = described(thing)
    if "strategy" in own:
        for group in APART:
            if (each := getattr(parts["strategy"], group, None)) is not None:
                facts[group] = described(each)
    return {**config, **facts}


def names(objects: Mapping[str, Any]) -> dict[str, str]:
    """What each object is called in a sentence, by place."""
    return {
        place: name_of(value[0] if isinstance(value, list) and value else value) for place, value in objects.items()
    }


def names_of(objects: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, str]:
    """The names of the groups that were given as objects."""
    names = {}
    for group in [place for place in objects if "." not in place]:
        thing = parts[group]
        if group == "model":
            names[group] = name_of(objects[group])
        elif isinstance(thing, ObjectSource):
            names[group] = name_of(kinds(objects[group])[0])
        elif not isinstance(thing, Mapping):
            names[group] = name_of(thing)
    if isinstance(parts.get("strategy"), Strategy) and "strategy" in objects:
        names |= {g: name_of(each) for g in APART if (each := getattr(parts["strategy"], g, None)) is not None}
    return names
