"""P7 to P11 and P15: two processes with one thread each, against one process and against rivals."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

import torch
from torch import Tensor

from bench.goals import Report
from bench.method import Action, Bench, Sample, Series, between, exact, mark, medians
from bench.processes import Team
from bench.subjects import DNI_WIDTH, alone, batch_of, learner_of, model_of
from locallearn.engine import Learner
from locallearn.models import BlockModel
from locallearn.models.cut import partition

FILL = 2  # batches before the steady state
STEPS = 4  # batches of a sample
TAIL = 1  # batches after it, so that no stage is alone meanwhile
RIVALS: dict[str, dict[str, Any]] = {
    "GPipe 4": {"kind": "gpipe", "micro_batches": 4},
    "GPipe 8": {"kind": "gpipe", "micro_batches": 8},
    "1F1B 4": {"kind": "1f1b", "micro_batches": 4},
    "1F1B 8": {"kind": "1f1b", "micro_batches": 8},
    "DDP 2 x 64": {"kind": "ddp"},
}
MLP_SR = "dgl mlp_sr"
WEIGHED = ("dgl", "dgl 8", "backprop 4", *RIVALS)
NEIGHBORS = ("dni", "loco")
STREAMS = ("dgl", "unconnected", *NEIGHBORS)
SERIAL = ("dgl 2", *NEIGHBORS)


def measure(bench: Bench, report: Report, subject: str) -> None:
    """All that needs two processes, for one model. PyTorch has one thread here, too."""
    model, (x, y) = model_of(subject, bench.quick), batch_of(bench.quick)
    neighbors = {"dni": "dni narrow" if subject == "vgg16" else "dni", "loco": "loco"}
    strategies = {"dgl 2": MLP_SR, "dgl 3": MLP_SR, "dgl 4": MLP_SR, "backprop": "backprop", "dfa": "dfa", **neighbors}
    units = unit_seconds(model, x)
    cuts = {f"dgl {k}": cut_by_time(model, MLP_SR, k, x, y, units) for k in (2, 3, 4)}
    cuts |= {name: cut_by_time(model, strategy, 4, x, y, units) for name, strategy in neighbors.items()}
    cuts["backprop"] = cuts["dfa"] = cut_by_time(model, "backprop", 2, x, y, units)
    apart = {
        name: list(bench.run(blocks_alone(model, strategies[name], cut, x, y), bench.rounds()).values())
        for name, cut in cuts.items()
    }
    for k in (2, 3, 4):
        _even(bench, report, subject, k, cuts[f"dgl {k}"], apart[f"dgl {k}"])
    specs = _specs(subject, cuts, neighbors)
    serial = {f"serial {name}": learner_of(model, strategies[name], cuts[name]) for name in SERIAL}
    for learner in serial.values():
        learner.learn(x, y)  # every segment of the others begins with steps that are not measured
    actions: dict[str, Action] = {
        n: (lambda learner=learner: _steps(bench, learner, x, y)) for n, learner in serial.items()
    }
    with Team(bench, 2) as team:
        for name, spec in specs.items():
            team.make(name, **spec)
            actions[name] = lambda name=name: segment(team, name, name in STREAMS)
        series = bench.run(actions, bench.rounds(), warm=False)
    seconds = {name: [series.median for series in blocks] for name, blocks in apart.items()}
    _judge(bench, report, subject, series, seconds)
    report.validation[subject] = {
        "units_s": units,
        "cuts": {name: pairs(cut) for name, cut in cuts.items()},
        "blocks_s": seconds,
        "step_s": {name: series.median for name, series in series.items()},
        "routes": {"none": "dgl", "neighbor": "dni", "chain": "backprop 4", "broadcast": "dfa"},
    }


def weigh(bench: Bench, report: Report, subject: str) -> None:
    """P10: what the larger of two processes holds, under DGL and under its rivals."""
    model, (x, y) = model_of(subject, bench.quick), batch_of(bench.quick)
    units = unit_seconds(model, x)
    cuts = {name: cut_by_time(model, on, 2, x, y, units) for name, on in (("dgl 2", MLP_SR), ("backprop", "backprop"))}
    cuts["dfa"] = cuts["backprop"]
    with Team(bench, 2) as team:
        specs = _specs(subject, cuts, {})
        specs["dgl 8"] = {**specs["dgl"], "micro_batches": 8}
        for name in WEIGHED:
            team.make(name, **specs[name])
        held = {name: max(team.weigh(name), key=lambda of_rank: of_rank.total) for name in WEIGHED}
    megabytes = {name: [round(n / 1e6, 1) for n in own] for name, own in held.items()}
    least = min(held[name].total for name in RIVALS if "micro_batches" in RIVALS[name])
    ratios = {"P10 micro-batches": least, "P10 DDP": held["DDP 2 x 64"].total}
    for goal, rival in ratios.items():
        report.add(goal, subject, exact(held["dgl"].total / rival), judged=False, MB=megabytes)
        report.add(goal, f"{subject}, DGL in 8 parts", exact(held["dgl 8"].total / rival), judged=False)


def pairs(cut: list[range]) -> list[list[int]]:
    return [[block.start, block.stop] for block in cut]


def _even(bench: Bench, report: Report, subject: str, k: int, cut: list[range], blocks: list[Series]) -> None:
    """P11: seconds of each block by itself, and how even they are."""
    seconds = [series.median for series in blocks]
    sums = bench.joined(blocks, lambda *times: sum(times) / max(times))
    times = ", ".join("?" if s is None else f"{s * 1e3:.0f}" for s in seconds)
    why = f"units cannot be divided and heads count too: the blocks of the best cut take {times} ms"
    report.add(f"P11 K={k}", subject, sums, why, cut=pairs(cut), blocks_s=seconds)


def _specs(subject: str, cuts: Mapping[str, list[range]], neighbors: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The variants of the two workers. NEIGHBOR routes have two blocks a stage: only a stage's last block waits."""
    halves = {"model": subject, "stages": [[0, 1], [1, 2]]}
    two, plain = {**halves, "cut": pairs(cuts["dgl 2"])}, {**halves, "cut": pairs(cuts["backprop"])}
    four = {"model": subject, "stages": [[0, 2], [2, 4]], "kind": "pipeline"}
    return {
        "dgl": {**two, "kind": "pipeline", "strategy": MLP_SR},
        "unconnected": {**two, "kind": "unconnected", "strategy": MLP_SR},
        **{name: {**four, "strategy": strategy, "cut": pairs(cuts[name])} for name, strategy in neighbors.items()},
        "backprop 4": {**plain, "kind": "pipeline", "strategy": "backprop", "micro_batches": 4},
        "dfa": {**plain, "kind": "pipeline", "strategy": "dfa"},
        **{name: {**plain, **spec} for name, spec in RIVALS.items()},
    }


def _steps(bench: Bench, learner: Learner, x: Tensor, y: Tensor) -> Sample:
    """Seconds per batch in this process alone."""
    start = mark(bench.pids)
    for _ in range(STEPS // 2):
        learner.learn(x, y)
    return between(start, mark(bench.pids), STEPS // 2)


def segment(team: Team, name: str, streams: bool) -> Sample:
    """Seconds per batch in the steady state, at the last stage; unconnected: at the slower one. What does not stream,
    but flushes after each batch, has no other state."""
    fill, steps, tail = (FILL, STEPS, TAIL) if streams else (1, STEPS // 2, 0)
    marks = team.run(name, fill + steps + tail)
    samples = [between(of_rank[fill], of_rank[fill + steps], steps) for of_rank in marks]
    return max(samples) if name == "unconnected" else samples[-1]


def _judge(
    bench: Bench, report: Report, subject: str, series: Mapping[str, Series], apart: Mapping[str, list[float | None]]
) -> None:
    """P7, P8, P9 and P15 from the seconds per batch of every variant."""
    dgl, serial, ceiling = series["dgl"], series["serial dgl 2"], series["unconnected"]
    bound, top = bench.ratio(serial, ceiling), bench.ratio(ceiling, dgl)
    why = (
        f"the blocks by themselves allow {_bound(apart['dgl 2'], 1)} (sum / max), both at once on this machine "
        f"{_text(bound.value)}; messages and waiting leave {_text(top.value)} of that"
    )
    report.add("P7", subject, bench.ratio(serial, dgl), why, **medians(series, "ms"))
    alike = f"the pipeline takes {_ms(dgl)} ms a batch, its slower stage unconnected {_ms(ceiling)} ms"
    report.add("P8", subject, top, f"{alike}: the rest is messages and waiting")
    micro = [series[name] for name in RIVALS if "micro_batches" in RIVALS[name]]
    best = bench.joined([dgl, *micro], lambda ours, *theirs: min(theirs) / ours)
    rivals = ", ".join(f"{name} {_ms(series[name])} ms" for name in RIVALS)
    report.add("P9 micro-batches", subject, best, f"{alike}; the alternatives: {rivals}")
    report.add("P9 DDP", subject, bench.ratio(series["DDP 2 x 64"], dgl), f"{alike}; the alternatives: {rivals}")
    for name in NEIGHBORS:
        why = (
            f"the stages by themselves allow {_bound(apart[name], 2)} (sum / max); the last block of the lower stage "
            "waits before each forward for the feedback to the batch before"
        )
        speed = bench.ratio(series[f"serial {name}"], series[name])
        about = f", synthesizers {DNI_WIDTH} wide" if name == "dni" and subject == "vgg16" else ""
        report.add(f"P15 {name}", f"{subject}, 4 blocks{about}", speed, why, blocks_s=apart[name])


def _bound(blocks: list[float | None], per_stage: int) -> str:
    """The sum over the slowest stage of measured blocks."""
    known = [seconds for seconds in blocks if seconds is not None]
    if len(known) < len(blocks):
        return "?"
    stages = [sum(known[i : i + per_stage]) for i in range(0, len(known), per_stage)]
    return f"{sum(stages) / max(stages):.2f}"


def _ms(series: Series) -> str:
    return "?" if series.median is None else f"{series.median * 1e3:.0f}"


def _text(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"


def unit_seconds(model: BlockModel, x: Tensor) -> list[float]:
    """Forward and backward of each unit on the batch x, in channels_last."""
    seconds, h = [], x
    model = model.to(memory_format=torch.channels_last).train()
    for unit in model.units:
        h = h.detach().requires_grad_()
        gradient = torch.randn_like(unit(h))
        seconds.append(_seconds(lambda unit=unit, h=h, gradient=gradient: unit(h).backward(gradient), 2))
        with torch.no_grad():
            h = unit(h)
    model.zero_grad(set_to_none=True)
    return seconds


def blocks_alone(
    model: BlockModel, strategy: str, cut: list[range], x: Tensor, y: Tensor
) -> dict[str, Callable[[], None]]:
    """One step of each block by itself: units, heads, synthesizers, optimizer."""
    names = (f"block {k}" for k in range(len(cut)))
    return {name: alone(model, strategy, cut, range(k, k + 1), x, y)[1] for k, name in enumerate(names)}


def cut_by_time(
    model: BlockModel, strategy: str, blocks: int, x: Tensor, y: Tensor, units: Sequence[float]
) -> list[range]:
    """The cut whose slowest block is fastest. What a block takes beyond its units (head, optimizer, the input gradient
    it is spared) is measured at a first cut by units alone, and taken to be the same wherever the cut is."""
    first = _ranges(partition(units, blocks))
    measured = [_seconds(step) for step in blocks_alone(model, strategy, first, x, y).values()]
    beyond = [m - sum(units[i] for i in block) for m, block in zip(measured, first, strict=True)]

    def slowest(cut: list[range]) -> float:
        return max(sum(units[i] for i in block) + more for block, more in zip(cut, beyond, strict=True))

    n = len(units)
    return min((_ranges([0, *points, n]) for points in combinations(range(1, n), blocks - 1)), key=slowest)


def _ranges(edges: Sequence[int]) -> list[range]:
    return [range(a, b) for a, b in pairwise(edges)]


def _seconds(step: Callable[[], None], repeats: int = 1) -> float:
    """The fastest of some runs after one to warm up."""
    runs = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        step()
        runs.append(time.perf_counter() - start)
    return min(runs[1:])
