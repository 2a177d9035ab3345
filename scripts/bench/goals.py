"""The goals of the benchmark, and what was found for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bench.method import Number


@dataclass(frozen=True)
class Goal:
    """`what` must be at most `most` or at least `least`, in `unit` (nothing: a ratio)."""

    what: str
    most: float | None = None
    least: float | None = None
    unit: str = ""

    @property
    def limit(self) -> float:
        return self.least if self.most is None else self.most

    def reached(self, value: float) -> bool:
        return value >= self.limit if self.most is None else value <= self.limit


_TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
GOALS = {name: Goal(**entry) for name, entry in _TABLE.items()}


@dataclass
class Finding:
    """What was found for a goal on one subject.

    why    one sentence on what stands in the way, shown where the goal is missed
    parts  further numbers, by name with unit
    judged whether the goal is meant for this subject; else the number is for comparison
    """

    goal: str
    subject: str
    number: Number
    why: str = ""
    parts: dict[str, Any] = field(default_factory=dict)
    judged: bool = True

    @property
    def verdict(self) -> str:
        if self.number.value is None:
            return "too loud"
        if not self.judged:
            return "no goal"
        return "reached" if GOALS[self.goal].reached(self.number.value) else "missed"

    def plain(self) -> dict[str, Any]:
        goal, missed = GOALS[self.goal], {"why": self.why} if self.verdict == "missed" else {}
        limit = {"limit": goal.limit, "at": "most" if goal.least is None else "least", "unit": goal.unit}
        about = {"goal": self.goal, "what": goal.what, "subject": self.subject, **limit, "verdict": self.verdict}
        return {**about, **self.number._asdict(), **missed, "parts": self.parts}


@dataclass
class Report:
    """All findings, what validates the cost model, and the parts that failed."""

    findings: list[Finding] = field(default_factory=list)
    validation: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, goal: str, subject: str, number: Number, why: str = "", judged: bool = True, **parts: Any) -> None:
        self.findings.append(Finding(goal, subject, number, why, parts, judged))
