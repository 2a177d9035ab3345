"""PGI for boxes against one graph with one loss, written from the paper's wiring; and what is left at inference."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

import locallearn
from helpers.scenes import TASK, batch, folder, net
from locallearn.auxiliary import Detect
from locallearn.contract import Strategy
from locallearn.engine import SGD, Learner, Setup, assemble
from locallearn.errors import UserError
from locallearn.strategies.backprop import Backprop
from locallearn.strategies.pgi import PGI, CausalPGI
from locallearn.studies.experiments import pgi_detection

CUT = [4, 6, 8]
WIDTH = 6


def pgi(**options: Any) -> PGI:
    options = {"width": WIDTH, "block": "conv"} | options
    return PGI(auxiliary=Detect(bins=4), **options)


def assembled(strategy: Strategy, cut: Any = CUT) -> Learner:
    model = net()
    return assemble(model, strategy, SGD(lr=0.0), model.cut(cut), Setup(task=TASK, precision="fp64"))


def gradients(learner: Learner) -> dict[str, Tensor | None]:
    """Of one step, by the names of the learner."""
    for block in learner.blocks:
        block.update = lambda part="main": None  # type: ignore[method-assign]
    learner.step(*batch(3))
    return {name: None if p.grad is None else p.grad.clone() for name, p in learner.parameters()}


def nearest(r: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(r, like.shape[2:], mode="nearest")


def branch_maps(kind: str, branch: Any, x: Tensor, routes: list[Tensor]) -> list[Tensor]:
    """What the auxiliary head reads."""
    if kind == "none":
        return routes
    if kind == "elan":
        a = branch.stem(x)
        chunks = [r.split([16, 24, 32][: k + 1], dim=1) for k, r in enumerate(routes)]
        a3 = branch.downs[0](a)
        a3 = branch.units[0](a3 + chunks[0][0] + nearest(chunks[1][0], a3) + nearest(chunks[2][0], a3))
        a4 = branch.downs[1](a3)
        a4 = branch.units[1](a4 + chunks[1][1] + nearest(chunks[2][1], a4))
        return [a3, a4, branch.units[2](branch.downs[2](a4) + chunks[2][2])]
    a, maps = branch.stem(x), []
    for k, level in enumerate(branch.levels):
        a = F.adaptive_avg_pool2d(a, routes[k].shape[2:])
        a = level.couplings(a + sum(nearest(r, a) for r in routes[k:]))
        maps.append(a)
    return maps


def whole(learner: Learner, strategy: PGI) -> Tensor:
    """The loss of everything, in one graph."""
    x, y = batch(3)
    h, taps = x, []
    for block in learner.blocks[:3]:
        h = block.layers(h)
        m = h if h.dim() == 4 else block.layers[-1].levels and tail(h, block.layers[-1].levels[-1])
        conv = block.auxiliary["routing"].conv
        taps.append(conv(m.detach() if strategy.taps == "detached" else m))
        h = h.detach() if strategy.taps == "local" else h
    last: Any = learner.blocks[3]
    true = TASK.loss(last.head(last.layers(h)), y)
    branch = last.auxiliary["branch"]
    maps = branch_maps(strategy.branch, branch, x, taps)
    head = branch.whole if strategy.branch == "coupling" else branch.heads[0]
    levels = [torch.cat([t(m) for t in ts], dim=1) for m, *ts in zip(maps, head.sides, head.classes, strict=True)]
    answers = torch.cat([z.permute(0, 2, 3, 1).flatten(1, 2) for z in levels], dim=1)
    anchors = learner.model.head(last.layers(h.detach())).detach()[..., :3]
    return true + strategy.weight * TASK.loss(torch.cat([anchors, answers], dim=2), y)


def tail(h: Tensor, size: tuple[int, ...]) -> Tensor:
    """The newest map of a packed pyramid."""
    channels, height, width = size
    return h[:, -channels * height * width :].reshape(len(h), height, width, channels).permute(0, 3, 1, 2)


@pytest.mark.parametrize("taps", ["gradient", "detached", "local"])
@pytest.mark.parametrize("branch", ["coupling", "elan", "none"])
def test_pgi_is_one_graph_with_one_loss(branch, taps):
    strategy = pgi(branch=branch, taps=taps)
    learner, other = assembled(strategy), assembled(strategy)
    got = gradients(learner)
    names = [name for name, _ in other.parameters()]
    expected = torch.autograd.grad(whole(other, strategy), [p for _, p in other.parameters()], allow_unused=True)
    for name, gradient in zip(names, expected, strict=True):
        assert (got[name] is None) == (gradient is None), name
        if gradient is not None:
            torch.testing.assert_close(got[name], gradient, rtol=0, atol=1e-10, msg=name)


@pytest.mark.parametrize("options", [{"taps": "detached"}, {"weight": 0.0}])
@pytest.mark.parametrize("branch", ["coupling", "elan", "none"])
def test_a_branch_that_teaches_nothing_leaves_backprop(branch, options):
    plain, with_branch = gradients(assembled(Backprop())), gradients(assembled(pgi(branch=branch, **options)))
    for name, gradient in plain.items():
        torch.testing.assert_close(with_branch[name], gradient, rtol=0, atol=1e-12, msg=name)


def test_the_levels_of_causal_pgi_have_heads_of_their_own():
    learner = assembled(CausalPGI(auxiliary=Detect(bins=4), width=WIDTH))
    x, y = batch(2)
    assert learner.step(x, y)["loss"] > 0
    levels = [block.auxiliary["level"].classifier for block in learner.blocks[:3]]
    assert [len(level.sides) for level in levels] == [1, 1, 1]  # type: ignore[union-attr,arg-type]


def test_without_the_branch_boxes_are_the_same():
    """After some steps: the model alone, rebuilt from its own tensors, decodes to the same boxes, bit for bit."""
    model = net()
    learner = assemble(model, pgi(), SGD(lr=1e-3), model.cut(CUT), Setup(task=TASK, precision="fp64"))
    for step in range(3):
        learner.step(*batch(3, step))
    x, _ = batch(4, 9)
    with_branch = TASK.decoded(learner.predict(x)[-1])
    alone = net()
    alone.load_state_dict(copy.deepcopy(model.state_dict()))
    with torch.no_grad():
        without = TASK.decoded(alone.eval()(x))
    assert all(torch.equal(a, b) for a, b in zip(with_branch, without, strict=True))
    assert any(bool((boxes[:, 0] >= 0).any()) for boxes in without)
    plain = sum(p.numel() for _, p in assembled(Backprop()).parameters())
    assert sum(p.numel() for p in alone.parameters()) == plain < sum(p.numel() for _, p in learner.parameters())


def test_taps_that_do_not_halve_are_refused_by_the_second_backbone():
    with pytest.raises(UserError, match=r"branch=elan needs taps at strides.*\[4, 4, 8\]"):
        assembled(pgi(branch="elan"), [1, 2, 4])


@pytest.mark.slow
@pytest.mark.parametrize("branch", ["coupling", "elan", "none"])
def test_two_processes_are_the_serial_run_and_nothing_of_the_branch_is_exported(branch, tmp_path):
    root = folder(tmp_path / "scenes")
    options: dict[str, Any] = {"data": "voc", "data.root": str(root), "data.size": [64, 64], "model": "detector"}
    options |= {"model.width": 0.125, "model.block": "conv", "model.bins": 4, "blocks": CUT, "strategy": "pgi"}
    options |= {"strategy.branch": branch, "auxiliary": "detect", "auxiliary.bins": 4, "batch_size": 4, "epochs": 2}
    options |= {"max_steps": 4, "threads": 1, "quiet": True}
    one = locallearn.train(out=str(tmp_path / "one"), **options)
    two = locallearn.train(out=str(tmp_path / "two"), runtime="pipeline", **options)
    tensors = [load_file(Path(result.run_dir) / "model.safetensors") for result in (one, two)]
    assert tensors[0].keys() == tensors[1].keys() == net().state_dict().keys()
    assert all(torch.equal(t, tensors[1][name]) for name, t in tensors[0].items())
    again = locallearn.load(one.run_dir)
    x = batch(2)[0].float()
    trained = one.model.eval().to(memory_format=torch.contiguous_format)  # the layout of training rounds in its own way
    with torch.no_grad():
        assert torch.equal(again.eval()(x), trained(x))


@pytest.mark.parametrize(
    ("shallow", "deep", "word"),
    [
        ([0.1, 0.2, 0.3], [1.0, 1.1, 1.2], "reproduced"),
        ([0.1, -0.2, 0.3], [1.0, -0.1, 1.2], "consistent"),
        ([0.1, 0.2, 0.3], [-1.0, -1.1, -1.2], "contradicted"),
        ([-0.5, 0.4, -0.3], [0.5, -0.4, 0.6], "not reproduced"),
        ([0.1], [0.6], "one seed decides nothing"),
    ],
)
def test_the_verdict_of_the_study(shallow, deep, word):
    """Means of paired differences and their intervals of Student's t, as scipy has them."""
    ap = {
        f"{net}, baseline": [50.0 + s for s in range(len(own))] for net, own in (("shallow", shallow), ("deep", deep))
    }
    ap |= {"shallow, PGI": [50.0 + s + d for s, d in enumerate(shallow)]}
    ap |= {"deep, PGI": [50.0 + s + d for s, d in enumerate(deep)]}
    assert pgi_detection._verdict(ap).startswith(word)
    if len(deep) > 1:
        own = stats.t.interval(0.95, len(deep) - 1, loc=np.mean(deep), scale=stats.sem(deep))
        assert pgi_detection._ends(deep) == pytest.approx(own)
