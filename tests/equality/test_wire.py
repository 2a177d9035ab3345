"""What two processes send each other arrives as it was, on every carrier; and one of them is killed."""

from __future__ import annotations

from multiprocessing import get_context
from pathlib import Path

import pytest

from helpers.wires import run
from locallearn.errors import UserError
from locallearn.runtime import Pipeline

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
