"""The checks of speed, memory and waits."""

from __future__ import annotations

import itertools

import torch

from gpu_checks.subjects import Outcome, images, learner_of, pictures, resnet, timed, vgg16, waiting
from locallearn import accelerator
from locallearn.analysis.cost import SavedBytes, now


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
    return f"none in {steps} steps and batches, except one per block every 20 steps", found


def step_times(device: torch.device, small: bool) -> Outcome:
    """I"""
    subjects = {"resnet32 b128": (32, 128), "resnet32 b1024": (32, 1024), "vgg16 b128": (0, 128)}
    times: dict[str, float] = {}
    for subject, (depth, batch) in ({"resnet8 b16": (8, 16)} if small else subjects).items():
        x, y = images(batch)
        for name, precision, last in itertools.product(("backprop", "dgl"), ("fp32", "bf16"), (False, True)):
            model = resnet(depth) if depth else vgg16()
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


def epochs(device: torch.device, small: bool) -> Outcome:
    """L"""
    seconds: dict[str, float] = {}
    data, batch = pictures(256 if small else 50_000, device), 64 if small else 128
    for name, (strategy, blocks) in {"backprop": ("backprop", 1), "dgl K=4": ("dgl", 4)}.items():
        for net, model in (
            {"resnet8": resnet(8)}.items() if small else {"vgg16": vgg16(), "resnet32": resnet(32)}.items()
        ):
            learner = learner_of(strategy, model, device, blocks=min(blocks, 3 if small else 16))
            learner.learn(*next(data.batches(0, batch)))
            started = now(device)
            for x, y in data.batches(1, batch):
                learner.learn(x, y)
            seconds[f"{net} {name}"] = round(now(device) - started, 2)
    return "seconds: " + ", ".join(f"{name} {s:g}" for name, s in seconds.items()), seconds
