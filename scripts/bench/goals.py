"""The goals of the benchmark, and what was found for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bench.method import Found


@dataclass(frozen=True)
class Goal:
    """`what` must be at most (`most`) or at least `limit`, in `unit` (nothing: a ratio)."""

    what: str
    most: bool
    limit: float
    unit: str = ""

    def reached(self, value: float) -> bool:
        return value <= self.limit if self.most else value >= self.limit


GOALS = {
    "P1": Goal("backprop through the harness / bare loop, time", True, 1.02),
    "P2": Goal("added to a step of a small MLP, with a JSON line and a finite check each step", True, 100, "us"),
    "P3": Goal("the harness's defaults / naive loop, time", True, 0.90),
    "P4 linear": Goal("serial DGL, 4 blocks, linear heads / backprop, time", True, 0.96),
    "P4 mlp_sr": Goal("serial DGL, 4 blocks, mlp_sr heads / backprop, time", True, 1.06),
    "P5": Goal("held activations, DGL / its largest block alone", True, 1.01),
    "P6 flops": Goal("held by autograd, DGL K=4 cut by FLOPs / backprop", True, 0.53),
    "P6 memory": Goal("held by autograd, DGL K=4 cut by memory / backprop", True, 0.37),
    "P7": Goal("2-stage pipeline against one process, 1 thread each, speed", False, 1.80),
    "P8": Goal("2-stage pipeline against the same stages unconnected, speed", False, 0.95),
    "P9 micro-batches": Goal("2-stage pipeline against the better of GPipe and 1F1B, images/s", False, 1.35),
    "P9 DDP": Goal("2-stage pipeline against DDP with 2 processes, images/s", False, 1.10),
    "P11 K=2": Goal("split by measured time: sum / max of stage times, K=2", False, 0.85 * 2),
    "P11 K=3": Goal("split by measured time: sum / max of stage times, K=3", False, 0.85 * 3),
    "P11 K=4": Goal("split by measured time: sum / max of stage times, K=4", False, 0.85 * 4),
    "P12 speed": Goal("training batches: crop, flip, normalise, 1 thread", False, 100_000, "images/s"),
    "P12 torchvision": Goal("the same against torchvision sample by sample", False, 7.0),
    "P13": Goal("checkpoint of vgg16 with momentum: write, sync, checksum", True, 0.25, "s"),
    "P14": Goal("process start to the end of the first step / a bare script, CPU time", True, 1.10),
    "P15 dni": Goal("dni in the 2-stage pipeline against serial, speed", False, 1.60),
    "P15 loco": Goal("loco in the 2-stage pipeline against serial, speed", False, 1.60),
    "P16": Goal("training with W&B / without, time; every record is in metrics.jsonl", True, 1.02),
    "P17": Goal("percent of training: waiting for W&B, and CPU of the thread that feeds its process", True, 2.0),
    "P18 mlp": Goal("a step of an MLP 3 x 1024 / written by hand, fused optimizers, CPU time", True, 1.02),
    "P18 lenet": Goal("a step of a LeNet / written by hand, fused optimizers, CPU time", True, 1.04),
    "P18 resnet20": Goal("a step of a ResNet-20 / written by hand, fused optimizers, CPU time", True, 1.02),
}


@dataclass
class Finding:
    """What was found for a goal on one subject.

    why    one sentence on what stands in the way, shown where the goal is missed
    parts  further numbers, by name with unit
    judged whether the goal is meant for this subject; else the number is for comparison
    """

    goal: str
    subject: str
    found: Found
    why: str = ""
    parts: dict[str, Any] = field(default_factory=dict)
    judged: bool = True

    @property
    def verdict(self) -> str:
        if self.found.value is None:
            return "too loud"
        if not self.judged:
            return "no goal"
        return "reached" if GOALS[self.goal].reached(self.found.value) else "missed"

    def plain(self) -> dict[str, Any]:
        goal, missed = GOALS[self.goal], {"why": self.why} if self.verdict == "missed" else {}
        limit = {"limit": goal.limit, "at": "most" if goal.most else "least", "unit": goal.unit}
        about = {"goal": self.goal, "what": goal.what, "subject": self.subject, **limit, "verdict": self.verdict}
        return {**about, **self.found._asdict(), **missed, "parts": self.parts}


@dataclass
class Report:
    """All findings, what validates the cost model, and the parts that failed."""

    findings: list[Finding] = field(default_factory=list)
    validation: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, goal: str, subject: str, found: Found, why: str = "", judged: bool = True, **parts: Any) -> None:
        self.findings.append(Finding(goal, subject, found, why, parts, judged))
