"""The detector: packed pyramids against a net of tuples, every cut against none, and what a run does with boxes."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import locallearn
from helpers.commands import run
from helpers.scenes import SIDE, TASK, batch, folder, net
from locallearn.auxiliary import Detect, Linear
from locallearn.data.boxes import Boxes
from locallearn.engine import SGD, AdamW, Setup, assemble
from locallearn.errors import UserError
from locallearn.models import BlockModel, measure
from locallearn.models.detector import detector
from locallearn.models.pyramid import DetectHead, Pyramid
from locallearn.objectives import CrossEntropy
from locallearn.strategies.backprop import Backprop
from locallearn.strategies.deep_supervision import DeepSupervision
from locallearn.strategies.greedy import DGL

SETUP = Setup(task=TASK, precision="fp64")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_unpack_is_the_inverse_of_pack(layout):
    sizes = ((3, 8, 12), (5, 4, 6), (2, 2, 3))
    maps = [torch.randn(4, *size).to(memory_format=layout) for size in sizes]
    pyramid = Pyramid(sizes)
    h = pyramid.pack(maps)
    assert h.shape == (4, sum(map(math.prod, sizes)))
    for m, back in zip(maps, pyramid.unpack(h), strict=True):
        assert torch.equal(m, back)
    assert torch.equal(pyramid.pack(pyramid.unpack(h)), h)
    assert Pyramid(sizes[:1]).pack(maps[:1]) is maps[0]


def with_tuples(model: BlockModel, x: Tensor) -> list[Tensor]:
    """N3, B4 and B5 by the same modules, every map by its name."""
    u: dict[str, Any] = dict(zip(model.names, model.units, strict=True))
    inner = {name: getattr(unit, "inner", unit) for name, unit in u.items()}
    p3 = inner["elan2"](inner["down2"](inner["elan1"](inner["stem"](x))))
    p4 = inner["elan3"](inner["down3"](p3))
    p5 = inner["elan4"](inner["down4"](p4))
    n4 = inner["top4"](p5, p4)
    n3 = inner["top3"](n4, p3)
    b4 = inner["bottom4"](n3, n4)
    return [n3, b4, inner["bottom5"](b4, p5)]


def test_packed_maps_are_those_of_a_net_with_tuples():
    model = net().train().to(memory_format=torch.channels_last)
    other = copy.deepcopy(model)
    x, y = batch(3)
    x = x.to(memory_format=torch.channels_last)
    maps = with_tuples(other, x)
    levels = [
        torch.cat([t(m).permute(0, 2, 3, 1).flatten(1, 2) for t in towers], dim=2)
        for m, *towers in zip(maps, other.head.sides, other.head.classes, strict=True)
    ]
    z = model(x)
    assert torch.equal(z[..., 3:], torch.cat(levels, dim=1))
    first = torch.autograd.grad(TASK.loss(z, y), list(model.parameters()))
    anchors = z.detach()[..., :3]
    second = torch.autograd.grad(
        TASK.loss(torch.cat([anchors, torch.cat(levels, dim=1)], dim=2), y), list(other.parameters())
    )
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_the_published_numbers_of_the_head():
    model = detector((3, 192, 256), 3)
    z = model.eval()(torch.zeros(1, 3, 192, 256))
    assert z.shape == (1, 24 * 32 + 12 * 16 + 6 * 8, 3 + 4 * 8 + 3)
    assert z[0, 0, :3].tolist() == [4, 4, 8]
    assert z[0, 33, :3].tolist() == [12, 12, 8]  # the second row begins at 32
    assert z[0, -1, :3].tolist() == [256 - 16, 192 - 16, 32]
    bias = model.head.classes[0][-1].bias  # type: ignore[index]
    torch.testing.assert_close(bias, torch.full((3,), math.log(5 / 3 / (24 * 32))))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.03)}
    assert [unit.name for unit in measure(model)][7:9] == ["elan4", "top4"]
    assert model.shapes()[3] == (32, 24, 32)
    assert model.shapes()[7] == (32 * 24 * 32 + 48 * 12 * 16 + 64 * 6 * 8,)


def trained(strategy: Any, blocks: Any, steps: int = 2) -> dict[str, Tensor]:
    model = net()
    learner = assemble(model, strategy, SGD(lr=0.01), model.cut(blocks), SETUP)
    for step in range(steps):
        learner.step(*batch(3, step))
    return model.state_dict()


@pytest.mark.parametrize("blocks", ["max", [4, 6, 8]])
def test_cut_anywhere_backprop_is_that_of_one_block(blocks):
    one, cut = trained(Backprop(), 1), trained(Backprop(), blocks)
    for name, t in one.items():
        torch.testing.assert_close(t, cut[name], rtol=0, atol=1e-12)


def test_deep_supervision_is_one_loss_over_heads_on_the_newest_level():
    """Heads on P3, P4 and P5 with weight 0.3 beside the true loss: one graph, by hand."""
    model = net()
    strategy = DeepSupervision(objective=CrossEntropy(), auxiliary=Detect(bins=4), weight=0.3)
    learner = assemble(model, strategy, SGD(lr=0.0), model.cut([4, 6, 8]), SETUP)
    other, heads = copy.deepcopy(model), [copy.deepcopy(b.auxiliary) for b in learner.blocks[:3]]
    x, y = batch(3)
    u: dict[str, Any] = dict(zip(other.names, other.units, strict=True))
    p3 = u["elan2"](u["down2"](u["elan1"](u["stem"](x))))
    p4 = u["elan3"].inner(u["down3"].inner(p3))
    p5 = u["elan4"].inner(u["down4"].inner(p4))
    loss = TASK.loss(other(x), y)
    for modules, m in zip(heads, (p3, p4, p5), strict=True):
        head: Any = modules["classifier"]
        alone = DetectHead(Pyramid((m.shape[1:],)), (3, SIDE, SIDE), 2, 4).double()
        alone.load_state_dict(head.state_dict())
        loss = loss + 0.3 * TASK.loss(alone(m), y)
    expected = dict(
        zip(dict(other.named_parameters()), torch.autograd.grad(loss, list(other.parameters())), strict=True)
    )
    got = collected(learner, x, y)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=1e-9)


def collected(learner: Any, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The gradients of the model's parameters in one step."""
    for block in learner.blocks:
        block.update = lambda part="main": None
    learner.step(x, y)
    return {name: p.grad for name, p in learner.model.named_parameters()}


def test_who_finds_no_boxes_is_refused():
    model = net()
    with pytest.raises(UserError, match=r"Linear finds no boxes.*auxiliary=detect"):
        assemble(model, DGL(objective=CrossEntropy(), auxiliary=Linear()), SGD(), model.cut([4, 6, 8]), SETUP)
    with pytest.raises(UserError, match="auxiliary=detect answers with boxes"):
        Detect().build((8, 4, 4), 10)
    with pytest.raises(UserError, match=r"sides divisible by 32, not 60 x 64"):
        detector((3, 60, 64), 2)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return folder(tmp_path_factory.mktemp("scenes"))


BASE = ["data=voc", "data.size=[64,64]", "model=detector", "model.width=0.125", "model.block=conv", "blocks=[4,6,8]"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("strategy=dgl auxiliary=linear", "Linear finds no boxes"),
        ("strategy=dfa", "learns from one answer for each sample or position"),
        ("strategy=dgl auxiliary=detect objective=supcon", "attracts samples of one label"),
        (
            "strategy=backprop model=gelan model.elan_depth=1",
            "answers once for each sample, but must answer with boxes",
        ),
        ("strategy=backprop data=digits", "answers with boxes, but must answer once for each sample"),
        ("strategy=backprop probe=fisher", "probe.fisher is for classification"),
    ],
)
def test_what_boxes_are_not_for_is_one_sentence(settings, sentence, root, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = dict(word.split("=", 1) for word in [*BASE, f"data.root={root}", *settings.split()])
    if chosen["data"] == "digits":
        chosen = {key: value for key, value in chosen.items() if not key.startswith("data.")}
    if chosen["model"] == "gelan":
        chosen.pop("model.bins", None)
    code, _, err = run(*(f"{key}={value}" for key, value in chosen.items()), "epochs=1", "batch_size=4", capsys=capsys)
    assert code == 2
    assert sentence in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def settings(root: Path, strategy: str, **more: Any) -> dict[str, Any]:
    options = {"data": "voc", "data.root": str(root), "data.size": [64, 64], "data.flip": True, "model": "detector"}
    options |= {"model.width": 0.125, "model.block": "conv", "model.bins": 4, "blocks": [4, 6, 8], "strategy": strategy}
    options |= {} if strategy == "backprop" else {"auxiliary": "detect", "auxiliary.bins": 4}
    return options | {"batch_size": 4, "epochs": 2, "max_steps": 4, "threads": 1, "quiet": True} | more


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["backprop", "deep_supervision", "dgl", "loco"])
def test_two_processes_are_the_serial_run(strategy, root, tmp_path):
    one = locallearn.train(out=str(tmp_path / "one"), **settings(root, strategy))
    two = locallearn.train(out=str(tmp_path / "two"), runtime="pipeline", **settings(root, strategy))
    for p, q in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(p, q)
    same = [name for name in one.metrics if name.startswith(("train", "validation", "test", "block"))]
    assert {name: one.metrics[name] for name in same} == {name: two.metrics[name] for name in same}


@pytest.mark.slow
def test_four_images_are_learned_by_heart():
    torch.manual_seed(0)
    images, y = batch(4, seed=1)
    x = images.float()
    model = detector((3, SIDE, SIDE), 2, width=0.25)
    optim = AdamW(lr=1e-2, schedule="cosine", warmup=0.05)
    learner = assemble(model, Backprop(), optim, model.cut(1), Setup(task=TASK, total_steps=200))
    for _ in range(200):
        learner.step(x, y)
    with torch.no_grad():
        numbers = TASK.finish(TASK.rows(model.eval()(x), y))
    assert numbers["ap50"] > 0.95


@pytest.mark.slow
def test_the_probe_draws_what_is_found_beside_what_is_there(root, tmp_path):
    """The counts of the probe's row are those of the decoded boxes, and the picture is in the page of a report."""
    options = settings(root, "backprop", probe="detections", out=str(tmp_path), epochs=1, max_steps=2)
    result = locallearn.train(**options | {"probe.detections.score": 0.001, "probe.detections.images": 3})
    folder = Path(result.run_dir) / "probes" / "detections"
    assert [file.name for file in folder.glob("*.png")] == ["detections-00001.png"]
    last = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()][-1]
    data = Boxes(root=str(root), size=(SIDE, SIDE)).load(0, torch.device("cpu"))
    x, y = next(data.evaluation(data.test, 3))
    with torch.no_grad():
        found = torch.stack(data.task.decoded(result.model.eval()(x)))  # type: ignore[attr-defined]
    for k, name in enumerate(data.classes):
        assert last[f"objects_{name}"] == int((y[..., 0] == k).sum())
        assert last[f"found_{name}"] == int((found[..., 0] == k).sum())
    assert sum(last[f"found_{name}"] for name in data.classes) > 0
