"""runtime=replay against hand-written loops, hand-worked buffers, the serial run, and itself resumed."""

from __future__ import annotations

import copy
import json
import math
import random
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import locallearn
from helpers.commands import SMALL, one_sentence, run
from helpers.nets import assert_same, tiny_batches, tiny_learner, tiny_model
from helpers.runs import assert_same_run, start, wait_for_steps, whole
from helpers.strategies import FILES, make
from locallearn.auxiliary import Linear
from locallearn.contract import Packet, Route, Strategy
from locallearn.engine import SGD
from locallearn.engine.gradients import strategy_gradients
from locallearn.errors import UserError
from locallearn.objectives import CrossEntropy
from locallearn.runs import checkpoint
from locallearn.runtime.replay import Buffer, ReplayStage, ticks
from locallearn.strategies.greedy import DGL
from locallearn.training.run import resume


def dgl() -> DGL:
    return DGL(objective=CrossEntropy(), auxiliary=Linear())


def replay_learner(buffer: int, model=None, strategy=None, slow=None, script=None, **options):
    """A learner under replay; `script` gives the ticks (block, acts) that follow each batch, instead of chance."""
    stage = partial(ReplayStage, buffer=buffer, slow=slow)
    learner = tiny_learner(strategy or dgl(), model, stage=stage, **options)
    if script is not None:
        learner.stage.ticks = lambda step: iter(script[step])
    return learner


def by_hand(learner, batches, buffer: int, script, rate) -> nn.ModuleList:
    """Algorithm 2 in plain PyTorch on copies of the learner's modules; returns the trained units."""
    units = nn.ModuleList(copy.deepcopy(block.layers) for block in learner.blocks)
    heads = [copy.deepcopy(b.head if b.last else b.auxiliary) for b in learner.blocks]
    heads = [h if isinstance(h, nn.Sequential) else h["classifier"] for h in heads]
    optimizers = [
        torch.optim.SGD([*unit.parameters(), *head.parameters()], lr=0.1, momentum=0.9, weight_decay=1e-3, fused=True)
        for unit, head in zip(units, heads, strict=True)
    ]
    waiting: list[list[dict]] = [[] for _ in units]

    def learn(k, x, y, lr):
        h = units[k](x)
        optimizers[k].zero_grad()
        F.cross_entropy(heads[k](h), y).backward()
        optimizers[k].param_groups[0]["lr"] = lr
        if k + 1 < len(units):
            waiting[k + 1].append({"x": h.detach(), "y": y, "uses": 0})
            waiting[k + 1] = waiting[k + 1][-buffer:]
        optimizers[k].step()

    for step, (x, y) in enumerate(batches):
        learn(0, x, y, rate(step))
        for k, acts in script[step]:
            if acts and waiting[k]:
                fewest = min(entry["uses"] for entry in waiting[k])
                entry = [e for e in waiting[k] if e["uses"] == fewest][-1]
                entry["uses"] += 1
                learn(k, entry["x"], entry["y"], rate(step))
    return units


@pytest.mark.parametrize("buffer", [1, 3])
def test_replay_is_the_hand_written_loop(buffer):
    """Random draws, slow blocks and a falling learning rate: the same bits in float64."""
    chance = random.Random(buffer)
    script = [[(chance.randrange(1, 4), chance.random() < 0.7) for _ in range(chance.randrange(8))] for _ in range(12)]
    optim = SGD(lr=0.1, momentum=0.9, weight_decay=1e-3, schedule="cosine")
    learner = replay_learner(buffer, script=script, optim=optim, total_steps=12)
    batches = tiny_batches(12)
    units = by_hand(learner, batches, buffer, script, lambda step: 0.05 * (1 + math.cos(math.pi * step / 12)))
    for x, y in batches:
        learner.learn(x, y)
    for block, unit in zip(learner.blocks, units, strict=True):
        for name, tensor in unit.state_dict().items():
            assert torch.allclose(block.layers.state_dict()[name], tensor, rtol=1e-12, atol=1e-14), name
    assert learner.stage.updates[0] == 12
    assert learner.stage.updates[1:] != [12, 12, 12]


def test_the_draws_of_the_stage_are_those_of_its_stream():
    """Without a script the loop follows `ticks`, a function of seed and step alone."""
    learner = replay_learner(2, slow={1: 1.5}, seed=7, total_steps=20)
    batches = tiny_batches(20)
    script = [list(learner.stage.ticks(step)) for step in range(20)]
    units = by_hand(learner, batches, 2, script, lambda step: 0.1)
    for x, y in batches:
        learner.learn(x, y)
    for block, unit in zip(learner.blocks, units, strict=True):
        for name, tensor in unit.state_dict().items():
            assert torch.allclose(block.layers.state_dict()[name], tensor, rtol=1e-12, atol=1e-14), name
    other = replay_learner(2, slow={1: 1.5}, seed=8, total_steps=20)
    assert script != [list(other.stage.ticks(step)) for step in range(20)]


def reads(strategy) -> bool:
    """Whether blocks read tensors of others, as they were at a step."""
    return type(strategy).reads is not Strategy.reads


@pytest.mark.parametrize(
    "name",
    sorted(n for n in FILES if make(n).route is Route.NONE and len(make(n).phases(4)) == 1 and not reads(make(n))),
)
def test_in_order_with_one_packet_it_is_the_serial_run(name):
    """Dropout, batch norm, momentum and the memory layout included, bit for bit."""
    batches, model = tiny_batches(6), tiny_model(dropout=0.2)
    script = [[(k, True) for k in (1, 2, 3)]] * 6
    replay = replay_learner(1, model, make(name), script=script, total_steps=6, channels_last=True)
    serial = tiny_learner(make(name), model, total_steps=6, channels_last=True)
    for x, y in batches:
        replay.learn(x, y)
        serial.learn(x, y)
    assert_same(replay.model, serial.model)
    for mine, theirs in zip(replay.blocks, serial.blocks, strict=True):
        assert mine.read().items() >= theirs.read().items()


def test_least_used_then_freshest_and_the_oldest_makes_room():
    buffer = Buffer(3)

    def push(name: str) -> str | None:
        dropped = buffer.push(Packet(name, None), 0)
        return None if dropped is None else dropped.packet.h

    def draw() -> str:
        return buffer.draw().packet.h

    assert buffer.draw() is None
    assert push("a") is None
    assert [draw(), draw()] == ["a", "a"]
    assert [push("b"), push("c")] == [None, None]
    assert [draw(), draw()] == ["c", "b"]  # a:2 b:1 c:1
    assert push("d") == "a"
    assert [draw(), draw(), draw()] == ["d", "d", "c"]  # b:1 c:2 d:2
    assert push("e") == "b"  # the oldest, though it was used least
    assert [draw(), draw(), draw()] == ["e", "e", "e"]  # c:2 d:2 e:3
    assert draw() == "d"


@pytest.mark.parametrize(("slow", "expected"), [({}, (1, 1, 1)), ({2: 1.25}, (1, 0.8, 1)), ({0: 2.0}, (2, 2, 2))])
def test_updates_per_batch_follow_the_slow_down(slow, expected):
    """Of blocks 1 to 3, for each batch of block 0: 1 without a slow-down, 1/f for a block slowed by f; a slow block 0
    leaves the others f ticks."""
    steps = 8000
    factors = [slow.get(k, 1.0) for k in range(4)]
    found = [tick for step in range(steps) for tick in ticks(99, step, factors)]
    for k, share in zip((1, 2, 3), expected, strict=True):
        # the number between two readings of block 0 is geometric with mean m: its variance is m (1 + m)
        error = math.sqrt(share * (1 + share) / steps)
        assert sum(acts for block, acts in found if block == k) / steps == pytest.approx(share, abs=4 * error)
    skipped = [acts for block, acts in found if block == 0]
    assert not any(skipped)
    assert len(skipped) / steps == pytest.approx(factors[0] - 1, abs=0.07)


def test_notes_are_staleness_uses_and_idle_ticks():
    script = [[(1, True), (2, False), (3, True)], [], [(1, True), (1, True), (1, True), (2, True)], []]
    learner = replay_learner(2, script=script, total_steps=4)
    for x, y in tiny_batches(4):
        learner.learn(x, y)
    one, two, three = (block.read() for block in learner.blocks[1:])
    # step 0 reads batch 0; step 2 has batches 1, 2 (0 was dropped after one use): reads 2, 1, 2; step 3 drops 1
    assert one["staleness"] == (0 + 0 + 1 + 0) / 4
    assert one["uses"] == (1 + 1) / 2
    assert one["idle"] == 0
    # block 1 sent four packets up, of batches 0, 2, 1, 2: two were dropped unused, the last one is read
    assert two["staleness"] == 0
    assert two["uses"] == 0
    assert two["idle"] == 1 / 2
    assert three["idle"] == 1
    assert "staleness" not in three
    assert learner.blocks[0].read()["idle"] == 0


def test_a_block_that_works_in_place_leaves_the_packet_alone():
    units = [nn.Conv2d(2, 2, 3, padding=1), nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(2, 2, 3, padding=1))]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    model = locallearn.models.BlockModel(units, head, image=(2, 6, 6), classes=3, name="in place")
    learner = replay_learner(1, model, blocks=2, script=[[], [(1, True)]], total_steps=2)
    (x, y), second = tiny_batches(2)
    learner.learn(x, y)
    with torch.no_grad():
        expected = learner.blocks[0].layers(second[0])
    learner.learn(*second)
    assert torch.equal(learner.state()["replay.1.0.h"], expected)
    assert (expected < 0).any()


@pytest.mark.parametrize("stop", [1, 6])
@pytest.mark.parametrize("buffer", [1, 4])
def test_resume_is_exact_with_any_number_of_packets(buffer, stop, tmp_path):
    def fresh():
        options = {"slow": {1: 1.5}, "channels_last": True, "total_steps": 14}
        return replay_learner(buffer, tiny_model(dropout=0.2), **options)

    batches = tiny_batches(14)
    through, first, second = fresh(), fresh(), fresh()
    for x, y in batches:
        through.learn(x, y)
    for x, y in batches[:stop]:
        first.learn(x, y)
    moment = {"epoch": 0, "offset": stop, "seconds": 1.0, "blocks": []}
    checkpoint.save(tmp_path, stop, first.state(), moment, keep=1)
    second.load_state(checkpoint.newest(tmp_path, print).tensors)
    for name, t in first.state().items():
        assert second.state()[name].stride() == t.stride(), f"{name}: another memory layout gives other last bits"
    second.step_count = stop
    for x, y in batches[stop:]:
        second.learn(x, y)
    expected, found = through.state(), second.state()
    assert found.keys() == expected.keys()
    assert any(name.startswith("replay.3.0.") for name in found)
    for name, t in expected.items():
        assert torch.equal(t, found[name]), name


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    more = ["strategy=dgl", "runtime=replay", "runtime.buffer=3", "runtime.slow={1: 1.5}"]
    reference = whole(tmp_path / "whole", *more)
    process = start(tmp_path / "killed", *more)
    folder = wait_for_steps(tmp_path / "killed", 35)
    process.kill()
    process.communicate()
    assert json.loads((folder / "status.json").read_text())["state"] == "running", "it was done before it was killed"
    serial = "serial", {"_target_": "locallearn.runtime.choice.Serial", "staleness": 0}
    with pytest.raises(UserError, match="goes on only under it"):
        resume(folder, [], quiet=True, runtime=serial)
    resume(folder, [], quiet=True)
    assert_same_run(reference, folder)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert {f"block/0{k}/{n}" for k in (1, 2, 3) for n in ("staleness", "uses", "idle")} <= last.keys()
    assert last["block/01/idle"] > 0


def test_a_checkpoint_of_another_runtime_or_buffer_is_refused():
    replay, serial = replay_learner(3, total_steps=9), tiny_learner(dgl(), total_steps=9)
    for x, y in tiny_batches(9):
        replay.learn(x, y)
        serial.learn(x, y)
    state = replay.state()
    before = {name: t.clone() for name, t in serial.state().items()}
    with pytest.raises(UserError, match=r"does not fit this run: replay\.0\.batches is not part"):
        serial.load_state(state)
    assert all(torch.equal(t, before[name]) for name, t in serial.state().items())
    with pytest.raises(UserError, match=r"replay\.updates is missing"):
        replay.load_state(before)
    with pytest.raises(UserError, match=r"replay\.1\.2\.h is missing"):
        replay.load_state({n: t for n, t in state.items() if n != "replay.1.2.h"})
    with pytest.raises(UserError, match=r"more packets than runtime\.buffer"):
        replay_learner(2, total_steps=9).load_state(state)


def test_looking_at_gradients_moves_nothing():
    """The alignment probe asks what each block would learn from one batch, in one step of the strategy."""
    replay, serial = replay_learner(2, total_steps=4), tiny_learner(dgl(), total_steps=4)
    for x, y in tiny_batches(3):
        replay.learn(x, y)
    serial.load_state({name: t for name, t in replay.state().items() if not name.startswith("replay.")})
    before = {name: t.clone() for name, t in replay.state().items()}
    x, y = tiny_batches(1, seed=5)[0]
    pairs = zip(strategy_gradients(replay, x, y), strategy_gradients(serial, x, y), strict=True)
    for mine, theirs in pairs:
        values = zip(mine.parameters.values(), theirs.parameters.values(), strict=True)
        assert all(torch.equal(a, b) for a, b in values)
    assert before.keys() == replay.state().keys()
    assert all(torch.equal(t, before[name]) for name, t in replay.state().items())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["strategy=backprop"], "backprop has route chain: choose strategy=dgl, or runtime=serial"),
        (["strategy=dni"], "dni has route neighbor"),
        (["strategy=greedy"], "Greedy trains one after the other"),
        (["micro_batches=2"], "but micro_batches=2: choose micro_batches=1"),
        (["runtime.buffer=0"], "runtime.buffer=0: must be a whole number of at least 1"),
        (["runtime.slow={1: 0.9}"], "runtime.slow.1=0.9: must be a number of at least 1"),
        (["runtime.slow={3: 1.2}"], "names block 3, but the model is cut into 2 blocks: choose from 0 to 1"),
        (["runtime.slow={1: fast}"], "runtime.slow"),
    ],
)
def test_what_cannot_be_replayed_is_refused_in_one_sentence(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*SMALL, "runtime=replay", *arguments, capsys=capsys)
    assert sentence in one_sentence(err)
    assert code == 2
    assert not list(tmp_path.iterdir()), "something was written"


def test_slow_blocks_from_python():
    learner = locallearn.build("dgl", "mlp", runtime="replay", blocks=3, **{"runtime.slow": {2: 1.5}})
    assert learner.stage.slow == [1.0, 1.0, 1.5]
