"""P1, P3 and P4: one training step against a loop written by hand."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.goals import GOALS, Report
from bench.method import Bench, Sample, Series
from bench.subjects import bare, batch_of, learner_of, model_of
from bench.team import Team


def measure(bench: Bench, report: Report, subject: str) -> None:
    """P1, P4 and the price of checkpointed backprop, with one thread."""
    model, (x, y) = model_of(subject, bench.quick), batch_of(bench.quick)
    learners = {
        name: learner_of(model, name, model.cut(4)) for name in ("backprop", "dgl linear", "dgl mlp_sr", "checkpoint")
    }
    variants: dict[str, Callable[[], None]] = {"bare": bare(model, x, y)}
    variants |= {name: (lambda learner=learner: learner.learn(x, y)) for name, learner in learners.items()}
    found = bench.run(variants, bench.rounds(more=2))
    milliseconds = {f"{name}_ms": _milliseconds(series) for name, series in found.items()}
    _against_bare(bench, report, f"{subject}, 1 thread", found)
    for head in ("linear", "mlp_sr"):
        why = _heads(bench, found, head)
        report.add(f"P4 {head}", subject, bench.ratio(found[f"dgl {head}"], found["bare"]), why, **milliseconds)
    more = bench.ratio(found["checkpoint"], found["bare"])
    report.validation.setdefault("checkpointed backprop, time", {})[subject] = more._asdict()


def harness(bench: Bench, report: Report, subject: str, threads: int) -> None:
    """P1 alone."""
    threads = 1 if bench.quick else threads  # two are very slow where the cores are busy
    model, (x, y) = model_of(subject, bench.quick), batch_of(bench.quick)
    learner = learner_of(model, "backprop", model.cut(4))
    torch.set_num_threads(threads)
    variants = {"bare": bare(model, x, y), "backprop": lambda: learner.learn(x, y)}
    found = bench.run(variants, bench.rounds(more=2))
    torch.set_num_threads(1)
    _against_bare(bench, report, f"{subject}, {threads} thread{'s' if threads > 1 else ''}", found)


def _against_bare(bench: Bench, report: Report, subject: str, found: dict[str, Series]) -> None:
    slower = bench.ratio(found["backprop"], found["bare"])
    times = {f"{name}_ms": _milliseconds(found[name]) for name in ("bare", "backprop")}
    noise = slower.low is not None and slower.low <= GOALS["P1"].limit
    why = "the rounds differ by more than the two steps do" if noise else "what blocks, checks and sums add to a step"
    report.add("P1", subject, slower, why, **times)


def _heads(bench: Bench, found: dict[str, Series], head: str) -> str:
    linear = bench.ratio(found["dgl linear"], found["bare"]).value
    if head == "linear" or linear is None:
        return "all that DGL spares is the input gradient at three borders, and its heads cost"
    return f"without its heads' fully connected layers (linear heads) the step is at {linear:.3f}: the rest is heads"


def defaults(bench: Bench, report: Report, subject: str, threads: int) -> None:
    """P3: the naive loop in a process of its own, because glibc's setting cannot be taken back."""
    threads = 1 if bench.quick else threads
    whole = [[0, len(model_of(subject, bench.quick).units)]]
    with Team(bench, 1, threads, allocator=False) as naive, Team(bench, 1, threads) as ours:
        naive.ask(do="make", name=subject, kind="naive", model=subject)
        ours.ask(do="make", name=subject, kind="harness", model=subject, strategy="backprop", cut=whole)
        actions = {"naive": lambda: _one(naive, subject), "harness": lambda: _one(ours, subject)}
        found = bench.run(actions, bench.rounds(more=2))
    times = {f"{name}_ms": _milliseconds(series) for name, series in found.items()}
    why = "what allocator and layout save depends on the machine: see the milliseconds of both"
    report.add("P3", f"{subject}, {threads} threads", bench.ratio(found["harness"], found["naive"]), why, **times)


def _one(team: Team, name: str) -> Sample | None:
    team.ask(do="run", name=name, steps=1)
    return None


def _milliseconds(series: Series) -> float | None:
    return None if series.median is None else series.median * 1e3
