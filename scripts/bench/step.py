"""P1, P3, P4, P18 and P19: one training step against a loop written by hand."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.goals import GOALS, Report
from bench.method import Bench, Sample, Series, medians, spent
from bench.processes import Team
from bench.subjects import CLASSES, OPTIM, bare, batch_of, by_hand, learner_of, model_of, optimizer_of
from locallearn.contract import Size
from locallearn.engine import Adam, Learner, Optim
from locallearn.models import BlockModel
from locallearn.models.plain import lenet, mlp
from locallearn.models.resnet import cifar_resnet
from locallearn.runs.folder import RunFolder
from locallearn.runs.recorder import Recorder
from locallearn.runtime.world import World
from locallearn.training.running import RunningNumbers
from locallearn.training.saving import sums_of

SAMPLE_SECONDS = 0.03
ROUNDS = 150
SMALL: dict[str, tuple[Callable[[Size, int], BlockModel], Size]] = {
    "mlp": (lambda image, classes: mlp(image, classes, width=1024, depth=3), (1, 28, 28)),
    "lenet": (lenet, (1, 28, 28)),
    "resnet20": (lambda image, classes: cifar_resnet(image, classes, depth=20), (3, 32, 32)),
}
OPTIMS: dict[str, Optim] = {"sgd": OPTIM, "adam": Adam(lr=1e-3, schedule="constant")}


def measure(bench: Bench, report: Report, subject: str, threads: int = 1, only_harness: bool = False) -> None:
    """P1, and beside it P4 and the price of checkpointed backprop."""
    threads = 1 if bench.quick else threads  # two are very slow where the cores are busy
    model, (x, y) = model_of(subject, bench.quick), batch_of(bench.quick)
    names = ("backprop",) if only_harness else ("backprop", "dgl linear", "dgl mlp_sr", "checkpoint")
    learners = {name: learner_of(model, name, model.cut(4)) for name in names}
    torch.set_num_threads(threads)
    variants: dict[str, Callable[[], None]] = {"bare": bare(model, x, y)}
    variants |= {name: (lambda learner=learner: learner.learn(x, y)) for name, learner in learners.items()}
    series = bench.run(variants, bench.rounds(more=2))
    torch.set_num_threads(1)
    _against_bare(bench, report, f"{subject}, {threads} thread{'s' if threads > 1 else ''}", series)
    if only_harness:
        return
    for head in ("linear", "mlp_sr"):
        why = _heads(bench, series, head)
        report.add(
            f"P4 {head}", subject, bench.ratio(series[f"dgl {head}"], series["bare"]), why, **medians(series, "ms")
        )
    more = bench.ratio(series["checkpoint"], series["bare"])
    report.validation.setdefault("checkpointed backprop, time", {})[subject] = more._asdict()


def _against_bare(bench: Bench, report: Report, subject: str, series: Mapping[str, Series]) -> None:
    slower = bench.ratio(series["backprop"], series["bare"])
    noise = slower.low is not None and slower.low <= GOALS["P1"].limit
    why = (
        "the rounds differ by more than the two variants do" if noise else "what blocks, checks and sums add to a step"
    )
    report.add("P1", subject, slower, why, **medians({name: series[name] for name in ("bare", "backprop")}, "ms"))


def _heads(bench: Bench, series: Mapping[str, Series], head: str) -> str:
    linear = bench.ratio(series["dgl linear"], series["bare"]).value
    if head == "linear" or linear is None:
        return "all that DGL saves is the input gradient at three borders, and its heads cost time"
    return f"without its heads' fully connected layers (linear heads) the step is at {linear:.3f}: the rest is heads"


def defaults(bench: Bench, report: Report, subject: str, threads: int) -> None:
    """P3: the naive loop in a process of its own, because glibc's setting cannot be taken back."""
    threads = 1 if bench.quick else threads
    whole = [[0, len(model_of(subject, bench.quick).units)]]
    with Team(bench, 1, threads, allocator=False) as naive, Team(bench, 1, threads) as ours:
        naive.make(subject, "naive", model=subject)
        ours.make(subject, "harness", model=subject, strategy="backprop", cut=whole)
        teams = {"naive": naive, "harness": ours}
        actions = {name: partial(team.run, subject, 1) for name, team in teams.items()}
        series = bench.run(actions, bench.rounds(more=2))
    why = "what allocator and layout save depends on the machine: see the milliseconds of both"
    ratio = bench.ratio(series["harness"], series["naive"])
    report.add("P3", f"{subject}, {threads} threads", ratio, why, **medians(series, "ms"))


def small(bench: Bench, report: Report, name: str) -> None:
    """P18: nets so small that what the harness adds to a step shows, down to 2 %. Backprop and DGL, with SGD and with
    Adam, fused optimizers on both sides, in CPU time, alternating every few milliseconds."""
    build, image = SMALL[name]
    torch.manual_seed(0)
    model = build(image, CLASSES)
    x = torch.randn(64, *image).contiguous(memory_format=torch.channels_last)
    y = torch.randint(CLASSES, (64,))
    for optimizer, strategy in (("sgd", "backprop"), ("adam", "backprop"), ("sgd", "dgl linear")):
        optim, cut = OPTIMS[optimizer], model.cut(min(4, len(model.units)))
        ours, theirs = (learner_of(model, strategy, cut, optim) for _ in range(2))
        step = by_hand(theirs.model, optim) if strategy == "backprop" else _decoupled(theirs)
        variants = {"harness": lambda ours=ours: ours.learn(x, y), "bare": lambda step=step: step(x, y)}
        with ours.stage.random_state:
            steps = max(1, round(SAMPLE_SECONDS / max(spent(variants["bare"], 5).seconds, 1e-6)))
            timed = {name: partial(spent, action, steps) for name, action in variants.items()}
            series = bench.run(timed, 6 if bench.quick else ROUNDS)
        parts = medians(series, "ms")
        more = (parts["harness_ms"] or 0.0) - (parts["bare_ms"] or 0.0)
        why = f"{more:.2f} ms more for {len(cut)} blocks: each has an optimizer, an autograd call and two seeds"
        on = f"{strategy.split()[0]}, {optimizer}, {len(cut)} blocks, batch 64"
        report.add(f"P18 {name}", on, bench.ratio(series["harness"], series["bare"]), why, **parts)


def logging(bench: Bench, report: Report, name: str) -> None:
    """P19: what the record of the last 50 steps costs, of backprop and DGL. Counting the batches that were put by is a
    part of it that later steps need not pay."""
    build, image = SMALL[name]
    torch.manual_seed(0)
    model, every = build(image, CLASSES), 5 if bench.quick else 50
    x, y = torch.randn(64, *image).contiguous(memory_format=torch.channels_last), torch.randint(CLASSES, (64,))
    for strategy in ("backprop", "dgl linear"):
        learner = learner_of(model, strategy, model.cut(min(4, len(model.units))))
        with tempfile.TemporaryDirectory() as folder, learner.stage.random_state:
            recorder = Recorder(RunFolder(Path(folder)))
            running = RunningNumbers(every, learner, 64, World(), recorder.log)

            def percent(learner: Learner = learner, running: RunningNumbers = running) -> Sample:
                steps = spent(lambda: learner.learn(x, y), every)
                at = learner.step_count + 0.5
                record = spent(lambda: running.record(at, 0.0, sums_of(learner), {}), 1)
                return Sample(100 * record.seconds / (every * steps.seconds), 0.0)

            running.start()
            series = bench.run({"percent": percent}, 2 if bench.quick else 20)
            recorder.close("done", {})
        why = "reading the sums of every block, and one line of JSON"
        report.add("P19", f"{name}, {strategy.split()[0]}, batch 64", bench.single(series["percent"]), why)


def _decoupled(learner: Learner) -> Callable[[Tensor, Tensor], None]:
    """One step of DGL as its published code takes it: for each block a forward, a loss, a backward, a step."""
    parts = []
    for block in learner.blocks:
        head = block.head or block.auxiliary["classifier"]
        parts.append((block.layers.train(), head.train(), optimizer_of(block.layers, head)))

    def step(x: Tensor, y: Tensor) -> None:
        h = x
        for layers, head, optimizer in parts:
            h = layers(h.detach())
            optimizer.zero_grad()
            F.cross_entropy(head(h), y).backward()
            optimizer.step()

    return step
