"""Replicas in real processes against one process with as many micro-batches: every strategy, bit for bit."""

from __future__ import annotations

import multiprocessing.connection
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers import replica_worker
from helpers.marks import slow
from helpers.replica_worker import STATISTICS, trained
from helpers.strategies import FILES, make

pytestmark = pytest.mark.xdist_group("replicas")  # one worker starts the processes
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([replica_worker.__name__, "torch._dynamo"])
SIZES = [2, 3, 4]
DIVIDED = [name for name in sorted(FILES) if not make(name).repeats]
CASES = [(name, norm) for name in DIVIDED for norm in (True, False)]


def same_bits(name: str, norm: bool) -> bool:
    """Whether training reads no running statistics: of batch norms do so blocks of earlier phases, which only compute,
    and Forward-Forward has some of its own."""
    return name != "forward_forward" and not (norm and len(make(name).phases(4)) > 1)


def left(folder: Path, strategies: list[str], sizes: list[int]) -> Path:
    """The folder in which the replicas of strategies have left their states."""
    places = [(rank, strategies, sizes, str(folder)) for rank in range(max(sizes))]
    processes = [SERVER.Process(target=replica_worker.main, args=place) for place in places]
    for process in processes:
        process.start()
    running = {process.sentinel for process in processes}
    while running and not any(process.exitcode for process in processes):  # who fails leaves the others waiting
        running -= {*multiprocessing.connection.wait(running)}
    for process in processes:
        process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(processes)
    return folder


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Callable[[str], Path]:
    return cache(lambda name: left(tmp_path_factory.mktemp(name), [name], [3]))


@pytest.fixture(scope="module")
def all_of_them(tmp_path_factory) -> Path:
    return left(tmp_path_factory.mktemp("all"), DIVIDED, SIZES)


def assert_as_micro_batches(name: str, norm: bool, size: int, folder: Path) -> None:
    """All replicas have one state, with the batch statistics of all blocks that learn, and it is that of micro-batches
    but for these."""
    states = [load_file(folder / f"{name}-{norm}-{size}-{rank}.safetensors") for rank in range(size)]
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        own = STATISTICS if name == "shallow" else ()  # of random blocks below
        assert all(torch.equal(t, state[n]) for n, t in states[0].items() if not n.endswith(own))
    if not same_bits(name, norm):
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = trained(name, norm, size).state()
    torch.set_num_threads(threads)
    assert states[0].keys() == expected.keys()
    for n, t in expected.items():
        if not n.endswith(STATISTICS):
            assert torch.equal(t, states[0][n]), n


@pytest.mark.parametrize("norm", [True, False], ids=["batch norm", "no norm"])
@pytest.mark.parametrize("name", ["dgl", *map(slow, ("dni", "backprop", "dfa"))])
@pytest.mark.fault("R6")
def test_three_replicas_end_as_three_micro_batches(name, norm, three):
    """A strategy of each route."""
    assert_as_micro_batches(name, norm, 3, three(name))


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "norm"), CASES)
@pytest.mark.fault("R6")
def test_replicas_end_as_micro_batches(name, norm, size, all_of_them):
    assert_as_micro_batches(name, norm, size, all_of_them)
