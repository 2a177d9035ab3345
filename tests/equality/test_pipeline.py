"""Pipelines of real processes against the serial run: every strategy, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers import ROOT, TESTS
from helpers.marks import slow
from helpers.pipeline_worker import QUICK, STRATEGIES, answer_of, learner_of, settings, train

pytestmark = pytest.mark.xdist_group("pipeline")  # one worker starts the stages


LONG = [(2, "gloo"), (4, "ring"), (4, "gloo")]


@pytest.fixture(
    scope="module",
    params=[(2, "ring"), *map(slow, LONG)],
    ids=lambda param: f"{param[0]}-{param[1]}",
)
def finished(request, tmp_path_factory) -> Callable[[str], tuple[int, Path]]:
    """The number of stages, and the folder in which those of a strategy have left their states. The quick share of the
    strategies and the slow one run when the first of them is asked for."""
    count, wire = request.param

    @cache
    def folder_of(share: str) -> Path:
        folder = tmp_path_factory.mktemp(f"stages{count}")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{TESTS}"}
        command = [sys.executable, "-m", "helpers.pipeline_worker"]
        words = [[str(rank), str(count), wire, share, str(folder)] for rank in range(count)]
        stages = [subprocess.Popen([*command, *each], env=environment) for each in words]
        try:
            assert [stage.wait(240) for stage in stages] == [0] * count
        finally:
            for stage in stages:
                stage.kill()
        return folder

    return lambda name: (count, folder_of("quick" if name in QUICK else "slow"))


@cache
def serially(name: str, micro_batches: int, staleness: int) -> dict[str, torch.Tensor]:
    """What the serial run ends with, and its answer: once for all numbers of stages and wires."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    serial = learner_of(name, micro_batches, staleness)
    train(serial, lowest=True)
    expected = serial.state() | answer_of(serial)
    torch.set_num_threads(threads)
    return expected


@pytest.mark.parametrize(
    ("name", "micro_batches", "staleness"),
    [(name, *setting) if name in QUICK else slow(name, *setting) for name in STRATEGIES for setting in settings(name)],
)
@pytest.mark.fault("R6")
def test_a_pipeline_ends_as_the_serial_run_and_answers_as_it_does(name, micro_batches, staleness, finished):
    world, folder = finished(name)
    expected = serially(name, micro_batches, staleness)
    states = [load_file(folder / f"{name}-{micro_batches}-{staleness}-{rank}.safetensors") for rank in range(world)]
    joined = {n: t for state in states for n, t in state.items()}
    assert sum(map(len, states)) == len(joined)
    assert joined.keys() == expected.keys()
    for n, t in expected.items():
        assert torch.equal(t, joined[n]), n
