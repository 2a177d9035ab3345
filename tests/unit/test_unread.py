"""What is set and not read is refused in one sentence, in every combination that the files of `conf/` allow; and what a
class says of its own options is held against what they do to the weights."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import locallearn
from helpers import objectives
from helpers.commands import SMALL, run
from helpers.marks import slow
from helpers.nets import SGD_CONSTANT, tiny_batches, tiny_learner, tiny_model
from helpers.strategies import slow_where_alike
from locallearn.api.learners import BUILT, SHARES
from locallearn.auxiliary import Auxiliary, Linear
from locallearn.config.compose import choices, compose, conf_dir
from locallearn.config.experiment import experiment
from locallearn.config.settings import Settings
from locallearn.config.targets import instantiate, resolve
from locallearn.contract import BlockSpec
from locallearn.engine.optim import SCHEDULES, Optim
from locallearn.errors import UserError
from locallearn.models import BlockModel
from locallearn.models.plain import mlp
from locallearn.models.vit import vit
from locallearn.objectives import CrossEntropy, Objective
from locallearn.options import fields_of, names_in
from locallearn.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("elsewhere")
GROUPS = ("objective", "auxiliary")
SETTINGS = [*SMALL, "epochs=1", "max_steps=1"]


def target(group: str, name: str) -> Any:
    return resolve(yaml.safe_load(choices(group)[name].read_text())["_target_"], group, [])


def reads(strategy: str, group: str) -> bool:
    return group in fields_of(target("strategy", strategy))


def made(overrides: list[str], **more: Any) -> Any:
    return experiment(*compose(overrides), overrides, **more)


@cache
def standard() -> tuple[dict[str, Any], dict[str, str]]:
    return compose([])


def choose(*folders: Path, **files: str) -> Any:
    """The experiment with these files of the groups, beside folders of the user's, without Hydra, which takes a sixth
    of a second each time."""
    config, names = standard()
    contents = {group: yaml.safe_load(choices(group)[name].read_text()) for group, name in files.items()}
    overrides = [f"{group}={name}" for group, name in files.items()]
    return experiment({**config, **contents}, names | files, overrides, folders)


# Groups


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("strategy", slow_where_alike(choices("strategy")))
def test_a_group_is_read_or_refused(strategy, group):
    name = sorted(choices(group))[len(strategy) % len(choices(group))]
    if reads(strategy, group):
        objective = {"objective": "predsim"} if reads(strategy, "objective") and group == "auxiliary" else {}
        choose(strategy=strategy, **{group: name}, **objective)
        return
    with pytest.raises(UserError) as error:
        choose(strategy=strategy, **{group: name})
    said = str(error.value)
    assert "\n" not in said
    match = re.fullmatch(rf"{group}={name} is read only with strategy=(.+): choose that, or leave {group} out", said)
    assert match, said
    assert re.split(r", | or ", match[1]) == [other for other in choices("strategy") if reads(other, group)]


@pytest.mark.parametrize("group", GROUPS)
def test_so_is_an_option_of_the_group(group):
    """Every option of every choice, under one strategy after the other that does not read the group."""
    config, names = standard()
    turns = itertools.cycle(name for name in choices("strategy") if not reads(name, group))
    for choice, file in choices(group).items():
        content = yaml.safe_load(file.read_text())
        for option in sorted(key for key, value in content.items() if value is not None and key != "_target_"):
            strategy = next(turns)
            text = f"{group}.{option}={content[option]}"
            deaf = {"strategy": yaml.safe_load(choices("strategy")[strategy].read_text()), group: content}
            chosen = names | {"strategy": strategy, group: choice}
            with pytest.raises(UserError, match=f"^{re.escape(text)} is read only with strategy="):
                experiment({**config, **deaf}, chosen, [f"strategy={strategy}", text])


@pytest.mark.parametrize("text", ["- 1", "none", "", "_target_: {}", "a: ["])
def test_a_file_of_the_users_that_describes_no_strategy_is_none_of_those_that_read(text):
    folder = Path("conf") / "strategy"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=r"^objective=predsim is read only with strategy=") as error:
        choose(folder.parent.resolve(), strategy="backprop", objective="predsim")
    assert "mine" not in str(error.value)


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
    teacher = ["init.teacher=runs/RUN"] if objective.taught else []
    spy = Spy()
    objective.modules(BlockSpec(0, 3, (3, 8, 8), (3, 8, 8), (4, 8, 8), 5), spy)
    assert bool(spy.built) == objective.reads_auxiliary
    overrides = ["strategy=dgl", f"objective={name}", "auxiliary=cnn", *teacher]
    if objective.reads_auxiliary:
        made(overrides)
    else:
        with pytest.raises(UserError, match="auxiliary=cnn is read only with objective="):
            made(overrides)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [name for name in choices("strategy") if reads(name, "auxiliary")])
def test_with_one_block_there_is_no_local_loss(strategy):
    objective = ["objective=vib"] if reads(strategy, "objective") else []
    for text in ["auxiliary=cnn", "optim.auxiliary_lr=0.1", *objective]:
        with pytest.raises(UserError, match=f"^{text} is read only with blocks=2 or more"):
            build(f"strategy={strategy}", "blocks=1", text)
    if reads(strategy, "objective") and strategy != "deep_supervision":
        build(f"strategy={strategy}", "blocks=1", "objective=simclr")  # it reads no labels: the last block learns by it


def build(*overrides: str) -> Any:
    settings = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in overrides)}
    return locallearn.build(settings.pop("strategy"), "plainnet", image=(3, 16, 16), **settings)


# Options: what is declared to be unread changes nothing, and everything else changes something


def others(hint: Any, value: Any) -> Iterator[Any]:
    """Other values that an option may have."""
    if names := names_in(hint):
        yield from (word for word in names if word != value)
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
    for option, (hint, _) in fields_of(type(recipe)).items():
        found = []
        for value in others(hint, getattr(recipe, option)):
            try:
                found.append(dataclasses.replace(recipe, **{option: value}))
            except UserError:
                continue
        if found:
            yield option, found


MAPS = tiny_model()
torch.manual_seed(0)
TANH = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)]
FLAT = nn.Sequential(nn.Flatten(), nn.Linear(72, 6), nn.Tanh())
VECTORS = BlockModel([FLAT, *TANH], nn.Linear(6, 3), image=(2, 6, 6), classes=3, name="vectors")
SEQUENCES = vit((2, 6, 6), 3, patch=3, layers=3, heads=1, width=8)
BATCHES = tiny_batches(4)


def learned(strategy: Any, blocks: int, model: BlockModel = MAPS, optim: Optim = SGD_CONSTANT) -> list[torch.Tensor]:
    """Every weight after some steps, those of the auxiliary networks included, and what the last block answers."""
    learner = tiny_learner(strategy, model, blocks, optim=optim, total_steps=len(BATCHES))
    for x, y in BATCHES:
        learner.learn(x, y)
    answers = learner.predict(BATCHES[0][0])[-1]
    return [
        *(p.detach() for _, p in learner.parameters()),
        *([] if strategy.plain else [answers.softmax(1).round(decimals=12)]),
    ]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def unchanged(before: list[torch.Tensor], strategy: Any, blocks: int, model: BlockModel) -> bool:
    """Whether the weights become the same; a value that the model does not allow has been read."""
    try:
        return same(before, learned(strategy, blocks, model))
    except UserError:
        return False


def check_options(recipe: Any, strategy_of: Any, unread: Any, blocks: int, model: BlockModel) -> None:
    """Every option of a recipe has an effect if and only if it is not declared to be unread."""
    before = learned(strategy_of(recipe), blocks, model)
    specs = [block.spec for block in tiny_learner(strategy_of(recipe), model, blocks, total_steps=4).blocks]
    declared = unread(recipe, specs)
    for option, changed in variants(recipe):
        silent = all(unchanged(before, strategy_of(other), blocks, model) for other in changed)
        assert silent == (option in declared), f"{option}: {declared}"


@pytest.mark.parametrize("blocks", [3, slow(1)])
@pytest.mark.parametrize("name", slow_where_alike(choices("strategy")))
def test_the_options_of_a_strategy(name, blocks):
    content = yaml.safe_load(choices("strategy")[name].read_text())
    content |= {"width": 8} if name.startswith("pgi") else {"every": 2} if name == "solo" else {}
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


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [3, slow(2)])
@pytest.mark.parametrize("name", choices("objective"))
def test_the_options_of_an_objective(name, blocks):
    recipe = objectives.make(name)
    dgl = target("strategy", "dgl")
    check_options(
        recipe, lambda r: dgl(objective=r, auxiliary=Linear()), lambda r, specs: r.unread(specs), blocks, MAPS
    )  # fmt: skip


ON_MAPS = sorted(choices("auxiliary").keys() - {"transformer", "detect"})
"""But for those of sequences, and for boxes: test_detector."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "model"),
    [(name, MAPS) for name in ON_MAPS]
    + [(name, VECTORS) for name in ON_MAPS if name != "pointwise_mlp"]
    + [("linear", SEQUENCES), ("transformer", SEQUENCES)],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_the_options_of_an_auxiliary_network(name, model):
    content = yaml.safe_load(choices("auxiliary")[name].read_text())
    if name == "auglocal":  # made of units, of which there must be some
        content, model = (
            content | {"layers": 3},
            tiny_model(units=6) if model is MAPS else mlp(VECTORS.image, 3, depth=6),
        )
    recipe = instantiate(content, "auxiliary", [])
    dgl = target("strategy", "dgl")
    check_options(
        recipe, lambda r: dgl(objective=CrossEntropy(), auxiliary=r),
        lambda r, specs: r.unread([spec.emits for spec in specs[:-1]]), 6 if name == "auglocal" else 3, model,
    )  # fmt: skip


QUICK = ("sgd", "adamw")
OPTIMS = [name if name in QUICK else slow(name) for name in choices("optim")]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", OPTIMS)
def test_the_options_of_an_optimizer(name, schedule):
    content = {**yaml.safe_load(choices("optim")[name].read_text()), "schedule": schedule, "weight_decay": 0.3}
    content |= {key: float(value) for key, value in content.items() if isinstance(value, str) and value[0].isdigit()}
    recipe = instantiate(content, "optim", [])
    dgl = target("strategy", "dgl")(objective=CrossEntropy(), auxiliary=Linear())
    before = learned(dgl, 2, optim=recipe)
    for option, changed in variants(recipe):
        silent = all(same(before, learned(dgl, 2, optim=other)) for other in changed)
        assert silent == (option in recipe.unread()), option


# Settings, probes, data, runtime


UNREAD = {
    "balance=time blocks=max": "blocks=NUMBER",
    "balance=time blocks=[2]": "blocks=NUMBER",
    "checkpoint.keep=3 checkpoint.every=never": "checkpoint.every=1ep",
    "sweep.fail_fast=true": "-m",
    "model=mlp model.width=[8,4] model.depth=2": "model.width=NUMBER",
    "optim.milestones=[0.3]": "optim.schedule=step",
    "optim.decay=0.5 optim.schedule=linear": "optim.schedule=step",
    "data.deficit_until=3": "data.deficit=",
    "data.deficit_from=0": "data.deficit=",
    "data.deficit_length=3": "data.deficit=",
    "optim.hold=0.3 optim.schedule=constant": "another optim.schedule",
    "data=digits data.root=/somewhere": "data=NAME that has files",
    "data=folder data.resized_crop=0.5 data.memory_share=0": "data.resized_crop=0",
    "runtime=pipeline runtime.stages=1 runtime.message=bf16": "runtime.stages=2",
    "runtime=pipeline runtime.stages=1 runtime.wire=gloo": "runtime.stages=2",
    "probe=information_plane probe.information_plane.bins=5": "probe.information_plane.estimator=binned",
    "probe=information_plane probe.information_plane.estimator=binned "
    "probe.information_plane.noise_variance=0.1": "probe.information_plane.estimator=kde",
    "probe=fisher probe.fisher.beta=2": "probe.fisher.form=kl, cost or slide",
    "probe=reconstruction probe.reconstruction.steps=9": "probe.reconstruction.decoder=network",
}


@pytest.mark.parametrize("text", UNREAD)
def test_what_the_other_settings_turn_off(text):
    with pytest.raises(UserError, match=rf" is read only with {re.escape(UNREAD[text])}"):
        made(text.split())


@pytest.mark.parametrize("text", ["data.deficit_until=null", "optim.auxiliary_lr=null strategy=backprop"])
def test_null_sets_nothing(text):
    made(text.split())


@pytest.mark.slow
def test_a_run_refuses_what_only_its_blocks_can_tell(capsys):
    for words, reader in (
        (["strategy=backprop", "optim.auxiliary_lr=0.1"], "strategy=dgl or another"),
        (["strategy=dgl", "blocks=1", "runtime.staleness=0"], "blocks=2 or more"),
        (["strategy=dgl", "auxiliary.convolutions=1"], "model=NAME whose blocks emit maps"),
        (["strategy=dgl", "objective=simclr", "objective.flip=true"], "data=NAME of colour images"),
    ):
        code, _, err = run(*SETTINGS, *words, capsys=capsys)
        assert code == 2, words
        assert f"{words[-1]} is read only with {reader}" in err
        assert err.count("\n") == 1
        assert not Path("runs").exists()


# Sweeps, experiments, run folders


@pytest.mark.slow
def test_a_sweep_leaves_alone_what_is_meant_for_its_other_runs(capsys):
    code, out, err = run("-m", "strategy=backprop,dgl", "objective=predsim", *SETTINGS, capsys=capsys)
    assert code == 0, err
    assert "2 runs: 2 new" in out


@pytest.mark.slow
def test_a_sweep_in_which_nobody_reads_it_is_refused(capsys):
    code, out, err = run("-m", "strategy=backprop,dfa", "objective=predsim", *SETTINGS, capsys=capsys)
    assert code == 2
    assert err.count("objective=predsim is read only with strategy=deep_supervision") == 2
    assert "2 runs: 2 failed" in out


@pytest.mark.slow
def test_a_run_that_would_only_seem_to_differ_is_refused(capsys):
    code, out, err = run("-m", "strategy=backprop,dgl", "objective=predsim,supcon", *SETTINGS, capsys=capsys)
    assert code == 2
    assert "4 runs: 2 new, 2 failed" in out
    assert "objective=supcon is read only with" in err


def own_experiment(text: str, name: str = "mine") -> Path:
    folder = Path("conf") / "experiment"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(f"# @package _global_\n{text}")
    return folder.parent


CONTRADICTS_ITSELF = "defaults:\n  - override /strategy: backprop\n  - override /objective: predsim\n"


OPTIM = "optim:\n  milestones: [0.5]\n  schedule: step\n"


@pytest.mark.slow
def test_the_file_of_an_experiment_must_read_what_it_sets(capsys):
    place = own_experiment(CONTRADICTS_ITSELF)
    words = ["--config-dir", str(place), "+experiment=mine", *SETTINGS]
    code, _, err = run(*words, capsys=capsys)
    assert code == 2
    assert "objective=predsim of +experiment=mine is read only with strategy=" in err
    assert run(*words, "strategy=loco", capsys=capsys)[0] == 0


@pytest.mark.slow
def test_what_an_experiment_sets_is_meant_for_its_own_strategy(capsys):
    place = own_experiment(CONTRADICTS_ITSELF.replace("backprop", "dgl") + OPTIM)
    words = ["--config-dir", str(place), "+experiment=mine", *SETTINGS]
    assert run(*words, "strategy=dfa", "optim.schedule=linear", capsys=capsys)[0] == 0
    code, _, err = run(*words, "strategy=dfa", "auxiliary=cnn", capsys=capsys)
    assert (code, "auxiliary=cnn is read only with" in err) == (2, True)


@pytest.mark.slow
def test_a_run_folder_is_never_refused(capsys):
    """What was composed before goes on, also where its strategy reads neither objective nor auxiliary network."""
    result = locallearn.train(quiet=True, strategy="backprop", data="digits", **settings(SETTINGS))
    config = yaml.safe_load((result.run_dir / "config.yaml").read_text())
    config |= {"objective": yaml.safe_load(choices("objective")["infopro"].read_text())}
    config["optim"]["milestones"] = [0.1]
    (result.run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    for command in ("evaluate", "resume", "repeat"):
        assert run(command, str(result.run_dir), capsys=capsys)[0] == 0, command


@pytest.mark.slow
def test_what_is_said_beside_a_run_folder_is_read_or_refused(capsys):
    result = locallearn.train(quiet=True, strategy="dgl", data="digits", **settings(SETTINGS))
    plane = ["probe=information_plane", "probe.information_plane.samples=8", "probe.information_plane.bins=5"]
    for words in (
        ["probe", str(result.run_dir), *plane],
        ["resume", str(result.run_dir), "runtime=pipeline", "runtime.stages=1", "runtime.message=bf16"],
    ):
        code, _, err = run(*words, capsys=capsys)
        assert (code, err.count("\n")) == (2, 1)
        assert f"{words[-1]} is read only with" in err
    binned = "probe.information_plane.estimator=binned"
    assert run("probe", str(result.run_dir), *plane, binned, capsys=capsys)[0] == 0


def test_nothing_is_printed_in_the_place_of_a_run_that_was_asked_for(capsys):
    with pytest.raises(UserError, match="dry_run=true is read only with the command line"):
        locallearn.train(dry_run=True)
    code, _, err = run("tune", "dry_run=true", *SETTINGS, capsys=capsys)
    assert (code, "dry_run=true is read only with one run or a sweep" in err) == (2, True)


def settings(words: list[str]) -> dict[str, Any]:
    return {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in words)}


SWEEP = "hydra:\n  sweeper:\n    params:\n      seed: 0,1\n      optim.lr: 0.01\n"


def says(text: str) -> bool:
    return "is a sweep over seed=0,1 optim.lr=0.01: add -m to run it, or choose one run of it, such as seed=0" in text


@pytest.mark.slow
def test_one_run_does_not_drop_the_sweep_of_an_experiment(capsys):
    place = own_experiment(SWEEP)
    words = ["--config-dir", str(place), "+experiment=mine", *SETTINGS]
    code, _, err = run(*words, capsys=capsys)
    assert code == 2
    assert says(err)
    assert not Path("runs").exists()
    code, out, err = run("-m", *words, capsys=capsys)
    assert (code, "2 runs: 2 new" in out) == (0, True), err
    assert run(*words, "seed=1", "optim.lr=0.1", capsys=capsys)[0] == 0


@pytest.mark.slow
def test_tune_searches_in_one_run_of_a_sweep(capsys):
    words = ["--config-dir", str(own_experiment(SWEEP)), "+experiment=mine", *SETTINGS]
    code, _, err = run("tune", "trials=1", *words, capsys=capsys)
    assert (code, says(err.replace("over seed=0,1:", "over seed=0,1 optim.lr=0.01:"))) == (2, True)
    assert run("tune", "trials=1", *words, "seed=1", capsys=capsys)[0] == 0, "the rate is what tune searches for"


SWEEPS = [name for name, file in choices("short").items() if "params:" in file.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("name", [SWEEPS[0], *(slow(name) for name in SWEEPS[1:])])
def test_nor_do_the_commands_and_the_keywords(name, capsys):
    for words in (["doctor", f"+short={name}"], ["plan", f"+short={name}", "stages=2"], [f"+short={name}"]):
        code, _, err = run(*words, capsys=capsys)
        assert (code, f"+short={name} is a sweep over" in err) == (2, True), words
    with pytest.raises(UserError, match="choose one run of it, such as") as error:
        locallearn.train(**{"+short": name})
    one = str(error.value).partition("such as ")[2].split()
    made([f"+short={name}", *one])


@pytest.mark.slow
def test_two_experiments_with_sweeps_are_not_one_sweep(capsys):
    place = own_experiment(SWEEP)
    own_experiment("seed: 3\n", "other")
    words = ["--config-dir", str(place), "+experiment=mine,other", *SETTINGS]
    for flags in ([], ["-m"]):
        code, _, err = run(*flags, *words, capsys=capsys)
        assert (code, "-m +experiment=mine, then -m +experiment=other" in err) == (2, True)
    own_experiment("seed: 4\n")
    code, _, err = run(*words, capsys=capsys)
    assert (code, "+experiment=mine,other gives several values: add -m to run each" in err) == (2, True)
    code, out, err = run("-m", *words, capsys=capsys)
    assert (code, "2 runs: 2 new" in out) == (0, True), err


# Sinks


@pytest.mark.slow
def test_sinks_add_up(capsys, monkeypatch):
    for key in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DIR"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("HOME", str(Path.cwd()))
    code, _, err = run(*SETTINGS, "record=[wandb,tensorboard]", "record.wandb.mode=offline", "out=both", capsys=capsys)
    assert code == 0, err
    (path,) = Path("both").iterdir()
    folder = RunFolder.open(path)
    assert folder.read_json("manifest.json")["choices"]["record"] == "wandb+tensorboard"
    assert list((path / "tensorboard").glob("events*"))
    assert Path(folder.read_json("wandb.json")["path"]).is_dir()
    assert folder.read_metrics()
    code, out, err = run("-m", *SETTINGS, "record=jsonl,tensorboard", "out=each", capsys=capsys)
    assert (code, "2 runs" in out) == (0, True), err


# A loop of one's own


ONLY_TRAIN = [f.name for f in dataclasses.fields(Settings) if f.name not in (*BUILT, "sweep")]


@pytest.mark.slow
@pytest.mark.parametrize("key", [*ONLY_TRAIN, "data", "probe", "callback", "record"])
def test_build_refuses_what_only_train_reads(key):
    values = {"data": "digits", "probe": "linear", "record": "tensorboard", "checkpoint": {"keep": 3}, "max_steps": 3}
    values |= {"out": "here", "callback": "best", "init": {"run": "there"}}
    default = yaml.safe_load(Path(conf_dir() / "config.yaml").read_text()).get(key)
    with pytest.raises(UserError, match=rf"^{key}\S*=\S+ is read only with train\(\)"):
        locallearn.build("dgl", "lenet", **{key: values.get(key, default)})


@pytest.mark.slow
@pytest.mark.parametrize("key", SHARES)
def test_build_refuses_shares_of_training_without_its_length(key):
    values = {"optim.schedule": "step", "optim.milestones": [0.5], "strategy.anneal": "linear"}
    strategy = {"strategy.anneal": "deep_supervision", "strategy.warmup": "dni"}.get(key, "dgl")
    step = {"optim.schedule": "step"} if key in ("optim.milestones", "optim.decay") else {}
    options = {key: values.get(key, 0.5)} | step
    with pytest.raises(UserError, match="is read only with steps=NUMBER"):
        locallearn.build(strategy, "lenet", **options)
    locallearn.build(strategy, "lenet", steps=10, **options)


# Batches


@pytest.mark.slow
def test_a_batch_above_the_set_is_said(capsys):
    code, _, err = run(*SETTINGS, "batch_size=5000", capsys=capsys)
    assert code == 0
    assert "warning: batch_size=5000 is more than the 1294 training samples: every epoch is one step on 1294" in err


@pytest.mark.slow
def test_a_probe_that_leaves_one_sample_is_refused_in_a_sentence(capsys):
    probe = ["probe=gradient_snr", "probe.gradient_snr.batch_size=1", "probe.gradient_snr.batches=2"]
    code, _, err = run(*SETTINGS, *probe, capsys=capsys)
    assert code == 2
    assert "probe.gradient_snr hands a batch norm one sample" in err
    assert err.count("\n") == 1
    assert not Path("runs").exists()
    assert run(*SETTINGS, *probe, "model.batch_norm=false", "strategy=backprop", capsys=capsys)[0] == 0
