"""What two processes send each other arrives as it was, on every carrier; and one of them is killed."""

from __future__ import annotations

import queue
import random
import socket
import threading
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from selectors import DefaultSelector

import pytest
import torch

from helpers.wires import CPU, run
from locallearn.errors import UserError
from locallearn.runtime import Pipeline
from locallearn.runtime.wire.carriers import Ring
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


@pytest.mark.parametrize("carrier", WIRES)
@pytest.mark.parametrize("what", ["echo", "both_ways"])
def test_what_is_sent_arrives(what, carrier, tmp_path):
    assert two(tmp_path, what, carrier) == [0, 0]


@pytest.mark.parametrize("carrier", WIRES)
@pytest.mark.parametrize("waits", ["get", "put"])
@pytest.mark.fault("F13")
def test_the_end_of_a_neighbour_is_noticed_within_a_second(waits, carrier, tmp_path):
    assert two(tmp_path, "killed", carrier, waits) == [0, -9]


def test_shared_memory_between_two_machines_is_refused():
    hosts = ["a", "a", "b", "b"]
    assert Pipeline(stages=4).wires(hosts) == ["ring", "gloo", "ring"]
    assert Pipeline(stages=2, replicas=2).wires(hosts) == ["gloo", "gloo"]
    assert Pipeline(stages=4, wire="ring").wires(["a"] * 4) == ["ring"] * 3
    assert Pipeline(stages=4, wire="gloo").wires(["a"] * 4) == ["gloo"] * 3
    assert Pipeline(stages=1, replicas=4).wires(hosts) == []
    with pytest.raises(UserError, match="neighbouring stages are on two machines: choose auto or gloo"):
        Pipeline(stages=4, wire="ring").wires(hosts)


class Delayed:
    """Two queues that work after random pauses, as streams of a GPU do: the computation's, and one that sends. With a
    `fault` it forgets one of the waits."""

    pins = False

    def __init__(self, seed: int, fault: str) -> None:
        self._random, self._fault = random.Random(seed), fault
        self._compute, self._sending = queue.SimpleQueue(), queue.SimpleQueue()
        for actions in (self._compute, self._sending):
            threading.Thread(target=self._work, args=(actions,), daemon=True).start()

    def run(self, action) -> None:
        """Compute."""
        self._compute.put(action)

    def out(self, copy, then) -> None:
        computed = threading.Event()
        if self._fault == "no wait before it is copied in":
            computed.set()
        self._compute.put(computed.set)
        self._sending.put(lambda: (computed.wait(), copy(), then()))

    def into(self, copy, then) -> None:
        if self._fault == "no wait before the slot is used again":
            then()
            self._compute.put(copy)
        elif self._fault == "no wait before it is read":
            self._sending.put(lambda: (copy(), then()))
        else:
            self._compute.put(lambda: (copy(), then()))

    def finish(self) -> None:
        for actions in (self._compute, self._sending):
            done = threading.Event()
            actions.put(done.set)
            done.wait()

    def end(self) -> None:
        for actions in (self._compute, self._sending):
            actions.put(None)

    def _work(self, actions) -> None:
        while (action := actions.get()) is not None:
            time.sleep(self._random.choice((0, 0, 0.001)))
            action()


def stale(seed: int, fault: str) -> int:
    """Of 12 messages that are computed, sent and read while the host runs ahead, how many arrive with other numbers."""
    lanes = [Delayed(seed + i, fault) for i in range(2)]
    served, ends = DefaultSelector(), socket.socketpair()
    lines = [SocketLine(end, "the other end") for end in ends]
    below, above = (
        Wire(line, Ring(line, CPU), lane, served, 2, CPU, None) for line, lane in zip(lines, lanes, strict=True)
    )
    wrong = []
    for i in range(12):
        sent = torch.zeros(50)
        lanes[0].run(partial(sent.fill_, i))
        below.put((sent,))
        (found,) = above.get()
        lanes[1].run(lambda found=found, i=i: wrong.append(i) if not (found == i).all() else None)
    for wire in (below, above):
        wire.begin_closing()
    for wire in (below, above):
        wire.close()
    for lane in lanes:
        lane.end()
    return len(wrong)


FAULTS = ["no wait before it is copied in", "no wait before it is read", "no wait before the slot is used again"]


@pytest.mark.parametrize("fault", ["", *FAULTS])
def test_a_host_that_runs_ahead_of_its_device_sends_what_the_device_computes(fault):
    """Nothing is stale in any order in which the device may do it; and it shows where one of the waits is missing."""
    found = sum(stale(seed, fault) for seed in range(40))
    assert found == 0 if not fault else found > 0
