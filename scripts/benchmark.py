"""What the harness costs and what local learning saves, as ratios side by side in one run.

    make bench        # or: python scripts/benchmark.py [--batch 64] [--threads 1] [--json FILE]

Variants are interleaved A B A B, so that whatever else the machine does hits all alike; every ratio is the median of
the ratios of neighbouring repetitions, with their spread. Absolute times are printed for the reader, never compared
across machines. The bare loop gets the same allocator and memory layout as the harness.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from locallearn.auxiliary import Linear, MLPSpatialReduction
from locallearn.engine import SGD, assemble
from locallearn.engine.memory import SavedBytes
from locallearn.models.plain import mlp
from locallearn.models.vgg import vgg
from locallearn.objectives import CrossEntropy
from locallearn.strategies.backprop import Backprop, Checkpoint
from locallearn.strategies.greedy import DGL
from locallearn.training.environment import keep_freed_memory

OPTIM = SGD(lr=0.01, momentum=0.9, weight_decay=5e-4, schedule="constant")
Step = Callable[[], None]


def bare(model, x, y) -> Step:
    """The loop everybody writes."""
    model = copy.deepcopy(model).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def learner_of(model, strategy, blocks):
    model = copy.deepcopy(model)
    return assemble(model, strategy, OPTIM, model.cut(blocks), channels_last=True)


def interleaved(variants: dict[str, Step], repeats: int, inner: int = 1) -> dict[str, list[float]]:
    """Seconds per step of each variant, `repeats` times in turn, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        for name, step in variants.items():
            start = time.perf_counter()
            for _ in range(inner):
                step()
            if repeat:
                seconds[name].append((time.perf_counter() - start) / inner)
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, to: str) -> dict[str, float]:
    ratios = [a / b for a, b in zip(seconds[name], seconds[to], strict=True)]
    return {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    torch.manual_seed(0)
    model = vgg((3, 32, 32), 10, depth=16)
    x, y = torch.randn(options.batch, 3, 32, 32), torch.randint(10, (options.batch,))
    dgl = {name: DGL(objective=CrossEntropy(), auxiliary=a) for name, a in AUXILIARIES.items()}
    learners = {
        "backprop, 1 block": learner_of(model, Backprop(), 1),
        "backprop, 4 blocks": learner_of(model, Backprop(), 4),
        "recomputed, 4 blocks": learner_of(model, Checkpoint(), 4),
        "DGL linear, 4 blocks": learner_of(model, dgl["linear"], 4),
        "DGL mlp_sr, 4 blocks": learner_of(model, dgl["mlp_sr"], 4),
    }
    variants = {"bare loop": bare(model, x, y)}
    variants |= {name: (lambda learner=learner: learner.learn(x, y)) for name, learner in learners.items()}
    seconds = interleaved(variants, options.repeats)
    memory = {}
    for name, learner in learners.items():
        with SavedBytes(p for _, p in learner.parameters()) as saved:
            learner.learn(x, y)
        memory[name] = saved.peak
    print(f"vgg16, batch {options.batch}, {options.threads} thread(s), {platform.processor() or platform.machine()}")
    print(f"{'':<22}{'ms/step':>9}{'time ratio':>12}{'(spread)':>15}{'saved MB':>10}{'memory ratio':>14}")
    result = {}
    for name in variants:
        r = ratio(seconds, name, "bare loop")
        held = memory.get(name, memory["backprop, 1 block"])
        share = held / memory["backprop, 1 block"]
        result[name] = {**r, "milliseconds": statistics.median(seconds[name]) * 1e3, "saved_bytes": held}
        spread = f"({r['low']:.3f}-{r['high']:.3f})"
        times = f"{result[name]['milliseconds']:9.0f}{r['ratio']:12.3f}{spread:>15}"
        print(f"{name:<22}{times}{held / 1e6:10.1f}{share:14.3f}")
    result["small mlp"] = small_mlp(options.repeats)
    if options.json:
        facts = {"torch": torch.__version__, "threads": options.threads, "batch": options.batch}
        options.json.write_text(json.dumps({**facts, "results": result}, indent=1) + "\n")


def small_mlp(repeats: int) -> dict[str, float]:
    """What the harness adds to a step that takes next to no time, in microseconds."""
    torch.manual_seed(0)
    model = mlp((64,), 10, width=64, depth=3)
    x, y = torch.randn(32, 64), torch.randint(10, (32,))
    learner = learner_of(model, Backprop(), 1)
    variants = {"bare": bare(model, x, y), "harness": lambda: learner.learn(x, y)}
    seconds = interleaved(variants, max(repeats, 7), inner=200)
    added = [(h - b) * 1e6 for h, b in zip(seconds["harness"], seconds["bare"], strict=True)]
    found = {"bare_us": statistics.median(seconds["bare"]) * 1e6, "added_us": statistics.median(added)}
    print(f"\nsmall MLP: {found['bare_us']:.0f} us bare, the harness adds {found['added_us']:.0f} us a step")
    return found


AUXILIARIES = {"linear": Linear(), "mlp_sr": MLPSpatialReduction()}

if __name__ == "__main__":
    main()
