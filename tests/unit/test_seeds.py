"""Whose generators are seeded: the CPU's and those of the block's own device, which need not be the current one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from helpers.nets import tiny_learner
from locallearn import seeds
from locallearn.strategies.backprop import Backprop

SOURCE = Path(__file__).resolve().parents[2] / "src" / "locallearn"
CURRENT = "torch.manual_seed", "torch.seed", "torch.cuda.manual_seed", "torch.cuda.seed", "torch.cuda.set_rng_state"


@pytest.fixture
def gpus(monkeypatch) -> tuple[torch.Generator, ...]:
    """The generators of a machine with three GPUs, of which number 0 is the current one."""
    generators = tuple(torch.Generator().manual_seed(100 + i) for i in range(3))
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    return generators


def states(gpus) -> list[torch.Tensor]:
    return [g.get_state() for g in gpus]


@pytest.mark.parametrize(("device", "index"), [("cuda:1", 1), ("cuda:2", 2), ("cuda:0", 0), ("cuda", 0)])
def test_a_block_seeds_the_generator_of_its_own_device(gpus, device, index):
    before = states(gpus)
    block = tiny_learner(Backprop()).blocks[2]
    block.device, block.step, block.micro = torch.device(device), 7, 1
    with seeds.Undisturbed(block.device):
        for half, number in (("forward", 0), ("backward", 1), ("begin", 2)):
            block.reseed(half)
            seed = seeds.mix(seeds.derive(0, "block", 2), 7, 1, number)
            assert torch.default_generator.initial_seed() == gpus[index].initial_seed() == seed
            drawn = torch.rand(5, generator=gpus[index])
            assert torch.equal(drawn, torch.rand(5, generator=torch.Generator().manual_seed(seed)))
        for other in {0, 1, 2} - {index}:
            assert torch.equal(gpus[other].get_state(), before[other]), "a device of somebody else's"
    assert all(map(torch.equal, states(gpus), before)), "put back"


def test_a_stream_is_that_of_its_device_and_leaves_no_trace(gpus):
    before = states(gpus)
    with seeds.stream(3, "probe", "linear", device=torch.device("cuda:2")):
        assert gpus[2].initial_seed() == torch.default_generator.initial_seed() == seeds.derive(3, "probe", "linear")
        torch.rand(3, generator=gpus[2])
    assert all(map(torch.equal, states(gpus), before))


def test_the_cpu_alone_needs_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "init", lambda: pytest.fail("asked for a GPU"))
    assert seeds.generators(torch.device("cpu")) == [torch.default_generator]


def test_nobody_seeds_the_current_device():
    """What means the current device, or all of them, where a block has its own: only `seeds` touches global ones."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in CURRENT, f"{path}:{node.lineno}: use seeds.restart"
                if ast.unparse(node.func).endswith("fork_rng"):
                    assert node.keywords, f"{path}:{node.lineno}: say which devices, or use seeds.Undisturbed"
