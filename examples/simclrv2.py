"""The three stages of SimCLRv2 (Chen et al. 2020, arXiv 2006.10029) with local losses: many images, few labels.

    python examples/simclrv2.py --data DIR           # MNIST, 100 labels: about five minutes on one core
    python examples/simclrv2.py --data DIR --quick   # a twentieth of the images, to see that it works

Pretrain: every block by SimCLR's contrast, without labels. Fine-tune: from there, every block by the labels that there
are. Distil: a student of the same size learns from the fine-tuned network's answers to all images. Beside them a
network that has nothing but the labels, and a linear classifier on the pretrained features.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import locallearn
from locallearn.training.later import evaluate_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=None, help="the folder that has MNIST/")
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=4, help="over all images, of pretraining and of distillation")
    parser.add_argument("--steps", type=int, default=150, help="over the images with labels, of fine-tuning")
    parser.add_argument("--strategy", default="dgl", help="any with local losses: dgl, greedy, loco, deep_supervision")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/simclrv2")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    shared = {"strategy": options.strategy, "blocks": options.blocks, "seed": options.seed, "threads": 1}
    shared |= {"model": "lenet", "out": options.out}
    shared |= {"data": "mnist", "data.root": options.data, "data.labelled": options.labels, "data.crop": 2}
    shared |= {"data.fraction": 0.05 if options.quick else 1.0}
    every = {"epochs": 1 if options.quick else options.epochs, "batch_size": 256}
    steps = 30 if options.quick else options.steps
    few = {"epochs": steps, "batch_size": options.labels}  # an epoch is one step
    few |= {"evaluate_every": steps, "checkpoint.every": "never"}

    def stage(title: str, **settings: Any) -> Path:
        started = time.perf_counter()
        result = locallearn.train(quiet=True, **{**shared, **settings})
        say(title, result.metrics["test/accuracy"], started)
        return result.run_dir

    def say(title: str, accuracy: float, started: float) -> None:
        print(f"{title:<40} {accuracy:.4f} {time.perf_counter() - started:7.1f} s", flush=True)

    stage(f"{options.labels} labels alone", **few, **{"optim.lr": 2e-3})
    contrast = {"objective": "simclr", "objective.crop": 0.6, "auxiliary": "mlp", "data.crop": 0}
    pretrained = stage("pretrained, and its head on top", **every, **contrast, **{"optim.lr": 2e-3})
    started = time.perf_counter()
    say("pretrained, a linear classifier on top", evaluate_run(pretrained, [], linear=True)["linear_accuracy"], started)
    tuned = stage("fine-tuned", **few, **{"init.run": str(pretrained), "optim.lr": 2e-3})
    stage("distilled", **every, **{"objective": "distil", "init.teacher": str(tuned), "optim.lr": 2e-3})


if __name__ == "__main__":
    main()
