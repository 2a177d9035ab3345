"""A cut behind the last unit: the head is a block of its own, and the net is the same."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import locallearn
from helpers.commands import one_sentence, run
from helpers.nets import assert_same, dense_batch, dense_model, tiny_learner
from locallearn.engine import SGD
from locallearn.models import BlockModel, head_apart
from locallearn.strategies.predictive_coding import PredictiveCoding

LR = 0.1
APART = [1, 2, 3]  # `dense_model` has three units
MLP = ["data=digits", "data.fraction=0.2", "model=mlp", "model.width=8", "model.depth=3", "epochs=1", "threads=1"]


@pytest.mark.parametrize("strategy", ["backprop", "dgl"])
def test_the_head_alone_learns_as_it_did_with_the_last_layer(strategy):
    """Under backprop the whole net, bit for bit; under DGL all that is below the last layer, which now learns from a
    loss of its own."""
    settings = {"precision": "fp64", **({"auxiliary": "linear"} if strategy == "dgl" else {})}
    nets = {}
    for blocks in (APART[:-1], APART):
        torch.manual_seed(0)
        nets[len(blocks)] = dense_model()
        learner = locallearn.build(strategy, nets[len(blocks)], image=(6,), classes=3, blocks=blocks, **settings)
        for _ in range(3):
            learner.step(*dense_batch())
        assert len(learner.cut) == len(blocks) + 1
    together, apart = nets.values()
    assert len(apart.units) == 3, "the module that was given is left as it was"
    for k, (ours, theirs) in enumerate(zip([*apart.units, apart.head], [*together.units, together.head], strict=True)):
        if strategy != "dgl" or k < 2:
            assert_same(ours, theirs)


@pytest.mark.parametrize("steps", [1, 4])
def test_in_predictive_coding_every_hidden_layer_has_states(steps):
    """Against the gradient of the energy sum |h_k - tanh(W_k h_{k-1})|^2 / 2 + CE(W h_3), by autograd alone."""
    net = dense_model(nn.Tanh)
    strategy = PredictiveCoding(steps=steps, rate=0.2, momentum=0.35)
    truth = [[p.detach().clone().requires_grad_() for p in layer.parameters()] for layer in (*net.units, net.head)]
    x, y = dense_batch()

    def energies(states: list[torch.Tensor]) -> torch.Tensor:
        """One for each sample."""
        *hidden, (weight, bias) = truth
        below = [x, *states]
        errors = [h - torch.tanh(a @ w.T + b) for h, a, (w, b) in zip(states, below, hidden, strict=False)]
        top = nn.functional.cross_entropy(states[-1] @ weight.T + bias, y, reduction="none")
        return torch.stack([e.square().sum(1) / 2 for e in errors]).sum(0) + top

    states: list[torch.Tensor] = []
    for weight, bias in truth[:-1]:
        states.append(torch.tanh([x, *states][-1] @ weight.T + bias).detach())
    velocity = [torch.zeros_like(h) for h in states]
    for _ in range(steps):
        leaves = [h.requires_grad_() for h in states]
        pulls = torch.autograd.grad(energies(leaves).sum(), leaves)
        velocity = [0.35 * v + pull for v, pull in zip(velocity, pulls, strict=True)]
        states = [(h - 0.2 * v).detach() for h, v in zip(states, velocity, strict=True)]
    energies(states).mean().backward()

    optim = SGD(lr=LR, momentum=0.0, schedule="constant")
    learner = tiny_learner(strategy, head_apart(net, APART), "max", optim=optim)
    learner.step(x, y)
    layers = [*list(learner.model.units)[:-1], learner.model.head]
    for ours, theirs in zip(layers, truth, strict=True):
        for p, q in zip(ours.parameters(), theirs, strict=True):
            torch.testing.assert_close(p.detach(), (q - LR * q.grad).detach(), rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["dgl", "predictive_coding"])
def test_the_head_in_a_process_of_its_own(strategy, tmp_path, capsys):
    """A pipeline has the bits of the serial run, and what is loaded answers as the run did."""
    words = [*MLP, f"strategy={strategy}", "blocks=[1,2,3]", "checkpoint.every=never"]
    words += ["auxiliary=linear"] if strategy == "dgl" else []
    ended = {}
    for name, more in {"serial": [], "pipeline": ["runtime=pipeline", "runtime.split=[3,1]"]}.items():
        code, _, err = run(*words, *more, f"out={tmp_path / name}", capsys=capsys)
        assert code == 0, err
        (ended[name],) = (tmp_path / name).iterdir()
    serial, pipeline = ((folder / "model.safetensors").read_bytes() for folder in ended.values())
    assert serial == pipeline
    assert json.loads((ended["serial"] / "manifest.json").read_text())["cut"] == [[0, 1], [1, 2], [2, 3], [3, 4]]
    model = locallearn.load(ended["serial"])
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    code, out, err = run("evaluate", str(ended["pipeline"]), capsys=capsys)
    assert code == 0, err
    accuracy = json.loads((ended["serial"] / "summary.json").read_text())["test/accuracy"]
    assert dict(line.split() for line in out.splitlines())["accuracy"] == f"{accuracy:.4f}"


def test_what_names_another_cut_is_told_of_this_one(capsys):
    code, _, err = run(*MLP, "strategy=dgl", "blocks=[1,4]", capsys=capsys)
    assert code == 2
    assert "between 1 and 2, or 3 as the last, which makes the head a block of its own" in one_sentence(err)


def test_other_cuts_leave_a_model_alone():
    net = dense_model()
    assert isinstance(net, BlockModel)
    assert all(head_apart(net, blocks) is net for blocks in ("max", "auto", 3, [1, 2], [3, 1]))
    assert [*head_apart(net, [3]).state_dict()] == [*net.state_dict()]
