"""What `locallearn plan` predicts for two processes on this machine, beside what two processes take:

python scripts/check_plan.py                   # some 15 minutes on two idle cores; prints the table of docs/plan.md

Predicted and measured in turn, within the same minutes: what else the machine does hits both. Batch 128, two stages,
one thread each.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles

import torch

sys.path.insert(0, str(Path(__file__).parent))

from bench.method import Bench
from bench.pipeline import cut_by_time, pairs, segment, unit_seconds
from bench.processes import Team
from bench.subjects import batch_of, learner_of, model_of

from locallearn.plan.link import LinkCost, measure_link
from locallearn.plan.measure import BlockTimes, block_costs, block_times, middle
from locallearn.plan.schedules import predict
from locallearn.training.environment import keep_freed_memory

ROUTES = {
    "none": ("dgl mlp_sr", 2, 1),
    "neighbor": ("dni", 4, 1),
    "chain": ("backprop", 2, 4),
    "broadcast": ("dfa", 2, 1),
}
"""The strategy of a route, its blocks, and the parts of a batch."""
HEAD = """A message takes {}.

| model | route | strategy | measured ms (quartiles) | predicted ms | error |
|---|---|---|---|---|---|"""


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--models", nargs="+", default=["resnet32", "vgg16"], help="models to compare")
    ask.add_argument("--rounds", type=int, default=7, help="rounds of measurement and prediction")
    asked = ask.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    link = measure_link()
    print(HEAD.format(link))
    for subject in asked.models:
        for row in compared(subject, asked.rounds, link):
            print(row, flush=True)


def compared(subject: str, rounds: int, link: LinkCost) -> Iterator[str]:
    """A row of the table for each route."""
    model, (x, y) = model_of(subject, quick=False), batch_of(quick=False)
    units = unit_seconds(model, x)
    names = {r: "dni narrow" if (s, subject) == ("dni", "vgg16") else s for r, (s, _, _) in ROUTES.items()}
    cuts = {r: cut_by_time(model, names[r], blocks, x, y, units) for r, (_, blocks, _) in ROUTES.items()}
    learners = {r: learner_of(model, names[r], cuts[r], micro_batches=m) for r, (_, _, m) in ROUTES.items()}
    measured: dict[str, list[float]] = {r: [] for r in ROUTES}
    times: dict[str, list[list[BlockTimes]]] = {r: [] for r in ROUTES}
    with Team(Bench(rounds, quick=False), 2) as team:
        for route, (_, blocks, m) in ROUTES.items():
            stages, cut = [[0, blocks // 2], [blocks // 2, blocks]], pairs(cuts[route])
            about = {"strategy": names[route], "micro_batches": m}
            team.make(route, kind="pipeline", model=subject, stages=stages, cut=cut, **about)
        for _ in range(rounds):
            for route, (_, _, m) in ROUTES.items():
                measured[route].append(segment(team, route, route in ("none", "neighbor")).seconds)
                times[route].append(block_times(learners[route], len(x), m, samples=len(x), repeats=1))
    for route, (_, blocks, m) in ROUTES.items():
        costs = block_costs(learners[route], len(x), middle(*times[route]))
        predicted = predict(route, [costs[: blocks // 2], costs[blocks // 2 :]], m, link).step_seconds
        low, here, high = (1e3 * seconds for seconds in quantiles(measured[route], n=4))
        error = f"{100 * (1e3 * predicted / here - 1):+.0f} %"
        found = f"{here:.0f} ({low:.0f} to {high:.0f}) | {predicted * 1e3:.0f} | {error}"
        yield f"| {subject} | {route} | {names[route]} | {found} |"


if __name__ == "__main__":
    main()
