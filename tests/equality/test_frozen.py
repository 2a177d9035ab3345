"""Blocks that the user has frozen: they keep every bit, and the others learn as in a loop written by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import locallearn
from helpers.commands import SMALL, one_sentence, run
from helpers.marks import slow
from helpers.nets import assert_same, fitting, tiny_batches, tiny_learner, tiny_model, trained
from helpers.strategies import FILES, make, slow_where_alike
from locallearn.engine.answer import answering_model
from locallearn.engine.gradients import true_gradients
from locallearn.errors import UserError
from locallearn.plan.measure import rehearse
from locallearn.strategies.backprop import Backprop

STEPS = 4
BATCHES = tiny_batches(STEPS)


ONE = [slow([0]), slow([3])]


@pytest.mark.parametrize("learning", [[1, 2], [0, 3], *ONE], ids=str)
@pytest.mark.parametrize(
    "name", [*slow_where_alike(FILES), "dni synthetic_inputs=true", "loco reach=3", "loco combine=next"]
)
def test_frozen_blocks_keep_every_bit_and_the_others_learn(name, learning):
    strategy = make(name)
    model = fitting(strategy, tiny_model(dropout=0.2))
    if strategy.ships and learning[-1] != 3:
        with pytest.raises(UserError, match="leaves out block 3, from which"):
            tiny_learner(strategy, model, train_blocks=frozenset(learning), total_steps=STEPS)
        return
    learner = tiny_learner(strategy, model, train_blocks=frozenset(learning), total_steps=STEPS)
    if name == "shallow" and learning != [3]:
        with pytest.raises(UserError, match=r"trains nothing|names block 0, which Shallow does not train"):
            rehearse(learner, *BATCHES[0])
        return
    if name == "sigprop" and learning[0]:
        with pytest.raises(UserError, match="add 0 to train_blocks"):
            rehearse(learner, *BATCHES[0])
        return
    rehearse(learner, *BATCHES[0])
    for x, y in BATCHES:
        learner.learn(x, y)
        learner.model.train()  # as somebody might who has looked at it
    for k, unit in enumerate(learner.model.units):
        before = model.units[k].double().state_dict()
        for key, after in unit.state_dict().items():
            learns = k in learning and (name != "cafo" or "running" in key or "batches" in key)  # the rest is random
            assert torch.equal(after, before[key]) != learns, f"units.{k}.{key}"
    before = model.head.double().state_dict()
    learns = 3 in learning and (strategy.plain or name == "equilibrium")  # the others have no use for it
    assert all(torch.equal(t, before[key]) != learns for key, t in learner.model.head.state_dict().items())
    assert all(p.grad is None for _, p in learner.parameters())
    x = BATCHES[0][0]
    assert torch.equal(learner.predict(x)[-1], answering_model(learner)(x))


def frozen(*modules: nn.Module) -> None:
    for module in modules:
        module.eval().requires_grad_(False)


@pytest.mark.parametrize("learning", [[1, 3], [0], [2]], ids=str)
def test_backprop_with_frozen_blocks_is_the_loop_that_everybody_writes(learning):
    model = tiny_model()
    ours = trained(Backprop(), BATCHES, model, train_blocks=frozenset(learning))
    bare = copy.deepcopy(model).double().train()
    frozen(*(bare.units[k] for k in range(4) if k not in learning), *([] if 3 in learning else [bare.head]))
    own = [p for p in bare.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(own, lr=0.1, momentum=0.9, weight_decay=1e-3, fused=True)
    for x, y in BATCHES:
        optimizer.zero_grad()
        F.cross_entropy(bare(x), y).backward()
        optimizer.step()
    assert_same(ours.model, bare)
    found = true_gradients(ours, *BATCHES[0])  # what probes compare with
    assert [bool(block.parameters) for block in found] == [k in learning for k in range(4)]


@pytest.mark.parametrize("learning", [[1, 3], [0, 2]], ids=str)
def test_dgl_with_frozen_blocks_is_a_loop_over_the_learning_ones(learning):
    model = tiny_model()
    ours = tiny_learner(make("dgl"), model, train_blocks=frozenset(learning), total_steps=STEPS)
    bare = copy.deepcopy(model).double().train()
    frozen(*(bare.units[k] for k in range(4) if k not in learning))
    heads = {k: copy.deepcopy(ours.blocks[k].auxiliary["classifier"]) if k < 3 else bare.head for k in learning}
    optimizers = {
        k: torch.optim.SGD(
            [*bare.units[k].parameters(), *heads[k].parameters()], lr=0.1, momentum=0.9, weight_decay=1e-3, fused=True
        )
        for k in learning
    }
    for x, y in BATCHES:
        ours.learn(x, y)
        h = x
        for k, unit in enumerate(bare.units):
            h = unit(h)
            if k in learning:
                optimizers[k].zero_grad()
                F.cross_entropy(heads[k](h), y).backward()
                optimizers[k].step()
                h = h.detach()
            if k == max(learning):
                break
    assert_same(ours.model, bare)
    assert [p is None for p in ours.predict(BATCHES[0][0])] == [k not in learning and k < 3 for k in range(4)]
    assert not any(len(block.auxiliary) for block in ours.blocks if block.frozen)


def test_phases_are_those_of_the_learning_blocks():
    """Greedy gives each of two blocks half of the steps, not a quarter."""
    learner = tiny_learner(make("greedy"), train_blocks=frozenset([1, 3]), total_steps=STEPS)
    moved = []
    for x, y in BATCHES:
        before = copy.deepcopy(learner.model)
        learner.learn(x, y)
        now = learner.model.state_dict()
        moved.append({name.split(".")[1] for name, t in before.state_dict().items() if not torch.equal(t, now[name])})
    assert [names - {"2", "4"} for names in moved[:2]] == [{"1"}] * 2
    assert all("3" in names and "1" not in names for names in moved[2:])


@pytest.mark.slow
@pytest.mark.usefixtures("elsewhere")
def test_blocks_that_cannot_be_trained_are_refused(capsys):
    few = [*SMALL, "epochs=1", "max_steps=2"]
    for words, said in {
        ("train_blocks=[5]",): "train_blocks=[5]: the model is cut into blocks 0 to 1; choose of these",
        ("train_blocks=[]",): "train_blocks=[]: must be a list of whole numbers of at least 0 that is not empty",
        ("train_blocks=[-1]",): "train_blocks[0]=-1: must be a whole number of at least 0",
        ("train_blocks=[0]", "strategy=shallow"): "trains nothing",
        ("train_blocks=[0,1]", "strategy=shallow"): "train_blocks names block 0, which Shallow does not train",
        ("train_blocks=[1]", "runtime=replay"): "runtime=replay lets all blocks learn: leave train_blocks out",
    }.items():
        code, _, err = run(*few, *words, capsys=capsys)
        assert (code, said in one_sentence(err)) == (2, True), err
    code, _, err = run(*few, "train_blocks=[1]", "probe=alignment", "model.batch_norm=true", capsys=capsys)
    assert code == 0, err
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(UserError, match="blocks 0 to 1"):
        locallearn.build("dgl", module, image=(3, 2, 2), classes=3, blocks=2, train_blocks=[2], auxiliary="linear")
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("name", ["cafo", "mono_forward"])
def test_a_run_with_frozen_blocks_is_loaded(name, tmp_path):
    """Of a frozen block no classifier ships."""
    settings = {"model": "lenet", "data": "digits", "blocks": "max", "epochs": 1, "max_steps": 3, "device": "cpu"}
    options = {"strategy": name, "train_blocks": [1, 3], "callback": "ema", "out": str(tmp_path), "quiet": True}
    result = locallearn.train(**settings, **options, threads=1)
    x = torch.randn(3, 1, 32, 32)
    assert torch.allclose(locallearn.load(result.run_dir)(x), result.model(x), atol=1e-6)
    averaged = load_file(result.run_dir / "model-ema.safetensors")
    assert averaged.keys() == load_file(result.run_dir / "model.safetensors").keys()
