"""What two processes send each other arrives as it was, on every carrier; and one of them is killed."""

from __future__ import annotations

import socket
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from selectors import DefaultSelector

import pytest
import torch

from helpers.marks import slow
from helpers.wires import CPU, DelayedQueues, run
from locallearn.errors import UserError
from locallearn.runtime import Pipeline
from locallearn.runtime.wire.carriers import Ring
from locallearn.runtime.wire.lanes import Courier
from locallearn.runtime.wire.line import SocketLine
from locallearn.runtime.wire.wire import Wire

WIRES = {"ring": ("ring", False), "gloo": ("gloo", False), "gloo-apart": ("auto", True)}
FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["pytest", "locallearn.runtime.link"])  # it does not find tests/helpers


def two(tmp_path: Path, what: str, carrier: str, *more: str) -> list[int | None]:
    """The exit codes of two neighbours."""
    wire, apart = WIRES[carrier]
    about = (str(tmp_path), what, wire, apart, *more)
    stages = [FORKS.Process(target=run, args=(rank, *about)) for rank in range(2)]
    try:
        for stage in stages:
            stage.start()
        for stage in stages:
            stage.join(60)
        return [stage.exitcode for stage in stages]
    finally:
        for stage in stages:
            stage.kill()


@pytest.mark.parametrize(
    ("what", "carrier"),
    [
        ("echo", "ring"),
        *(slow("echo", carrier) for carrier in WIRES if carrier != "ring"),
        *(slow("both_ways", carrier) for carrier in ("ring", "gloo")),
    ],
)
def test_what_is_sent_arrives(what, carrier, tmp_path):
    assert two(tmp_path, what, carrier) == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("waits", "carrier"), [*(("get", carrier) for carrier in WIRES), ("put", "ring"), ("put", "gloo")]
)
@pytest.mark.fault("F13")
def test_the_end_of_a_neighbour_is_noticed_within_a_second(waits, carrier, tmp_path):
    assert two(tmp_path, "killed", carrier, waits) == [0, -9]


def test_what_cannot_carry_messages_is_refused():
    hosts = ["a", "a", "b", "b"]
    assert Pipeline(stages=4).wires(hosts, 0) == ["ring", "gloo", "ring"]
    assert Pipeline(stages=2, replicas=2).wires(hosts, 0) == ["gloo", "gloo"]
    assert Pipeline(stages=4, wire="ring").wires(["a"] * 4, 0) == ["ring"] * 3
    assert Pipeline(stages=4, wire="gloo").wires(["a"] * 4, 0) == ["gloo"] * 3
    assert Pipeline(stages=4, wire="nccl").wires(hosts, 2) == ["nccl"] * 3
    assert Pipeline(stages=1, replicas=4).wires(hosts, 0) == []
    with pytest.raises(UserError, match="neighbouring stages are on two machines: choose auto or gloo"):
        Pipeline(stages=4, wire="ring").wires(hosts, 0)
    for gpus, have in ((0, "no GPU:"), (1, "1 GPU:"), (3, "3 GPUs:")):
        with pytest.raises(UserError, match=f"one machine has 4 processes on {have} choose auto"):
            Pipeline(stages=4, wire="nccl").wires(["a"] * 4, gpus)


def stale(seed: int, fault: str) -> int:
    """Of 12 messages that are computed, sent and read while the host runs ahead, how many arrive with other numbers."""
    below, above = (DelayedQueues(2 * seed + own, fault, own) for own in range(2))
    served, ends = DefaultSelector(), socket.socketpair()
    lines = [SocketLine(end, "the other end") for end in ends]
    wires = [
        Wire(line, Ring(line, CPU), Courier(queues.queues), served, 2, CPU, None)
        for line, queues in zip(lines, (below, above), strict=True)
    ]
    wrong: list[int] = []
    for i in range(12):
        sent = torch.zeros(50)
        below.computing.run(partial(sent.fill_, i))
        wires[0].put((sent,))
        _, (found,) = wires[1].get()
        above.computing.run(lambda found=found, i=i: wrong.append(i) if not (found == i).all() else None)
    for wire in wires:
        wire.begin_closing()
    for wire in wires:
        wire.close()
    above.computing.mark().synchronize()
    for queues in (below, above):
        queues.end()
    return len(wrong)


SHARED = ["0 sending deaf", "0 sending hasty", "1 computing hasty"]
"""Of the lower or the upper one: copied in before it is computed; told of before it is copied in; the slot given back
before it is read."""
BETWEEN = ["0 sending deaf", "1 computing deaf", "1 receiving deaf"]
"""Copied in before it is computed; read before it has arrived; received into a slot before that is read."""


@pytest.mark.parametrize("fault", ["", *SHARED])
def test_a_host_that_runs_ahead_of_its_device_shares_what_the_device_computes(fault):
    """Nothing is stale in any order in which the device may do it; and it shows where one of the waits is missing."""
    found = sum(stale(seed, fault) for seed in range(20))
    assert found > 0 if fault else found == 0


@pytest.mark.parametrize("fault", ["", *BETWEEN])
def test_devices_that_send_to_each_other_wait_for_each_other(fault, tmp_path):
    """The carrier and the groups of NCCL, by gloo and in queues that work after random pauses."""
    assert two(tmp_path, "queued", "ring", fault) == [0, 0]
