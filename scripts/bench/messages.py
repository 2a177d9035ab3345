"""P20, P21, P22: what a message between two processes of this machine takes on each carrier, and the smallest net that
two of them train faster than one."""

from __future__ import annotations

from functools import partial

from bench.goals import Report
from bench.method import Action, Bench, Sample, Series, between, mark, medians
from bench.pipeline import cut_by_time, pairs, unit_seconds
from bench.processes import Team
from bench.subjects import batch_of, learner_of, model_of

CARRIERS = ("ring", "gloo")
SIZES = {"1 KB": 2**10, "100 KB": 100 * 2**10, "1 MB": 2**20, "4 MB": 2**22, "16 MB": 2**24}
TRIPS = {"1 KB": 500, "100 KB": 200, "1 MB": 100, "4 MB": 30, "16 MB": 10}  # there and back, of a sample
MLP, BATCH = "mlp4", 16


def one_way(bench: Bench, report: Report) -> None:
    """P20 and P21: half of the time of a message there and back, each copied in and out, by processes that do nothing
    else."""
    names = {f"{carrier} {size}": (carrier, size) for size in SIZES for carrier in CARRIERS}
    with Team(bench, 2) as team:
        for name, (carrier, size) in names.items():
            trips = 2 if bench.quick else TRIPS[size]
            team.make(name, "messages", wire=carrier, bytes=SIZES[size], trips=trips)
        actions: dict[str, Action] = {
            name: partial(_half, bench, team, name, size) for name, (_, size) in names.items()
        }
        series = bench.run(actions, bench.rounds(more=4))
    parts = medians(series, "us")
    for name, (carrier, size) in names.items():
        found, judged = series[name], carrier == "ring"
        if size == "1 KB":
            small = Series({n: s * 1e6 for n, s in found.kept.items()}, found.dropped)
            why = "two processes must wake each other, and Python builds the frames and the tensors"
            report.add("P20", f"{size}, {carrier}", bench.single(small), why, judged, **parts)
        elif size in ("4 MB", "16 MB"):
            rate = Series({n: SIZES[size] / s / 1e9 for n, s in found.kept.items()}, found.dropped)
            why = "it is copied once into shared memory and once out of it"
            report.add("P21", f"{size}, {carrier}", bench.single(rate), why, judged and size == "4 MB")


def _half(bench: Bench, team: Team, name: str, size: str) -> Sample:
    first, last = team.run(name, 1)[0]
    return between(first, last, 2 * (2 if bench.quick else TRIPS[size]))


def small_net(bench: Bench, report: Report) -> None:
    """P22: an MLP of four layers of 1,024 in two stages, on each carrier, against one process. DGL, linear heads."""
    model, (x, y) = model_of(MLP, bench.quick), batch_of(bench.quick, BATCH)
    cut, steps = cut_by_time(model, "dgl linear", 2, x, y, unit_seconds(model, x)), 4 if bench.quick else 100
    learner = learner_of(model, "dgl linear", cut)
    about = {"model": MLP, "strategy": "dgl linear", "cut": pairs(cut), "stages": [[0, 1], [1, 2]], "batch": BATCH}

    def serial() -> Sample:
        start = mark(bench.pids)
        for _ in range(steps):
            learner.learn(x, y)
        return between(start, mark(bench.pids), steps)

    def staged(team: Team, carrier: str) -> Sample:
        marks = team.run(carrier, steps + steps // 4)[-1]
        return between(marks[steps // 4], marks[-1], steps)

    with Team(bench, 2) as team:
        for carrier in CARRIERS:
            team.make(carrier, "pipeline", wire=carrier, **about)
        actions: dict[str, Action] = {"serial": serial}
        actions |= {carrier: partial(staged, team, carrier) for carrier in CARRIERS}
        series = bench.run(actions, bench.rounds(more=6))
    why = "what the slower stage computes, and the frames, copies and waits of a step"
    for carrier in CARRIERS:
        faster = bench.ratio(series["serial"], series[carrier])
        report.add("P22", f"batch {BATCH}, {carrier}", faster, why, carrier == "ring", **medians(series, "ms"))
