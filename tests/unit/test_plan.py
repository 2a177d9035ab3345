"""The simulator against closed forms and schedules drawn by hand; what is measured against modules of known cost."""

from __future__ import annotations

import random
import sys
import time
from typing import ClassVar

import pytest
import torch

from helpers.commands import SMALL, one_sentence, run
from helpers.nets import tiny_batches, tiny_learner, tiny_model
from locallearn.analysis.cost import SavedBytes
from locallearn.auxiliary import Linear
from locallearn.contract import Route
from locallearn.errors import UserError
from locallearn.objectives import CrossEntropy
from locallearn.plan.devices import QUEUE, stages
from locallearn.plan.link import GUESSED, LinkCost, link_of, measure_link
from locallearn.plan.measure import BlockCost, BlockTimes, Measured, Read, block_costs, block_times, measure
from locallearn.plan.options import PlanOptions
from locallearn.plan.schedules import divide, memory, predict, rows
from locallearn.plan.simulate import SCHEDULES, graphs, simulate
from locallearn.runtime.link import UNDER_WAY
from locallearn.strategies.backprop import Backprop
from locallearn.strategies.dni import DNI
from locallearn.strategies.greedy import DGL, Greedy
from locallearn.strategies.solo import SOLO

NO_TIMES = [BlockTimes(0.0, 0.0)] * 4
DGL_LINEAR = DGL(objective=CrossEntropy(), auxiliary=Linear())


def cost(forward=1.0, backward=2.0, up=0, down=0, held=0, peak=0, fixed=0) -> BlockCost:
    return BlockCost(BlockTimes(forward, backward), up, down, held, peak, fixed)


def alike(count, **numbers) -> list[list[BlockCost]]:
    """Stages of one block each."""
    return [[cost(**numbers)] for _ in range(count)]


def pieces(schedule, division, micro_batches=1, batches=2):
    """{(device, kind, item): (start, end)} over free links."""
    trace = simulate(schedule, stages(division, micro_batches, LinkCost(1e9, 0.0)), micro_batches, batches, keep=8)
    return {(p.device, p.kind[0], p.item): (p.start, p.end) for p in trace.pieces}


def readout(count, every, lag) -> list[Read]:
    """Every block reads a tensor of the last one."""
    return [Read(k, count - 1, every, lag, 1000) for k in range(count - 1)]


# --- published tensors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "every"), [(2, 1), (2, 5), (4, 1), (4, 3), (6, 10)])
def test_a_copy_without_lag_empties_the_pipeline(count, every):
    """The lowest stage begins a round when the last one has ended the one before: (S - 1) f + every (f + b)."""
    found = predict("none", alike(count), link=LinkCost(1e18, 0.0), reads=readout(count, every, 0))
    assert found.step_seconds == pytest.approx(((count - 1) * 1 + every * 3) / every)
    arrives = (count - 1) * 0.25  # a copy passes each stage, as the packets of the first step do
    found = predict("none", alike(count), link=LinkCost(1e18, 0.25), reads=readout(count, every, 0))
    assert found.step_seconds == pytest.approx(((count - 1) * 1.25 + arrives + every * 3) / every)


@pytest.mark.parametrize("every", [1, 7])
def test_a_copy_that_is_as_late_as_there_are_blocks_above_holds_up_nobody(every):
    for count in (2, 4):
        found = predict("none", alike(count), link=LinkCost(1e18, 0.0), reads=readout(count, every, count - 1))
        assert found.step_seconds == pytest.approx(3.0)


def test_of_blocks_in_one_stage_none_waits_for_a_copy():
    reads = readout(4, 1, 0)
    together = predict("none", [[cost()] * 4], link=LinkCost(1e18, 0.0), reads=reads)
    assert together.step_seconds == pytest.approx(12.0)
    two = predict("none", [[cost()] * 2] * 2, link=LinkCost(1e18, 0.0), reads=reads)
    assert two.step_seconds == pytest.approx(2 + 6)


def test_what_blocks_read_is_measured():
    solo = SOLO(every=3, lag=1)
    learner = tiny_learner(solo, tiny_model())
    (found,) = measure({"solo": learner}, 8, 1, 8, 1, 1)
    weight = [m for m in learner.model.head.modules() if isinstance(m, torch.nn.Linear)][-1].weight
    size = weight.numel() * weight.element_size()
    top = len(learner.blocks) - 1
    assert list(found.reads) == [Read(k, top, 3, 1, size) for k in range(top)]
    options = PlanOptions(stages=2, depth=1)
    table = rows(options, LinkCost(1e18, 0.0), found, found, 4)
    (own,) = [row for row in table if row.own]
    free = predict("none", own.division, link=LinkCost(1e18, 0.0)).step_seconds
    assert own.reads == found.reads
    assert own.prediction.step_seconds >= free * (1 - 1e-9)
    twice = rows(PlanOptions(stages=2, depth=2), LinkCost(1e18, 0.0), found, found, 4)
    (own,) = [row for row in twice if row.own]
    assert {(read.block, read.source) for read in own.reads} == {
        (copy * (top + 1) + k, 2 * top + 1) for copy in range(2) for k in range(top)
    }


# --- closed forms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "micro"), [(1, 1), (2, 4), (4, 4), (8, 3), (5, 32), (300, 200)])
@pytest.mark.parametrize("schedule", ["chain", "1f1b"])
def test_the_bubble_of_gpipe_and_1f1b(schedule, count, micro):
    found = predict(schedule, alike(count), micro, link=LinkCost(1e10, 0.0))
    assert found.bubble == pytest.approx((count - 1) / (micro + count - 1))
    assert found.step_seconds == pytest.approx(3 * (micro + count - 1) / micro)


@pytest.mark.parametrize(("count", "micro"), [(2, 4), (4, 2), (4, 8), (6, 6)])
@pytest.mark.parametrize("schedule", ["chain", "1f1b", "broadcast", "none", "delayed"])
def test_graphs_alive_are_those_of_the_simulated_run(schedule, count, micro):
    micro = 1 if schedule in ("none", "delayed") else micro
    run = pieces(schedule, alike(count), micro, batches=2 * count + 2)
    for device, promised in enumerate(graphs(schedule, count, micro)):
        own = sorted((start, kind) for (d, kind, _), (start, _) in run.items() if d == device)
        alive = most = 0
        for _, kind in own:
            alive += 1 if kind == "f" else 0
            most = max(most, alive)
            alive -= 1 if kind == "b" else 0
        assert most == promised
    if schedule == "1f1b":
        assert graphs(schedule, count, micro)[0] == min(count, micro)  # and not the micro-batches, as under GPipe


@pytest.mark.parametrize("seed", range(5))
def test_a_strategy_without_feedback_runs_at_its_slowest_stage_and_loses_only_the_fill(seed):
    draw = random.Random(seed)
    division = [[cost(draw.uniform(0.1, 2), draw.uniform(0.1, 2))] for _ in range(6)]
    times = [blocks[0].times for blocks in division]
    trace = simulate("none", stages(division, 1, LinkCost(1e9, 0.5)), batches=40)
    assert trace.step_seconds == pytest.approx(max(t.total for t in times))
    assert trace.done[0] >= sum(t.forward for t in times) + 5 * 0.5 + times[-1].backward - 1e-9
    found = predict("none", division, link=LinkCost(1e10, 0.0))
    assert found.bubble == pytest.approx(1 - sum(t.total for t in times) / (6 * max(t.total for t in times)))


def test_no_stage_runs_further_ahead_than_the_queue_lets_it():
    assert QUEUE == UNDER_WAY, "what a link lets"
    run = pieces("none", [[cost(0.1, 0.1)], [cost(1, 1)]], batches=20)
    for item in range(QUEUE, 20):
        assert run[0, "f", item][0] >= run[1, "f", item - QUEUE][0]
    assert run[0, "f", 15][0] == pytest.approx(run[1, "f", 15 - QUEUE][0])


@pytest.mark.parametrize("seed", range(5))
def test_delayed_gradients_run_at_the_mean_of_the_worst_stretch_of_stages(seed):
    """A gradient that is one step late at each boundary: going up i..j and down again takes j - i + 1 steps."""
    draw = random.Random(seed)
    division = [[cost(draw.uniform(0.1, 2), draw.uniform(0.1, 2))] for _ in range(5)]
    work = [blocks[0].times.total for blocks in division]
    for wire in (0.0, 0.3, 2.0):
        worst = max((sum(work[i : j + 1]) + 2 * wire * (j - i)) / (j - i + 1) for i in range(5) for j in range(i, 5))
        trace = simulate("delayed", stages(division, 1, LinkCost(1e9, wire)), batches=400)
        assert trace.step_seconds == pytest.approx(worst, rel=1e-2)
    assert predict("delayed", alike(7), link=LinkCost(1e10, 0.0)).bubble == pytest.approx(0)


def test_naive_model_parallelism_gains_nothing_and_pays_for_every_message():
    division = alike(4, up=3_000_000_000, down=1_000_000_000)
    assert predict("chain", division, link=LinkCost(1e18, 0.0)).step_seconds == pytest.approx(12)
    assert predict("chain", division, link=LinkCost(1e9, 0.25)).step_seconds == pytest.approx(12 + 3 * (3 + 1 + 0.5))


def test_a_slow_link_stops_a_chain_and_only_delays_a_stream():
    division = alike(4, up=1000, down=1000)
    assert predict("none", division, link=LinkCost(1e10, 9.0)).step_seconds == pytest.approx(3)
    # all that may be under way is
    assert predict("none", division, link=LinkCost(1e10, 1e6)).step_seconds == pytest.approx(
        1e6 / QUEUE, rel=1e-5
    )  # all under way
    assert 12 / predict("chain", division, link=LinkCost(1e10, 1e6)).step_seconds == pytest.approx(0, abs=1e-5)
    assert 12 / predict("1f1b", division, 4, link=LinkCost(1e10, 1e6)).step_seconds == pytest.approx(0, abs=1e-5)
    # one link carries one message at a time
    assert predict("none", division, link=LinkCost(100.0, 20e-6)).step_seconds == pytest.approx(10)


def test_thousands_of_devices():
    assert predict("none", alike(4096), link=LinkCost(1e10, 1.0)).step_seconds == pytest.approx(3)
    assert predict("chain", alike(4096), 8, link=LinkCost(1e10, 0.0)).bubble == pytest.approx(4095 / 4103)


# --- drawn by hand: forward 1, 2, 1 and backward 2, 1, 3 on three devices --------------------------------------------

UNEVEN = [[cost(1, 2)], [cost(2, 1)], [cost(1, 3)]]
TWICE = [[cost(2, 4)], [cost(4, 2)], [cost(2, 6)]]  # the same for each of two micro-batches
UP = {(0, "f", 0): (0, 1), (0, "f", 1): (1, 2), (1, "f", 0): (1, 3), (1, "f", 1): (3, 5), (2, "f", 0): (3, 4)}
DRAWN = {
    "chain": UP
    | {(2, "f", 1): (5, 6), (2, "b", 0): (6, 9), (2, "b", 1): (9, 12), (1, "b", 0): (9, 10), (1, "b", 1): (12, 13)}
    | {(0, "b", 0): (10, 12), (0, "b", 1): (13, 15), (0, "f", 2): (15, 16)},
    "1f1b": UP
    | {(2, "b", 0): (4, 7), (2, "f", 1): (7, 8), (2, "b", 1): (8, 11), (1, "b", 0): (7, 8), (1, "b", 1): (11, 12)}
    | {(0, "b", 0): (8, 10), (0, "b", 1): (12, 14), (0, "f", 2): (14, 15)},
    "broadcast": UP
    | {(2, "f", 1): (5, 6), (2, "b", 0): (6, 9), (2, "b", 1): (9, 12), (1, "b", 0): (9, 10), (0, "b", 0): (9, 11)}
    | {(1, "b", 1): (12, 13), (0, "b", 1): (12, 14), (0, "f", 2): (14, 15)},
    "none": {(0, "f", 0): (0, 1), (0, "b", 0): (1, 3), (0, "f", 1): (3, 4), (1, "f", 0): (1, 3), (1, "b", 0): (3, 4)}
    | {(1, "f", 1): (4, 6), (2, "f", 0): (3, 4), (2, "b", 0): (4, 7), (2, "f", 1): (7, 8), (2, "b", 1): (8, 11)},
    "neighbor": {(0, "f", 0): (0, 1), (1, "f", 0): (1, 3), (0, "b", 0): (3, 5), (0, "f", 1): (5, 6)}
    | {(2, "f", 0): (3, 4), (2, "b", 0): (4, 7), (1, "b", 0): (6, 7), (1, "f", 1): (7, 9), (2, "f", 1): (9, 10)},
    "delayed": {(0, "f", 0): (0, 1), (0, "f", 1): (1, 2), (0, "f", 2): (2, 3), (1, "f", 1): (3, 5), (2, "b", 0): (4, 7)}
    | {(1, "b", 0): (7, 8), (0, "b", 0): (8, 10), (2, "f", 1): (7, 8), (2, "b", 1): (8, 11), (1, "f", 2): (8, 10)}
    | {(1, "b", 1): (11, 12), (0, "f", 3): (10, 11), (0, "b", 1): (12, 14)},
    "rounds": {(0, "f", 0): (0, 1), (1, "f", 0): (1, 3), (2, "f", 0): (3, 4), (0, "b", 0): (3, 5), (1, "b", 0): (4, 5)}
    | {(2, "b", 0): (4, 7), (0, "f", 1): (5, 6), (1, "f", 1): (6, 8), (2, "f", 1): (8, 9)},
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_drawn_by_hand(schedule):
    divided = schedule in ("chain", "1f1b", "broadcast")
    found = pieces(schedule, TWICE if divided else UNEVEN, 2 if divided else 1, batches=2 if divided else 4)
    assert {key: found[key] for key in DRAWN[schedule]} == DRAWN[schedule]


@pytest.mark.parametrize("seed", range(4))
def test_rounds_wait_for_both_neighbours(seed):
    """Against the rule itself: a round begins when the own one before and those of both neighbours are there."""
    draw = random.Random(seed)
    count, exchanges, up, down, latency = 4, 5, 0.3, 0.2, 0.05
    division = [[cost(draw.uniform(0.1, 2), draw.uniform(0.1, 2), up=300, down=200)] for _ in range(count)]
    times = [blocks[0].times for blocks in division]
    free = [0.0] * count
    for _ in range(2):
        arrived, ended = 0.0, []
        for k in range(count):
            free[k] = max(free[k], arrived) + times[k].forward
            arrived, ended = free[k] + up + latency, [*ended, free[k]]
        for number in range(exchanges):
            above = [ended[k + 1] + down + latency if k + 1 < count else 0.0 for k in range(count)]
            below = [ended[k - 1] + up + latency if k and number else 0.0 for k in range(count)]
            ended = [max(free[k], above[k], below[k]) + times[k].backward / exchanges for k in range(count)]
            free = ended
    trace = simulate("rounds", stages(division, 1, LinkCost(1000, latency), exchanges), batches=2)
    assert trace.done[-1] == pytest.approx(max(free))


def test_blocks_that_share_a_stage_answer_as_soon_as_the_first_has_begun():
    """Two stages of two blocks under route NEIGHBOR, a second each half, drawn by hand: both are always busy."""
    trace = simulate("neighbor", stages([[cost(1, 1)] * 2] * 2, 1, LinkCost(1e9, 0.0)), batches=10, keep=8)
    upper = [(p.kind[0], p.start, p.end) for p in trace.pieces if p.device == 1][:3]
    assert upper == [("f", 2, 3), ("f", 3, 4), ("b", 4, 6)]
    lower = [(p.kind[0], p.start, p.end) for p in trace.pieces if p.device == 0][:7]
    assert lower == [("f", 0, 1), ("f", 1, 2), ("b", 2, 3), ("f", 3, 4), ("b", 4, 5), ("f", 5, 6), ("b", 6, 7)]
    assert trace.step_seconds == 4


# --- memory and division --------------------------------------------------------------------------------------------


def test_memory_of_each_stage():
    blocks = [cost(up=5, held=100, peak=110, fixed=1000), cost(up=5, held=40, peak=60, fixed=2000)]
    division = [blocks, blocks, blocks]
    assert memory("none", division) == [3110, 3110 + 5 * QUEUE, 3110 + 5 * QUEUE]
    assert memory("chain", division, 4) == [3000 + 140 + 20 // 4] * 3
    assert memory("1f1b", division, 4) == [3000 + (3 * 140 + 20) // 4, 3000 + (2 * 140 + 20) // 4, 3000 + 160 // 4]
    # of block k of 6 the graphs of 6 - k batches
    assert memory("delayed", division)[0] == 3000 + 6 * 100 + 5 * 40 + 20
    assert memory("delayed", division)[2] == 3000 + 2 * 100 + 1 * 40 + 20


def test_copies_of_a_model_are_divided_alike():
    costs = [cost(3, 0, up=7), cost(1, 0, up=8, down=7), cost(2, 0, up=9, down=8)]
    division = divide(costs, 4, depth=2)
    assert [[b.times.forward for b in blocks] for blocks in division] == [[3], [1, 2], [3], [1, 2]]
    assert [blocks[0].down for blocks in division] == [0, 7, 9, 7]  # the second copy answers the first


# --- measuring ------------------------------------------------------------------------------------------------------


class Takes(torch.nn.Module):
    """Moves the clock on, in proportion to the batch but for a constant."""

    clock: ClassVar[list[float]] = [0.0]  # shared by copies

    def __init__(self, fixed: float, each: float) -> None:
        super().__init__()
        self.fixed, self.each = fixed, each

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.clock[0] += self.fixed + self.each * len(x)
        return x


def test_times_are_those_of_the_blocks(monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(time, "perf_counter", lambda: Takes.clock[0])
    model.units[2] = torch.nn.Sequential(model.units[2], Takes(0.01, 0.002))
    learner = tiny_learner(DGL_LINEAR, model)
    times = block_times(learner, 8)
    assert times[2].forward == pytest.approx(0.026)
    assert all(t.total == 0 for k, t in enumerate(times) if k != 2)
    assert times[2].backward == 0
    # never run at 64: from 8 and 16 by a straight line
    assert block_times(learner, 64)[2].forward == pytest.approx(0.01 + 64 * 0.002)
    # in four micro-batches the constant is paid four times
    assert block_times(learner, 8, micro_batches=4)[2].forward == pytest.approx(4 * 0.01 + 8 * 0.002)


@pytest.mark.parametrize(
    "strategy", [Backprop(), DGL_LINEAR, DNI(), Greedy(objective=CrossEntropy(), auxiliary=Linear())]
)
def test_measuring_leaves_the_learner_as_it_was(strategy):
    learner = tiny_learner(strategy, tiny_model(dropout=0.2), total_steps=8)
    for x, y in tiny_batches(2):
        learner.learn(x, y)
    before = {name: t.clone() for name, t in learner.state().items()}
    running = [block.running() for block in learner.blocks]
    modes = [m.training for m in learner.model.modules()]
    facts = (learner.step_count, learner.stage.strategy, learner.stage.micro_batches, torch.get_rng_state().tolist())
    assert all(t.total > 0 for t in block_times(learner, 8, repeats=1))
    block_costs(learner, 8, NO_TIMES)
    after = learner.state()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], t) for name, t in before.items())
    assert running == [block.running() for block in learner.blocks]
    assert modes == [m.training for m in learner.model.modules()]
    now = (learner.step_count, learner.stage.strategy, learner.stage.micro_batches, torch.get_rng_state().tolist())
    assert now == facts
    assert all(
        group["base_lr"] > 0 for b in learner.blocks for o in b.optimizers.values() if o for group in o.param_groups
    )


def test_bytes_are_those_of_a_step():
    x, y = tiny_batches(1)[0]
    dgl, backprop = tiny_learner(DGL_LINEAR), tiny_learner(Backprop())
    peaks = {}
    for learner in (dgl, backprop):
        with SavedBytes(p for _, p in learner.parameters()) as saved:
            learner.learn(x, y)
        peaks[learner] = saved.peak
    local, global_ = block_costs(dgl, 8, NO_TIMES), block_costs(backprop, 8, NO_TIMES)
    assert max(c.peak for c in local) == peaks[dgl]
    # what a block emits and the next one reads is saved once in one process, and at both devices of a pipeline
    assert peaks[backprop] <= sum(c.held for c in global_) <= peaks[backprop] + sum(c.up for c in global_)
    widths = [4, 5, 3, 6]
    sizes = [8 * w * 36 * 8 for w in widths]  # float64 maps of 6 x 6, and a batch of 8
    assert [c.up for c in local] == [s + 8 * 8 for s in sizes]  # with the labels
    assert [c.down for c in local] == [0] * 4
    assert [c.down for c in global_] == [0, *sizes[:-1]]
    assert [c.up for c in block_costs(dgl, 80, NO_TIMES)] == [10 * c.up for c in local]
    # block 0 of backprop: 2 x 4 x 9 + 4 weights, 8 of batch norm, each with gradient and momentum; statistics
    assert global_[0].fixed == 3 * 8 * (72 + 4 + 8) + 8 * 8 + 8


# --- messages and the optimizer -------------------------------------------------------------------------------------


def test_both_ends_spend_time_on_a_message():
    """Two stages of 1 s forward and 2 s backward; a message of 100 bytes costs each end 1.5 s, and arrives at once."""
    busy = LinkCost(bandwidth=float("inf"), latency=0.0, call=0.5, copying=100.0)
    local, chained = [[cost(up=100)]] * 2, [[cost(up=100, down=100)]] * 2
    assert predict("none", local, link=busy).step_seconds == pytest.approx(3 + 1.5)  # each has one end of one message
    both = 2 * 1.5 + 2 * 1.5  # up and down, nobody works meanwhile
    assert predict("chain", chained, link=busy).step_seconds == pytest.approx(6 + both)
    assert predict("chain", chained, link=busy).bubble == pytest.approx(0.5)
    divided = predict("chain", [[cost(up=0, down=0)]] * 2, 2, link=busy)
    assert divided.step_seconds == pytest.approx(3 * 3 / 2), "no bytes, no message"


def test_the_last_micro_batch_has_the_update():
    """Of GPipe with two stages and two micro-batches: the upper stage begins its last backward half at 3 x 0.5, the
    lower one waits for it, and then both have 4 s of optimizer, one after the other."""
    blocks = [[BlockCost(BlockTimes(1.0, 1.0, update=4.0), 0, 0, 0, 0, 0)]] * 2
    found = predict("chain", blocks, 2, link=LinkCost(1e10, 0.0))
    assert found.step_seconds == pytest.approx(1.5 + 1.0 + 4.0 + 0.5 + 4.0)
    assert predict("none", blocks, link=LinkCost(1e10, 0.0)).step_seconds == pytest.approx(6.0)


def test_the_update_is_what_the_last_micro_batch_takes_longer(monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(time, "perf_counter", lambda: Takes.clock[0])
    learner = tiny_learner(Backprop(), model)

    def slow_step(optimizer):
        Takes.clock[0] += 0.25

    monkeypatch.setattr("locallearn.engine.block.take_step", slow_step)
    times = block_times(learner, 8, micro_batches=4)
    assert [t.update for t in times] == pytest.approx([0.25] * 4)
    assert [t.backward for t in times] == pytest.approx([0.0] * 4)
    assert [t.update for t in block_times(learner, 64, micro_batches=4)] == pytest.approx([0.25] * 4), "not scaled"


@pytest.mark.slow
def test_the_link_of_this_machine():
    link = measure_link()
    assert 0 < link.call < 0.1
    assert 1e8 < link.copying < 1e12
    assert link.spent(2**24) > link.spent(2**12) > link.spent(0) == 0
    assert "measured between two processes here" in str(link)


def test_a_link_that_is_given(monkeypatch):
    cpu = torch.device("cpu")
    assert link_of(2.0, None, cpu) == LinkCost(2e9, 20e-6)
    assert link_of(None, 0.0, cpu) == LinkCost(10e9, 0.0)
    assert link_of(None, None, torch.device("cuda")) == GUESSED
    assert str(link_of(2.0, 5.0, cpu)) == "5 us + bytes / 2 GB/s and costs the devices nothing"


# --- the table and the command --------------------------------------------------------------------------------------


def test_the_table_has_every_schedule():
    whole = [cost(up=100, held=10, peak=12, fixed=100)] * 4
    backprop = Measured("backprop", Route.CHAIN, [c._replace(down=100) for c in whole], whole)
    table = rows(
        PlanOptions(stages=4, micro_batches=4),
        LinkCost(1e10, 0.0),
        Measured("dgl", Route.NONE, whole, whole),
        backprop,
        40,
    )
    speed = {row.label: row.speed_up for row in table if row.schedule}
    expected = {"model parallel": 1, "GPipe, M=4": 16 / 7, "1F1B, M=4": 16 / 7, "delayed gradients": 4, "route none": 4}
    assert {label: speed[label] for label in expected} == pytest.approx(expected, rel=1e-6)
    assert [row.label for row in table if row.own] == ["route none"]
    assert {"route neighbor", "route broadcast, M=4"} <= speed.keys()


def test_replicas_share_the_batch_and_wait_for_their_sums():
    """Each of three replicas takes a third of 4 x 3 s and sums 4 x 50 bytes, of which 4/3 travel at 100 bytes/s."""
    share = [BlockCost(BlockTimes(0.5, 0.5), 0, 0, 0, 0, 0, gradients=50)] * 4
    both = [Measured(name, Route.NONE, share, share) for name in ("dgl", "backprop")]
    alone = {"dgl": 12.0, "backprop": 9.0}
    table = rows(PlanOptions(stages=1, replicas=3), LinkCost(100.0, 0.0), *both, 40, alone)
    (none,) = [row for row in table if row.own]
    assert none.prediction.step_seconds == pytest.approx(4 * (1 + 50 * 4 / 3 / 100))
    assert none.speed_up == pytest.approx(12 / none.prediction.step_seconds)
    assert none.over_backprop == pytest.approx(9 / none.prediction.step_seconds)


SETTINGS = [*SMALL, "model.width=16", "model.depth=3", "batch_size=32"]


@pytest.mark.slow
def test_plan_prints_a_table_and_draws_it(capsys, tmp_path):
    for name in ("a.svg", "folder/b.png"):
        code, out, err = run("plan", *SETTINGS, "stages=3", "bandwidth=1", f"picture={tmp_path / name}", capsys=capsys)
        assert code == 0, err
        assert (tmp_path / name).stat().st_size > 10_000
    assert out.startswith("mlp in 4 blocks on 3 devices, batch 32") or out.startswith("mlp in 3 blocks on 3 devices")
    lines = out.splitlines()
    assert sum(line.startswith("*  route none") for line in lines) == 1
    for word in ("one device", "model parallel", "GPipe, M=4", "1F1B, M=4", "delayed gradients", "route neighbor"):
        assert any(word in line for line in lines)
    code, out, _ = run("plan", *SETTINGS, "stages=30", "depth=10", "strategy=backprop", capsys=capsys)
    assert code == 0
    assert out.startswith("10 x mlp")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["stage=3"], "unknown option stage: did you mean 'stages'?"),
        (["stages=two"], "stages=two: must be a whole number"),
        (["stages=9"], "depth=3"),
        (["stages=7", "depth=2"], "choose a multiple of 2"),
        (["stages=3", "blocks=2"], "choose blocks=3"),
        (["bandwidth=0"], "must be a number above 0"),
        (["picture=plan.pdf"], "must end in .svg or .png"),
        (["micro_batches=5"], "does not divide a batch of 32"),
        (["replicas=3"], "replicas=3 does not divide a batch of 32"),
        (["replicas=2", "micro_batches=32"], "micro_batches=32 does not divide a batch of 16"),
        (["strategy=greedy"], "trains its blocks one after the other, in no pipeline"),
        (["stages=5000", "depth=5000"], "must be a whole number from 1 to 4096"),
        (["modell=vgg16"], "did you mean 'model'?"),
        (["runtime.replicas=2"], "set stages=, replicas= or micro_batches="),
    ],
)
def test_what_a_plan_refuses(words, expected, capsys):
    code, _, err = run("plan", *SETTINGS, *words, capsys=capsys)
    assert code == 2
    assert expected in one_sentence(err)


def test_a_picture_without_matplotlib(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run("plan", *SETTINGS, "picture=plan.svg", capsys=capsys)
    assert code == 2
    assert "pip install matplotlib" in one_sentence(err)


def test_options_are_taken_out_of_the_settings():
    options, rest = PlanOptions.parse(["model=vgg16", "stages=8", "latency=1.5", "optim.lr=1"])
    assert options == PlanOptions(stages=8, latency=1.5)
    assert rest == ["model=vgg16", "optim.lr=1"]
    with pytest.raises(UserError, match="micro_batches=0: must be a whole number from 1 to 4096"):
        PlanOptions(micro_batches=0)
