"""The checks of `gpu_check.py`, in their order: each is a function of a device and of whether sizes are small, which
returns a sentence and numbers, or fails an assertion that says why."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import shadow
from helpers.nets import assembled, tiny_batches, tiny_learner, tiny_model
from helpers.strategies import FILES, make
from locallearn import accelerator
from locallearn.analysis.cost import SavedBytes, now
from locallearn.data import Data
from locallearn.data.augment import Augment
from locallearn.data.dataset import Split
from locallearn.data.normalise import IMAGENET, Normaliser
from locallearn.data.store import Memory
from locallearn.engine import SGD, Learner
from locallearn.models.resnet import cifar_resnet
from locallearn.models.vgg import vgg
from locallearn.training.environment import checkout

Outcome: TypeAlias = tuple[str, dict[str, Any]]
IMAGE, CLASSES = (3, 32, 32), 10
EXACT, SINGLE = 1e-9, 1e-4
"""Largest relative differences between a device and a CPU: in float64, and in float32 without TF32."""


class Check(NamedTuple):
    """
    letter   what it is called
    what     in words
    passes   the condition
    seconds  its limit
    function None where it is not yet written
    devices  the kinds on which it can run
    needs    checks without which its numbers say nothing
    """

    letter: str
    what: str
    passes: str
    seconds: float = 0.0
    function: Callable[[torch.device, bool], Outcome] | None = None
    devices: tuple[str, ...] = ("cuda", "cpu", "shadow")
    needs: tuple[str, ...] = ()


class Facts(NamedTuple):
    """What a result belongs to."""

    device: str
    name: str
    torch: str
    commit: str

    def sentence(self) -> str:
        return f"{self.name}, torch {self.torch}, commit {self.commit[:10]}"


def facts_of(device: str) -> Facts:
    """Asks for no device but the CUDA one."""
    name = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else device
    git = checkout(Path(__file__).parent) or {"commit": "unknown", "dirty": True}
    return Facts(device, name, torch.__version__, git["commit"] + ("+" if git["dirty"] else ""))


def on(device: str) -> torch.device:
    """The device of that name, the current one of this process."""
    if device == "shadow":
        shadow.register()
    assert device == "cpu" or accelerator.count(), "there is no such device here"
    chosen = torch.device(device) if device == "cpu" else torch.device(device, 0)
    accelerator.use(chosen)
    return chosen


def card(device: torch.device, small: bool) -> Outcome:
    """A: what is there, and whether it is ours alone."""
    side, size = (256, 1 << 20) if small else (8192, 1 << 30)
    a = torch.randn(side, side, device=device, dtype=torch.float32 if small else torch.bfloat16)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    products = 2 * side**3 / timed(device, lambda: a @ a)
    copied = 2 * size / timed(device, source.clone)
    numbers = {"tflops": round(products / 1e12, 3), "tb_per_second": round(copied / 1e12, 3)}
    said = f"{numbers['tflops']:g} TFLOP/s, {numbers['tb_per_second']:g} TB/s"
    if device.type == "cuda":
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
        said = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, NCCL {nccl}; {said}"
        assert products > 600e12, f"{said}: the card is busy, or slower than an H100"
        assert copied > 2.5e12, f"{said}: the card is busy, or slower than an H100"
    return said, numbers


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


def no_waits(device: torch.device, small: bool) -> Outcome:
    """H"""
    steps, batch, found = *((20, 8) if small else (60, 64)), {}
    for name in ("dgl", "dni", "backprop"):
        learner, data = learner_of(name, resnet(8 if small else 32), device), pictures(batch * (steps + 1), device)
        batches = data.batches(0, batch)
        learner.learn(*next(batches))
        with waiting(device) as waits:
            for x, y in itertools.islice(batches, steps):
                learner.learn(x, y)
        allowed = (learner.step_count // 20) * len(learner.blocks)
        found[name] = len(waits)
        assert len(waits) <= allowed, f"{name}: the host waited {len(waits)} times in {steps} steps: {waits[0]}"
    return f"none in {steps} steps and batches, but one a block every 20 steps", found


@contextmanager
def waiting(device: torch.device) -> Iterator[list[str]]:
    """What the host waits for meanwhile; a CPU is never waited for."""
    found: list[str] = []
    if device.type == "shadow":
        with shadow.watched() as found:
            yield found
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        yield found
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    found += [f"{w.message} at {w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]


def step_times(device: torch.device, small: bool) -> Outcome:
    """I"""
    subjects = {"resnet32 b128": (32, 128), "resnet32 b1024": (32, 1024), "vgg16 b128": (0, 128)}
    times: dict[str, float] = {}
    for subject, (depth, batch) in ({"resnet8 b16": (8, 16)} if small else subjects).items():
        x, y = images(batch)
        for name, precision, last in itertools.product(("backprop", "dgl"), ("fp32", "bf16"), (False, True)):
            model = resnet(depth) if depth else vgg(IMAGE, CLASSES, depth=16)
            learner = learner_of(name, model, device, precision=precision, channels_last=last)
            own = x.to(device), y.to(device)
            layout = " channels_last" if last else ""
            seconds = timed(device, lambda learner=learner, own=own: learner.learn(*own), 2 if small else 10)
            times[f"{subject} {name} {precision}{layout}"] = round(1000 * seconds, 3)
    return "milliseconds a step: " + ", ".join(f"{name} {ms:g}" for name, ms in times.items()), times


def loader(device: torch.device, small: bool) -> Outcome:
    """J"""
    speeds = {}
    for batch in (64,) if small else (128, 1024):
        data = pictures(2048 if small else 50_000, device)
        with waiting(device) as waits:
            next(batches := data.batches(0, batch))
            started = now(device)
            count = sum(len(x) for x, _ in batches)
            speeds[f"b{batch}"] = round(count / (now(device) - started))
        waits = [wait for wait in waits if "synchronize" not in wait]
        assert not waits, f"the host waited {len(waits)} times: {waits[0]}"
    assert small or speeds["b1024"] >= 1e6, f"{speeds['b1024']:,} images a second"
    return ", ".join(f"{name}: {speed:,} images a second" for name, speed in speeds.items()), speeds


def memory(device: torch.device, small: bool) -> Outcome:
    """K"""
    peaks: dict[str, float] = {}
    depth, batch = (8, 16) if small else (110, 1024)
    x, y = images(batch)
    for name, blocks in [("backprop", 1), ("checkpoint", 4), *(("dgl", k) for k in (2, 4, 8, 16))]:
        learner = learner_of(name, resnet(depth), device, blocks=min(blocks, 3 if small else 16))
        learner.learn(x.to(device), y.to(device))
        accelerator.reset_peak_memory()
        with SavedBytes(p for _, p in learner.parameters()) as saved:
            learner.learn(x.to(device), y.to(device))
        peaks[f"{name} K={blocks} saved"] = saved.peak
        peaks[f"{name} K={blocks} peak"] = accelerator.peak_memory_bytes(device) or 0
        del learner
    said = ", ".join(f"{name} {n / 2**30:.3g}" for name, n in peaks.items())
    assert peaks["dgl K=4 saved"] < peaks["backprop K=1 saved"], f"local blocks hold no less: {said}"
    return f"GiB: {said}", peaks


CPU = torch.device("cpu")


def resnet(depth: int) -> Any:
    torch.manual_seed(0)
    return cifar_resnet(IMAGE, CLASSES, depth=depth)


def learner_of(strategy: str, model: Any, device: torch.device, blocks: int = 3, **options: Any) -> Learner:
    optim = SGD(lr=0.01, schedule="constant")
    return assembled(model, make(strategy), optim, model.cut(blocks), device=device, total_steps=1000, **options)


def images(batch: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    return torch.randn(batch, *IMAGE, generator=draws), torch.randint(CLASSES, (batch,), generator=draws)


def pictures(count: int, device: torch.device) -> Data:
    """As many random pictures, cropped and flipped as those of CIFAR-10 are."""
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, *IMAGE), dtype=torch.uint8, generator=draws).to(device)
    split = Split(Memory(pixels), torch.arange(count), torch.arange(count).remainder(CLASSES).to(device))
    normaliser = Normaliser.of(IMAGENET, device)
    return Data("random", tuple(map(str, range(CLASSES))), (split,) * 3, 0, Augment(crop=4, flip=True), normaliser)


def timed(device: torch.device, call: Callable[[], object], times: int = 10) -> float:
    """Seconds of a call, once it is warm."""
    for _ in range(3):
        call()
    started = now(device)
    for _ in range(times):
        call()
    return (now(device) - started) / times


def difference(a: Learner, b: Learner) -> float:
    """The largest between two states, each tensor in parts of its largest number."""
    pairs = [(t.cpu().double(), b.state()[name].cpu().double()) for name, t in a.state().items() if t.numel()]
    return max(((s - t).abs().max() / t.abs().max().clamp(min=1e-6)).item() for s, t in pairs)


GPU = ("cuda",)
CHECKS = (
    Check("A", "card, libraries, peak copy and product", "2.5 TB/s and 600 TFLOP/s, else it is busy", 30, card),
    Check("B", "every strategy beside the CPU", f"{EXACT:.0e} in float64, {SINGLE:.0e} in float32", 60, as_on_a_cpu),
    Check("C", "every strategy twice, with dropout", "the same bits; generators put back", 45, repeats),
    Check(
        "D", "2 and 4 processes on one card", "the bits of one; a death is reported", 120, pipelines, ("cuda", "cpu")
    ),
    Check("E", "the carriers under CUDA's sanitizer", "no report"),
    Check("F", "NCCL and peer memory between two processes on one card", "the bits of one, or why not"),
    Check("G", "an NCCL group of one: made, used, destroyed", "in 10 seconds"),
    Check("H", "steps and batches for which the host waits", "none", 45, no_waits, needs=("B",)),
    Check("I", "step times by precision and layout", "-", 80, step_times, ("cuda", "cpu"), ("A", "B")),
    Check("J", "the loader with crop and flip", "1 million images a second; no wait", 20, loader, needs=("A",)),
    Check("K", "memory of a ResNet-110 at 1,024 images", "local blocks hold less", 80, memory, needs=("B",)),
    Check("L", "epoch times of CIFAR-10", "-"),
    Check("M", "a published run: ResNet-32 in 16 blocks, 160 epochs", "error 16.2 % within 1.0"),
)
