"""All strategies at equal budget on several tasks: average ranks, cost of a step, how soon each reaches a target."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, geometric_mean, median
from typing import Any

import numpy as np

from locallearn.figures import by_strategy, panels
from locallearn.names import ACCURACY, TEST_ACCURACY, VALIDATION, on
from locallearn.plan.operations import backprop_flops, step_flops
from locallearn.report.numbers import interval
from locallearn.runs.folder import RunFolder
from locallearn.runs.read import Run
from locallearn.studies.analysis import Analysis, Runs, markdown_table
from locallearn.training.prepare import prepare
from locallearn.training.saved import saved_experiment

LEVEL = 0.05
TARGET = 0.9
"""The target of a task: this share of the validation accuracy that backprop ends with."""
NAMED = 8
"""How many strategies have a colour in the performance profile; the others are grey, but for backprop."""


class Fair(Analysis):
    """Ranks over tasks with the critical difference of Nemenyi's test, and the performance profile of the time to
    target."""

    def measure(self, runs: Runs) -> dict[str, Any]:
        names = list(next(iter(runs.by_part.values())))
        tasks: dict[str, Any] = {}
        for title, rows in runs.by_part.items():
            ends = [run.history[-1][on(VALIDATION, ACCURACY)] for run in rows["backprop"]]
            target = TARGET * fmean(ends)
            tasks[title] = {
                "target": target,
                "accuracies": {name: [100 * run.summary[TEST_ACCURACY] for run in rows[name]] for name in names},
                "seconds": {name: [_reaches(run, target) for run in rows[name]] for name in names},
                "cost": {name: _cost(rows[name][0]) for name in names},
            }
        means = [[fmean(task["accuracies"][name]) for name in names] for task in tasks.values()]
        ranks, p, critical = friedman(means)
        return {"tasks": tasks, "ranks": dict(zip(names, ranks, strict=True)), "p": p, "critical": critical}

    def draw(self, numbers: dict[str, Any]) -> dict[str, Any]:
        return {"ranks": _ranks(numbers), "profile": _profile(numbers)}

    def tell(self, numbers: dict[str, Any]) -> Iterator[str]:
        ranks, tasks, critical = numbers["ranks"], numbers["tasks"], numbers["critical"]
        targets = ", ".join(f"{title} {100 * task['target']:.1f} %" for title, task in tasks.items())
        yield (
            f"Ranks of the mean test accuracy, 1 the best, in the mean over {len(tasks)} tasks. Friedman's test that "
            f"all are alike: p = {numbers['p']:.2g}. By Nemenyi's test (5 %) two differ if their ranks are at least "
            f"{critical:.1f} apart (Demšar 2006). Cost: FLOPs of a training step as a multiple of backprop's on the "
            "same net (`--dry-run` shows it), the geometric mean over tasks. Then the median seconds to the target, "
            f"{TARGET:.0%} of the validation accuracy that backprop ends with ({targets}), seen once an epoch, "
            "and in brackets how many of the seeds reach it; times are taken beside other runs on the same cores, and "
            "differences below a factor of two tell nothing.\n"
        )
        yield from markdown_table(
            ("strategy", "rank", "cost", *tasks),
            [
                (
                    name,
                    f"{rank:.1f}",
                    f"{geometric_mean(task['cost'][name] for task in tasks.values()):.2f}",
                    *(_to_target(task["seconds"][name]) for task in tasks.values()),
                )
                for name, rank in sorted(ranks.items(), key=lambda item: item[1])
            ],
        )
        apart = [name for name, rank in ranks.items() if abs(rank - ranks["backprop"]) >= critical]
        yield f"\n- Told apart from backprop by ranks over so few tasks: {', '.join(apart) or 'none'}."
        for title, task in tasks.items():
            above = [
                f"{name} {mean:+.2f} [{low:+.2f}, {high:+.2f}]"
                for name, own in task["accuracies"].items()
                for mean, low, high in [_beside(own, task["accuracies"]["backprop"])]
                if low is not None and high is not None and low > 0
            ]
            told = ", ".join(above) or "none"
            yield f"- {title}: above backprop, in points with the 95 % interval over seeds: {told}."
        chance = LEVEL / 2 * (len(ranks) - 1)
        yield f"- If all {len(ranks)} strategies were alike, {chance:.1f} of them would lie above on a task by chance."


def friedman(scores: Sequence[Sequence[float]]) -> tuple[list[float], float, float]:
    """The average rank of each method (1: the highest score; ties share theirs), the p-value of Friedman's test, and
    Nemenyi's critical difference at 5 %: q sqrt(k (k + 1) / (6 n)), q the studentized range over sqrt(2).

    scores  [n tasks][k methods]
    source  Demšar 2006, Statistical comparisons of classifiers over multiple data sets, equations 2 and 4
    """
    from scipy.stats import chi2, rankdata, studentized_range

    ranked = rankdata(-np.asarray(scores), axis=1)
    n, k = ranked.shape
    # as scipy.stats.friedmanchisquare has it, which refuses fewer than three methods or tasks
    spread = (ranked - (k + 1) / 2) ** 2
    statistic = (k - 1) * ((ranked.sum(0) - n * (k + 1) / 2) ** 2).sum() / spread.sum() if spread.any() else 0.0
    q = float(studentized_range.ppf(1 - LEVEL, k, np.inf)) / math.sqrt(2)
    return ranked.mean(0).tolist(), float(chi2.sf(statistic, k - 1)), q * math.sqrt(k * (k + 1) / (6 * n))


def profile(times: Mapping[str, Sequence[float | None]]) -> dict[str, list[float]]:
    """How many times as long as the fastest each method takes for each problem, in rising order; infinite where it
    never gets there (Dolan & Moré 2002). Problems that no method solves say nothing and are left out."""
    columns = [column for column in zip(*times.values(), strict=True) if any(time is not None for time in column)]
    fastest = [min(time for time in column if time is not None) for column in columns]

    def ratios(method: int) -> Iterator[float]:
        for column, least in zip(columns, fastest, strict=True):
            time = column[method]
            yield math.inf if time is None else time / least

    return {name: sorted(ratios(method)) for method, name in enumerate(times)}


def _reaches(run: Run, target: float) -> float | None:
    """Seconds of training until the validation accuracy is first at least the target; None: never."""
    name = on(VALIDATION, ACCURACY)
    return next((record["seconds"] for record in run.history if record.get(name, -math.inf) >= target), None)


def _cost(run: Run) -> float:
    """FLOPs of a training step, as a multiple of backprop's on the same net."""
    learner, _ = prepare(saved_experiment(RunFolder.open(run.path), [])[0])
    return step_flops(learner) / backprop_flops(learner)


def _beside(own: Sequence[float], base: Sequence[float]) -> tuple[float, float | None, float | None]:
    return interval([a - b for a, b in zip(own, base, strict=True)])


def _to_target(seconds: Sequence[float | None]) -> str:
    reached = [value for value in seconds if value is not None]
    return f"{median(reached):.1f} ({len(reached)})" if reached else "never"


def _ranks(numbers: dict[str, Any]) -> Any:
    """The average ranks as points, with the width of the critical difference from the best one."""
    ordered = sorted(numbers["ranks"].items(), key=lambda item: item[1])
    figure, (axis,) = panels(width=5.0, height=0.6 + 0.14 * len(ordered))
    best = ordered[0][1]
    axis.axvspan(best, best + numbers["critical"], color="0.9", label="within the critical difference of the best")
    for place, (name, rank) in enumerate(ordered):
        axis.plot(rank, place, "o", color=by_strategy(name), markersize=4)
    axis.set_yticks(range(len(ordered)), [name for name, _ in ordered])
    axis.set_ylim(len(ordered) - 0.5, -0.5)
    axis.set(xlabel=f"average rank over {len(numbers['tasks'])} tasks (1: best)", xlim=(0.5, len(ordered) + 0.5))
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def _profile(numbers: dict[str, Any]) -> Any:
    """Which share of all tasks and seeds reaches its target within so many times the fastest time."""
    tasks = numbers["tasks"].values()
    ratios = profile({name: [t for task in tasks for t in task["seconds"][name]] for name in numbers["ranks"]})
    ends = [ratio for own in ratios.values() for ratio in own if math.isfinite(ratio)]
    last = 1.1 * max([2.0, *ends])

    def area(name: str) -> float:
        return sum(math.log(last / ratio) for ratio in ratios[name] if math.isfinite(ratio))

    named = {"backprop", *sorted(ratios, key=area, reverse=True)[:NAMED]}
    figure, (axis,) = panels(width=5.0, height=3.2)
    for name in sorted(ratios, key=lambda name: name in named):
        reached = [ratio for ratio in ratios[name] if math.isfinite(ratio)]
        shares = [(i + 1) / max(1, len(ratios[name])) for i in range(len(reached))]
        colour, label = (by_strategy(name), name) if name in named else ("0.85", None)
        axis.step([1, *reached, last], [0, *shares, (shares or [0])[-1]], where="post", color=colour, label=label)
    axis.set(xscale="log", xlim=(1, last), ylim=(0, 1.02))
    axis.set_xticks([tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500) if tick <= last])
    axis.xaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.set(xlabel="time, as a multiple of the fastest", ylabel="share of tasks and seeds\nthat reach the target")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
