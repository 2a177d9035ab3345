"""The checks of `gpu_check.py`, in their order: each is a function of a device and of whether sizes are small, which
returns a sentence and numbers, or fails an assertion that says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from gpu_checks.published import published as published_run
from gpu_checks.same import EXACT, SINGLE, as_on_a_cpu, nccl_of_one, pipelines, repeats
from gpu_checks.speed import card, epochs, loader, memory, no_waits, step_times
from gpu_checks.subjects import Outcome, on
from gpu_checks.wires import nccl_of_two, sanitized
from locallearn.training.environment import checkout

__all__ = ["CHECKS", "Check", "Facts", "facts_of", "on"]


class Check(NamedTuple):
    """
    letter   what it is called
    what     in words
    passes   the condition
    seconds  its limit
    devices  the kinds on which it can run
    needs    checks without which its numbers say nothing
    """

    letter: str
    what: str
    passes: str
    seconds: float
    function: Callable[[torch.device, bool], Outcome]
    devices: tuple[str, ...] = ("cuda", "cpu", "shadow")
    needs: tuple[str, ...] = ()


class Facts(NamedTuple):
    """What a result belongs to."""

    device: str
    name: str
    torch: str
    commit: str

    def sentence(self) -> str:
        return f"{self.name}, torch {self.torch}, commit {self.commit[:10]}{self.commit[40:]}"


def facts_of(device: str) -> Facts:
    """Asks for no device but the CUDA one."""
    name = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else device
    git = checkout(Path(__file__).parent) or {"commit": "unknown", "dirty": True}
    return Facts(device, name, torch.__version__, git["commit"] + ("+" if git["dirty"] else ""))


CHECKS = (
    Check("A", "card, libraries, peak copy and product", "2.5 TB/s and 600 TFLOP/s, else it is busy", 30, card),
    Check("B", "every strategy beside the CPU", f"{EXACT:.0e} in float64, {SINGLE:.0e} in float32", 60, as_on_a_cpu),
    Check("C", "every strategy twice, with dropout", "the same bits; generators put back", 45, repeats),
    Check(
        "D", "2 and 4 processes on one card", "the bits of one; a death is reported", 120, pipelines, ("cuda", "cpu")
    ),
    Check("E", "messages of two processes under CUDA's sanitizer", "no report", 60, sanitized, ("cuda", "cpu")),
    Check("F", "NCCL between two processes on one card", "what was sent, or why not", 60, nccl_of_two, ("cuda",)),
    Check("G", "an NCCL group of one: made, used, destroyed", "in 10 seconds", 30, nccl_of_one, ("cuda",)),
    Check("H", "steps and batches for which the host waits", "none", 45, no_waits, needs=("B",)),
    Check("I", "step times by precision and layout", "-", 80, step_times, ("cuda", "cpu"), ("A", "B")),
    Check("J", "the loader with crop and flip", "1 million images a second; no wait", 20, loader, needs=("A",)),
    Check("K", "memory of a ResNet-110 at 1,024 images", "local blocks hold less", 80, memory, needs=("B",)),
    Check("L", "epochs of 50,000 random pictures", "-", 60, epochs, ("cuda", "cpu"), ("A", "B")),
    Check(
        "M",
        "a published run: ResNet-32 in 16 blocks, 160 epochs",
        "error 16.2 % within 1.0, or the curve so far",
        240,
        published_run,
        ("cuda", "cpu"),
        ("A", "B"),
    ),
)
