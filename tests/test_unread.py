"""What is set and not read is refused in one sentence, in every combination that the files of `conf/` allow; and what a
class says of its own options is held against what they do to the weights."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import yaml
from conftest import SGD_CONSTANT, tiny_batches, tiny_learner, tiny_model
from torch import nn

import locallearn
from locallearn.auxiliary import Auxiliary, Linear
from locallearn.compose import choices, compose
from locallearn.config.experiment import experiment
from locallearn.config.targets import instantiate, resolve
from locallearn.config.typed import fields_of
from locallearn.contract import BlockSpec
from locallearn.engine.optim import SCHEDULES, Optim
from locallearn.errors import UserError
from locallearn.models import BlockModel
from locallearn.objectives import CrossEntropy, Objective
from locallearn.strategies.deep_supervision import ANNEAL
from locallearn.strategies.dfa import PROJECTIONS
from locallearn.strategies.feedback_alignment import STD
from locallearn.strategies.overlapping import COMBINE
from locallearn.strategies.pgi import TAPS

pytestmark = pytest.mark.usefixtures("elsewhere")
GROUPS = ("objective", "auxiliary")
SMALL = ["model=mlp", "model.width=8", "model.depth=2", "threads=1", "epochs=1", "max_steps=1"]
WORDS = {"anneal": ANNEAL, "projection": PROJECTIONS, "init": STD, "combine": COMBINE, "taps": TAPS}
WORDS |= {"schedule": SCHEDULES, "task": ("cross_entropy", "supcon")}


def target(group: str, name: str) -> Any:
    return resolve(yaml.safe_load(choices(group)[name].read_text())["_target_"], group, [])


def reads(strategy: str, group: str) -> bool:
    return group in fields_of(target("strategy", strategy))


def made(overrides: list[str], **more: Any) -> Any:
    return experiment(*compose(overrides), overrides, **more)


# Groups


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("strategy", choices("strategy"))
def test_a_group_is_read_or_refused(strategy, group):
    name = sorted(choices(group))[len(strategy) % len(choices(group))]
    overrides = [f"strategy={strategy}", f"{group}={name}"]
    if reads(strategy, group):
        objective = ["objective=predsim"] if reads(strategy, "objective") and group == "auxiliary" else []
        made([*overrides, *objective])
        return
    with pytest.raises(UserError) as error:
        made(overrides)
    said = str(error.value)
    assert "\n" not in said
    match = re.fullmatch(rf"{group}={name} is read only with strategy=(.+): choose that, or leave {group} out", said)
    assert match, said
    assert re.split(r", | or ", match[1]) == [other for other in choices("strategy") if reads(other, group)]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("strategy", choices("strategy"))
def test_so_is_an_option_of_the_group(strategy, group):
    config, names = compose([f"strategy={strategy}"])
    for name, file in choices(group).items() if not reads(strategy, group) else ():
        content = yaml.safe_load(file.read_text())
        for option in content.keys() - {"_target_"}:
            with pytest.raises(UserError, match=rf"^{group}\.{option}=\S+ is read only with strategy="):
                text = f"{group}.{option}={content[option]}"
                experiment({**config, group: content}, names | {group: name}, [f"strategy={strategy}", text])


class Spy(Auxiliary):
    """Counts how often a network was asked for."""

    def __init__(self) -> None:
        self.built = 0

    def build(self, size: tuple[int, ...], classes: int) -> nn.Module:
        self.built += 1
        return Linear().build(size, classes)


@pytest.mark.parametrize("name", choices("objective"))
def test_an_objective_says_whether_it_reads_the_auxiliary_network(name):
    objective: Objective = instantiate(yaml.safe_load(choices("objective")[name].read_text()), "objective", [])
    spy = Spy()
    objective.modules(BlockSpec(0, 3, (3, 8, 8), (3, 8, 8), (4, 8, 8), 5), spy)
    assert bool(spy.built) == objective.reads_auxiliary
    overrides = ["strategy=dgl", f"objective={name}", "auxiliary=cnn"]
    if objective.reads_auxiliary:
        made(overrides)
    else:
        with pytest.raises(UserError, match="^auxiliary=cnn is read only with objective="):
            made(overrides)


@pytest.mark.parametrize("strategy", [name for name in choices("strategy") if reads(name, "auxiliary")])
def test_with_one_block_there_is_no_local_loss(strategy):
    for text in [
        "auxiliary=cnn",
        "optim.auxiliary_lr=0.1",
        *(["objective=vib"] if reads(strategy, "objective") else []),
    ]:
        with pytest.raises(UserError, match=f"^{text} is read only with blocks=2 or more"):
            build(f"strategy={strategy}", "blocks=1", text)
    if reads(strategy, "objective") and strategy != "deep_supervision":
        build(f"strategy={strategy}", "blocks=1", "objective=simclr")  # it reads no labels: the last block learns by it


def build(*overrides: str) -> Any:
    settings = dict(text.split("=", 1) for text in overrides)
    return locallearn.build(
        settings.pop("strategy", "dgl"), settings.pop("model", "plainnet"), image=(3, 16, 16), **settings
    )


# Options: what is declared to be unread changes nothing, and everything else changes something


def others(option: str, value: Any) -> Iterator[Any]:
    """Other values that an option may have."""
    if option in WORDS:
        yield from (word for word in WORDS[option] if word != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (number for number in (1, 2, 4) if number != value)
    elif isinstance(value, float) or value is None:
        yield (value or 0.0) / 2 + 0.1
    elif isinstance(value, list):
        yield [0.1]


def variants(recipe: Any) -> Iterator[tuple[str, list[Any]]]:
    """Each option of a frozen dataclass, and the recipe with other values of it."""
    for field in dataclasses.fields(recipe):
        found = []
        for value in others(field.name, getattr(recipe, field.name)) if field.init else ():
            try:
                found.append(dataclasses.replace(recipe, **{field.name: value}))
            except UserError:
                continue
        if found:
            yield field.name, found


MAPS = tiny_model()
torch.manual_seed(0)
VECTORS = BlockModel(
    [nn.Sequential(nn.Flatten(), nn.Linear(72, 6), nn.Tanh()), *(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in "123")],
    nn.Linear(6, 3), image=(2, 6, 6), classes=3, name="vectors",
)  # fmt: skip
BATCHES = tiny_batches(4)


def learned(strategy: Any, blocks: int, model: BlockModel = MAPS, optim: Optim = SGD_CONSTANT) -> list[torch.Tensor]:
    """Every weight after some steps, those of the auxiliary networks included."""
    learner = tiny_learner(strategy, model, blocks, optim=optim, total_steps=len(BATCHES))
    for x, y in BATCHES:
        learner.learn(x, y)
    return [p.detach() for _, p in learner.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def check_options(recipe: Any, strategy_of: Any, unread: Any, blocks: int, model: BlockModel) -> None:
    """Every option of a recipe has an effect if and only if it is not declared to be unread."""
    before = learned(strategy_of(recipe), blocks, model)
    specs = [block.spec for block in tiny_learner(strategy_of(recipe), model, blocks, total_steps=4).blocks]
    declared = unread(recipe, specs)
    for option, changed in variants(recipe):
        silent = all(same(before, learned(strategy_of(other), blocks, model)) for other in changed)
        assert silent == (option in declared), f"{option}: {declared}"


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("name", choices("strategy"))
def test_the_options_of_a_strategy(name, blocks):
    content = yaml.safe_load(choices("strategy")[name].read_text())
    content |= {"width": 8} if name.startswith("pgi") else {}
    recipe = instantiate(content, "strategy", [], objective=CrossEntropy(), auxiliary=Linear())
    check_options(recipe, lambda r: r, lambda r, specs: r.unread(specs), blocks, MAPS)


@pytest.mark.parametrize(
    ("options", "unread"), [({"warmup": 1.0}, {"mix"}), ({"reach": 1}, {"combine"}), ({"projection": "full"}, set())]
)
def test_options_that_others_turn_off(options, unread):
    names = {"warmup": "dni", "reach": "loco", "projection": "dfa"}
    recipe = instantiate(
        {**yaml.safe_load(choices("strategy")[names[next(iter(options))]].read_text()), **options},
        "strategy", [], objective=CrossEntropy(), auxiliary=Linear(),
    )  # fmt: skip
    model = VECTORS if "projection" in options else MAPS
    specs = [block.spec for block in tiny_learner(recipe, model, 3, total_steps=4).blocks]
    expected = {"projection"} if "projection" in options else unread
    assert set(recipe.unread(specs)) == expected
    check_options(recipe, lambda r: r, lambda r, specs: r.unread(specs), 3, model)


@pytest.mark.parametrize("blocks", [2, 3])
@pytest.mark.parametrize("name", choices("objective"))
def test_the_options_of_an_objective(name, blocks):
    recipe = instantiate(yaml.safe_load(choices("objective")[name].read_text()), "objective", [])
    dgl = target("strategy", "dgl")
    check_options(
        recipe, lambda r: dgl(objective=r, auxiliary=Linear()), lambda r, specs: r.unread(specs), blocks, MAPS
    )  # fmt: skip


@pytest.mark.parametrize("model", [MAPS, VECTORS], ids=["maps", "vectors"])
@pytest.mark.parametrize("name", choices("auxiliary"))
def test_the_options_of_an_auxiliary_network(name, model):
    recipe = instantiate(yaml.safe_load(choices("auxiliary")[name].read_text()), "auxiliary", [])
    dgl = target("strategy", "dgl")
    check_options(
        recipe, lambda r: dgl(objective=CrossEntropy(), auxiliary=r),
        lambda r, specs: r.unread([spec.emits for spec in specs[:-1]]), 3, model,
    )  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", choices("optim"))
def test_the_options_of_an_optimizer(name, schedule):
    content = {**yaml.safe_load(choices("optim")[name].read_text()), "schedule": schedule, "weight_decay": 0.3}
    recipe = instantiate(
        {k: float(v) if isinstance(v, str) and v[:1].isdigit() else v for k, v in content.items()}, "optim", []
    )
    dgl = target("strategy", "dgl")(objective=CrossEntropy(), auxiliary=Linear())
    before = learned(dgl, 2, optim=recipe)
    for option, changed in variants(recipe):
        silent = all(same(before, learned(dgl, 2, optim=other)) for other in changed)
        assert silent == (option in recipe.unread()), option
