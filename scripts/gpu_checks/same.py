"""The checks of bits: a device beside the CPU, twice the same, in several processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch import distributed as dist
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from gpu_checks.subjects import Outcome, images, learner_of, resnet
from helpers.nets import tiny_batches, tiny_learner, tiny_model
from helpers.strategies import FILES, make
from locallearn import accelerator
from locallearn.engine import Learner

CPU = torch.device("cpu")
EXACT, SINGLE = 1e-9, 1e-4
"""Largest relative differences between a device and a CPU: in float64, and in float32 without TF32."""


class DrawnOnTheHost(TorchDispatchMode):
    """Whatever is drawn at random is what a CPU draws: both have one seed, and other numbers from it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        device = (kwargs or {}).get("device") or tensors[0].device
        host = pytree.tree_map_only(Tensor, lambda t: t.cpu(), (args, dict(kwargs or {})))
        host = pytree.tree_map_only(torch.device, lambda _: torch.device("cpu"), host)
        out = func(*host[0], **host[1])
        if func._schema.is_mutable:
            return args[0].copy_(out)
        return pytree.tree_map_only(Tensor, lambda t: t.to(device), out)


def as_on_a_cpu(device: torch.device, small: bool) -> Outcome:
    """B"""
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    worst: dict[str, float] = {}
    for name in sorted(FILES):
        learners = [tiny_learner(make(name), tiny_model(dropout=0.2), device=d, total_steps=6) for d in (device, CPU)]
        for x, y in tiny_batches(2 if small else 6):
            for learner in learners:
                with DrawnOnTheHost():
                    learner.learn(x.to(learner.device), y.to(learner.device))
        worst[name] = difference(*learners)
        assert worst[name] <= EXACT, f"{name} differs by {worst[name]:.1e} of its largest number"
    x, y = images(32 if small else 128)
    learners = [learner_of("dgl", resnet(8 if small else 32), d) for d in (device, CPU)]
    for learner in learners * 2:
        learner.learn(x.to(learner.device), y.to(learner.device))
    single = difference(*learners)
    assert single <= SINGLE, f"a ResNet in float32 differs by {single:.1e}"
    said = f"{len(worst)} strategies to {max(worst.values()):.0e}, a ResNet in float32 to {single:.0e}"
    return said, worst | {"resnet": single}


def repeats(device: torch.device, small: bool) -> Outcome:
    """C"""
    torch.use_deterministic_algorithms(True)
    for name in sorted(FILES):
        states = []
        for _ in range(2):
            learner = tiny_learner(make(name), tiny_model(dropout=0.2), device=device, total_steps=6, precision="fp32")
            before = [g.get_state() for g in accelerator.generators(device)]
            for x, y in tiny_batches(2 if small else 6):
                learner.learn(x.float().to(device), y.to(device))
            assert all(map(torch.equal, before, (g.get_state() for g in accelerator.generators(device)))), (
                f"{name} leaves PyTorch's generators in another state"
            )
            states.append({n: t.cpu() for n, t in learner.state_dict().items()})
        differ = [n for n, t in states[0].items() if not torch.equal(t, states[1][n])]
        assert not differ, f"{name}: {differ[0]} is another one in the second run"
    return f"{len(FILES)} strategies with dropout: the same bits twice, and generators put back", {}


def pipelines(device: torch.device, small: bool) -> Outcome:
    """D"""
    strategies = ["dgl"] if small else ["dgl", "dni", "backprop micro_batches=2", "dfa", "loco"]
    counts = [2] if small else [2, 4]
    with tempfile.TemporaryDirectory() as out:
        for strategy in strategies:
            options = [f"strategy={strategy.split()[0]}", *strategy.split()[1:], f"device={device.type}"]
            serial = weights(command(out, *options))
            for stages in counts:
                piped = weights(command(out, *options, "runtime=pipeline", f"runtime.stages={stages}"))
                same = all(torch.equal(t, piped[name]) for name, t in serial.items())
                assert same, f"{strategy} in {stages} processes ends with other bits than in one"
        killed = kill_one(out, device)
    said = f"{', '.join(strategies)} in {' and '.join(map(str, counts))} processes: the bits of one"
    return f"{said}; a killed one is reported after {killed:.1f} s", {"killed_seconds": killed}


def command(out: str, *options: str) -> Path:
    """The folder of a short run."""
    name = str(len(os.listdir(out)))
    started = subprocess.run([*run_of(f"{out}/{name}"), *options], capture_output=True, text=True, check=False)
    assert started.returncode == 0, f"{' '.join(options)}: {started.stderr.strip().splitlines()[-1:]}"
    return next(Path(out, name).iterdir())


def run_of(out: str) -> list[str]:
    """The words of a short run that writes into that folder."""
    short = [
        "data=digits",
        "model=lenet",
        "blocks=4",
        "data.fraction=0.3",
        "epochs=1",
        "threads=1",
        "deterministic=true",
    ]
    return [sys.executable, "-m", "locallearn", *short, f"out={out}"]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def kill_one(out: str, device: torch.device) -> float:
    """Seconds until a run in two processes, of which one is killed, ends with the reason."""
    options = ["strategy=dgl", "runtime=pipeline", "epochs=500", "evaluate_every=500", f"device={device.type}"]
    words = [*run_of(f"{out}/killed"), *options]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        while not list(Path(out).glob("killed/*/metrics.jsonl")) and process.poll() is None:
            time.sleep(0.1)
        time.sleep(2)
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
        os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
        started = time.monotonic()
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert "was ended by SIGKILL" in said, f"a killed process is reported as {said.strip()!r}"
    return round(time.monotonic() - started, 1)


def nccl_of_one(device: torch.device, small: bool) -> Outcome:
    """G"""
    started = time.monotonic()
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=device)
    numbers = torch.ones(1 << 20, device=device)
    for group in (None, dist.new_group([0], backend="nccl")):
        dist.all_reduce(numbers, group=group)
    total = numbers.sum().item()
    dist.destroy_process_group()
    seconds = round(time.monotonic() - started, 2)
    assert total == 1 << 20, f"the sum over one process is {total}"
    assert seconds < 10, f"it took {seconds} seconds"
    return f"in {seconds} s", {"seconds": seconds}


def difference(a: Learner, b: Learner) -> float:
    """The largest between two states, each tensor in parts of its largest number."""
    pairs = [(t.cpu().double(), b.state()[name].cpu().double()) for name, t in a.state().items() if t.numel()]
    return max(((s - t).abs().max() / t.abs().max().clamp(min=1e-6)).item() for s, t in pairs)
