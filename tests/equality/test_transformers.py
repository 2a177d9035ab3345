"""gpt and vit against a transformer written from the equations; what no head may see; runs that end with equal bits."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import locallearn
from helpers.runs import assert_same_run
from locallearn.auxiliary import MLP, Linear, Transformer
from locallearn.engine import SGD, AdamW, Learner, Setup, assemble
from locallearn.engine.optim import Optim
from locallearn.errors import UserError
from locallearn.models import BlockModel, measure
from locallearn.models.gpt import gpt
from locallearn.models.vit import vit
from locallearn.objectives import CrossEntropy
from locallearn.strategies.backprop import Backprop
from locallearn.strategies.deep_supervision import DeepSupervision
from locallearn.strategies.dfa import DFA, DRTP
from locallearn.strategies.feedback_alignment import FeedbackAlignment, FeedbackLayer
from locallearn.strategies.forward_gradient import ForwardGradient
from locallearn.strategies.greedy import DGL
from locallearn.strategies.overlapping import Overlapping
from locallearn.strategies.solo import SOLO
from locallearn.task import CLASSES, Task
from locallearn.tasks import Tokens

B, T, V, WIDTH, HEADS, LAYERS, RATE = 4, 7, 5, 8, 2, 3, 0.1
PLAIN = SGD(lr=RATE, momentum=0.0, schedule="constant")


def tokens(*shape: int) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(sum(shape)))


def of_text(**options: Any) -> BlockModel:
    torch.manual_seed(0)
    return gpt((T,), V, V, **{"layers": LAYERS, "heads": HEADS, "width": WIDTH, **options}).double()


def learner_of(model: BlockModel, strategy: Any, blocks: Any, task: Task, optim: Optim = PLAIN) -> Learner:
    return assemble(model, strategy, optim, model.cut(blocks), Setup(precision="fp64", task=task, total_steps=9))


# The nets from their equations


def norm(state: dict[str, Tensor], x: Tensor, at: str) -> Tensor:
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    return (x - mean) / (var + 1e-5).sqrt() * state[f"{at}.weight"] + state.get(f"{at}.bias", 0)


def linear(state: dict[str, Tensor], x: Tensor, at: str) -> Tensor:
    return x @ state[f"{at}.weight"].T + state.get(f"{at}.bias", 0)


def layers(state: dict[str, Tensor], h: Tensor, masked: bool) -> Tensor:
    """Attention head by head with an explicit softmax, and GELU by the error function."""
    for k in range(1, LAYERS + 1):
        at, width = f"units.{k}", WIDTH // HEADS
        q, key, v = linear(state, norm(state, h, f"{at}.norm1"), f"{at}.attention.inputs").split(WIDTH, 2)
        mixed = []
        for one in range(HEADS):
            part = slice(one * width, (one + 1) * width)
            scores = q[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(width)
            later = torch.ones(h.shape[1], h.shape[1], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -math.inf) if masked else scores
            mixed.append(scores.softmax(-1) @ v[..., part])
        h = h + linear(state, torch.cat(mixed, -1), f"{at}.attention.outputs")
        wide = linear(state, norm(state, h, f"{at}.norm2"), f"{at}.expand")
        h = h + linear(state, wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2))), f"{at}.reduce")
    return h


def plain_gpt(state: dict[str, Tensor], x: Tensor) -> Tensor:
    h = state["units.0.token.weight"][x] + state["units.0.position.weight"][: x.shape[1]]
    out = state.get("head.1.weight", state["units.0.token.weight"])
    return norm(state, layers(state, h, masked=True), "head.0") @ out.T


def plain_vit(state: dict[str, Tensor], x: Tensor) -> Tensor:
    rows = [x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten(1) for i in range(2) for j in range(3)]
    kernel = state["units.0.patch.weight"].flatten(1)
    h = torch.stack(rows, 1) @ kernel.T + state["units.0.patch.bias"] + state["units.0.position.weight"]
    return linear(state, norm(state, layers(state, h, masked=False), "head.0").mean(1), "head.2")


def check(model: BlockModel, plain: Any, x: Tensor, y: Tensor, task: Task, blocks: tuple[Any, ...]) -> None:
    """Logits, and the weights after a step of backpropagation."""
    with torch.no_grad():  # biases begin at 0, and norms at 1: of these nothing would be seen
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(p)), dtype=p.dtype) / 5)
    state = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    z = plain(state, x)
    torch.testing.assert_close(model(x), z, atol=1e-12, rtol=0)
    F.cross_entropy(z.flatten(0, -2), y.flatten(), ignore_index=-1).backward()
    for count in blocks:
        own = copy.deepcopy(model)
        learner_of(own, Backprop(), count, task).step(x, y)
        for name, p in own.named_parameters():
            torch.testing.assert_close(p, state[name] - RATE * state[name].grad, atol=1e-12, rtol=0, msg=name)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"bias": False, "tie": True}], ids=str)
def test_gpt_is_a_plain_transformer(options):
    model, y = of_text(**options), tokens(B, T)
    y[0, 4:] = -1  # a padded row
    y[2] = -1
    check(model, plain_gpt, tokens(B, T), y, Tokens(), (1,) if options.get("tie") else (1, "max"))
    state = dict(model.named_parameters())
    torch.testing.assert_close(model(tokens(B, 3)), plain_gpt(state, tokens(B, 3)), atol=1e-12, rtol=0)


def test_vit_is_a_plain_transformer():
    torch.manual_seed(0)
    model = vit((3, 4, 6), V, patch=2, layers=LAYERS, heads=HEADS, width=WIDTH).double()
    x = torch.randn(B, 3, 4, 6, dtype=torch.float64)
    check(model, plain_vit, x, tokens(B), CLASSES, (1, "max"))


def test_sizes_and_operations_are_those_of_the_equations():
    """The published 0.8 M of nanoGPT's net; every product counts, the full square of the attention too."""
    width, context, vocabulary = 128, 64, 65
    counts = {tie: sum(p.numel() for p in gpt((context,), 65, 65, bias=False, tie=tie).parameters()) for tie in (0, 1)}
    block = 12 * width**2 + 2 * width
    inside = 4 * block + (vocabulary + context) * width + width
    assert counts == {1: inside, 0: inside + vocabulary * width}
    assert counts[1] == 804_096
    embed, *blocks = measure(gpt((context,), 65, 65, bias=False))
    assert embed.flops == 0
    assert {b.flops for b in blocks} == {24 * context * width**2 + 4 * context**2 * width}
    longer = measure(gpt((2 * context,), 65, 65, bias=False))[1]
    assert longer.memory == 2 * blocks[0].memory, "the square of the attention is not kept"
    patch, first, *_ = measure(vit((3, 32, 32), 10, patch=4, width=64, layers=2))
    assert patch.flops == 2 * 64 * 64 * 3 * 4 * 4
    assert first.flops == 24 * 64 * 64**2 + 4 * 64**2 * 64


def test_weights_begin_as_those_of_gpt2():
    torch.manual_seed(0)
    model = gpt((64,), 65, 65, layers=8, width=256)
    for name, p in model.named_parameters():
        if p.dim() == 2:
            back = name.endswith(("attention.outputs.weight", "reduce.weight"))
            assert float(p.detach().std()) == pytest.approx(0.02 / 4 if back else 0.02, rel=0.03), name
        else:
            assert bool(
                (p == (1.0 if "norm" in name or "head" in name else 0.0)).all() if "weight" in name else (p == 0).all()
            )


# What a tied weight costs


def test_one_weight_at_both_ends_has_one_optimizer():
    model = of_text(tie=True)
    assert model.head[1].weight is model.units[0].token.weight
    with pytest.raises(UserError) as refused:
        learner_of(model, Backprop(), 2, Tokens())
    assert str(refused.value) == (
        "gpt shares units.0.token.weight between blocks 0 and 1, and a parameter has one optimizer: choose blocks=1, "
        "or weights that are not shared, such as model.tie=false"
    )


# The optimizer of GPT-2 and its kin


def nano_gpt_rate(step: int, steps: int, warm: int, floor: float) -> float:
    """nanoGPT's get_lr, with its warm-up from i / warm."""
    if step < warm:
        return step / warm
    ratio = (step - warm) / (steps - warm)
    return floor + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (1 - floor)


@pytest.mark.parametrize("options", [{}, {"bias": False, "tie": True}], ids=str)
def test_rate_decay_and_clipping_are_those_of_nano_gpt(options):
    more = {"decay_vectors": False, "floor": 0.1, "warmup": 0.05, "clip": 1.0}
    steps, optim = 40, AdamW(lr=1e-2, beta2=0.99, weight_decay=0.1, **more)
    model, x, y = of_text(**options), tokens(B, T), tokens(T, B).T
    learner = assemble(
        model, Backprop(), optim, model.cut(1), Setup(precision="fp64", task=Tokens(), total_steps=steps)
    )
    truth = copy.deepcopy(model)
    sorts: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for p in truth.parameters():
        sorts[p.dim() >= 2].append(p)
    groups = [{"params": sorts[True], "weight_decay": 0.1}, {"params": sorts[False], "weight_decay": 0.0}]
    theirs, norms = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.99), eps=1e-8), []
    for step in range(steps):
        for group in theirs.param_groups:
            group["lr"] = 1e-2 * nano_gpt_rate(step, steps, 2, 0.1)
        learner.step(x, y)
        theirs.zero_grad()
        F.cross_entropy(truth(x).flatten(0, 1), y.flatten()).backward()
        norms.append(nn.utils.clip_grad_norm_(truth.parameters(), 1.0).item())
        theirs.step()
    assert 0 < sum(norm > 1.0 for norm in norms) < steps, f"{norms}: some gradients are longer, and some are not"
    for p, q in zip(model.parameters(), truth.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-9, rtol=0)
    line = AdamW(schedule="linear", floor=0.25)
    assert [line.factor(p) for p in (0.0, 0.5, 1.0)] == [1.0, 0.625, 0.25]
    assert AdamW(weight_decay=0).unread().keys() >= {"decay_vectors"}
    assert "floor" in AdamW(schedule="constant").unread()


# Heads at every step

LOCAL: dict[str, Any] = {"objective": CrossEntropy()}
ANSWERING = {
    "dgl, linear": DGL(**LOCAL, auxiliary=Linear()),
    "dgl, mlp": DGL(**LOCAL, auxiliary=MLP(layers=1)),
    "dgl, transformer": DGL(**LOCAL, auxiliary=Transformer(layers=2, heads=2)),
    "loco": Overlapping(**LOCAL, auxiliary=Transformer(heads=2)),
    "deep_supervision": DeepSupervision(**LOCAL, auxiliary=Transformer(heads=2)),
    "solo, shared": SOLO(),
    "solo, random": SOLO(readout="random"),
    "forward_gradient": ForwardGradient(),
}
OTHERS = {"backprop": Backprop(), "fa": FeedbackAlignment(), "dfa": DFA(), "drtp": DRTP()}


@pytest.mark.parametrize("name", ANSWERING | OTHERS)
def test_no_head_sees_a_later_token(name):
    """After a step, too, in which heads that begin at zero have moved; two windows at once are two one by one."""
    model, x = of_text(layers=2), tokens(B, T)
    learner = learner_of(model, (ANSWERING | OTHERS)[name], "max", Tokens())
    learner.step(x, tokens(T, B).T)
    before = learner.predict(x)
    assert sum(z is not None for z in before) == (3 if name in ANSWERING else 1)
    for t in range(T):
        changed = x.clone()
        changed[:, t] = (changed[:, t] + 1) % V
        for z, other in zip(before, learner.predict(changed), strict=True):
            if z is not None:
                assert torch.equal(z[:, :t], other[:, :t])
                assert not torch.equal(z[:, t], other[:, t])
    for z, one in zip(before, learner.predict(x[:1]), strict=True):
        if z is not None:
            torch.testing.assert_close(z[:1], one, atol=1e-12, rtol=0)


def test_feedback_alignment_with_the_true_weights_is_backpropagation():
    """Attention has no weights of its own to replace; what is looked up and what is normalised keeps its gradient."""
    learners = [learner_of(of_text(), strategy, "max", Tokens()) for strategy in (FeedbackAlignment(), Backprop())]
    parts = [part for block in learners[0].blocks for part in (block.layers, block.head) if part is not None]
    twins = [m for part in parts for m in part.modules() if isinstance(m, FeedbackLayer)]
    assert len(twins) == 4 * LAYERS + 1
    for twin in twins:
        twin.feedback.copy_(twin.weight)
    for learner in learners:
        learner.step(tokens(B, T), tokens(T, B).T)
    for p, q in zip(learners[0].model.parameters(), learners[1].model.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-12, rtol=0)


def test_a_transformer_head_is_a_small_model():
    """Its blocks are those of gpt; asked once for a sample it has no mask."""
    torch.manual_seed(0)
    head = Transformer(layers=LAYERS, heads=HEADS).build_dense((T, WIDTH), V).double()
    names = {f"{k - 1}.": f"units.{k}." for k in range(1, LAYERS + 1)} | {f"{LAYERS}.": "head.0."}
    state = {}
    for name, p in head.named_parameters():
        place = name.partition(".")[0] + "."
        state[names.get(place, "out.") + name.removeprefix(place)] = p
    h = torch.randn(B, T, WIDTH, dtype=torch.float64)
    truth = linear(state, norm(state, layers(state, h, masked=True), "head.0"), "out")
    torch.testing.assert_close(head(h), truth, atol=1e-12, rtol=0)
    once = Transformer(layers=LAYERS, heads=HEADS).build((T, WIDTH), V).double()
    once.load_state_dict({k.replace(f"{LAYERS + 1}.", f"{LAYERS + 2}."): p for k, p in head.state_dict().items()})
    truth = linear(state, norm(state, layers(state, h, masked=False), "head.0").mean(1), "out")
    torch.testing.assert_close(once(h), truth, atol=1e-12, rtol=0)
    with pytest.raises(UserError, match="auxiliary=transformer reads sequences, but a block emits"):
        Transformer().build((3, 8, 8), V)
    with pytest.raises(UserError, match=r"the width of the sequence=10 is not divisible by auxiliary\.heads=4"):
        Transformer().build((3, 10), V)


# Runs

SETTINGS: dict[str, Any] = {
    **{"data": "text", "data.context": 16, "data.steps": 6, "batch_size": 4, "epochs": 2, "threads": 1},
    **{"model": "gpt", "model.width": 16, "model.heads": 2, "model.layers": 4, "model.dropout": 0.2, "quiet": True},
}
PIPELINED = {
    "backprop": {},
    "dgl": {"auxiliary": "transformer", "auxiliary.heads": 2},
    "loco": {"auxiliary": "linear"},
    "solo": {"strategy.every": 2, "strategy.lag": 4},
    "dfa": {},
    "forward_gradient": {},
}


@pytest.fixture
def text(tmp_path: Path) -> str:
    file = tmp_path / "text.txt"
    file.write_text("".join(chr(97 + (7 * i + i * i // 3) % 23) for i in range(3000)))
    return str(file)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "stages"), [*((strategy, 4) for strategy in PIPELINED), ("backprop", 2)])
def test_a_pipeline_of_a_transformer_ends_as_the_serial_run(strategy, stages, text, tmp_path):
    """With dropout, bit for bit."""
    settings = {**SETTINGS, **PIPELINED[strategy], "strategy": strategy, "blocks": 4, "data.file": text}
    one = locallearn.train(**settings, out=str(tmp_path / "serial"))
    runtime = {"runtime": "pipeline", "runtime.stages": stages}
    assert_same_run(one.run_dir, locallearn.train(**settings, **runtime, out=str(tmp_path / "stages")).run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("tie", [False, True])
def test_a_transformer_with_dropout_goes_on_to_the_same_bits(tie, text, tmp_path, monkeypatch):
    settings = {**SETTINGS, "strategy": "backprop", "blocks": 1, "model.tie": tie, "data.file": text}
    whole = locallearn.train(**settings, out=str(tmp_path / "whole"))
    learn, calls = Learner.learn, iter(range(12))

    def dying(self: Learner, *batch: Tensor) -> None:
        if next(calls) == 8:
            raise RuntimeError("the machine has had enough")
        return learn(self, *batch)

    monkeypatch.setattr(Learner, "learn", dying)
    with pytest.raises(RuntimeError, match="enough"):
        locallearn.train(**settings, out=str(tmp_path / "part"), **{"checkpoint.every": "3it"})
    monkeypatch.setattr(Learner, "learn", learn)
    (run,) = (tmp_path / "part").iterdir()
    assert_same_run(whole.run_dir, locallearn.resume(run, quiet=True).run_dir)
    x = tokens(3, 16)
    assert torch.equal(locallearn.load(whole.run_dir)(x), whole.model(x))


@pytest.mark.slow
def test_the_whole_test_text_is_asked_for_once(real_root):
    from locallearn.data.text import Shakespeare

    data = Shakespeare(root=str(real_root), validation=0.0).load(0, torch.device("cpu"))
    asked = [y for _, y in data.evaluation(data.test, 256)]
    assert sum(len(y) for y in asked) == 1743
    assert sum(int((y >= 0).sum()) for y in asked) == 111_539
