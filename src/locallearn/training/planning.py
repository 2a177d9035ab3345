"""`locallearn plan`: build what a run would build, measure its blocks, and predict every schedule."""

from __future__ import annotations

from locallearn.config.experiment import Experiment
from locallearn.engine import Learner
from locallearn.errors import UserError
from locallearn.figures.text import columns
from locallearn.plan import draw
from locallearn.plan.measure import BlockTimes, block_costs, block_times
from locallearn.plan.options import PlanOptions
from locallearn.plan.schedules import Measured, cut_for, rows
from locallearn.plan.table import render
from locallearn.training.environment import process_settings
from locallearn.training.prepare import prepare

SAMPLES = 32  # a larger batch is measured with so many
ROUNDS, REPEATS = 3, 2


def plan(exp: Experiment, reference: Experiment, options: PlanOptions) -> str:
    """The plan as text, and its picture if one was asked for. `reference`: the same run with backprop."""
    if options.picture:
        draw.check()
    with process_settings(exp.settings) as facts:
        learner, data = prepare(exp)
        batch = data.batch(exp.settings.batch_size)
        _check(exp, learner, options, batch)
        cut = cut_for(options, learner.model, exp.settings.blocks, exp.settings.balance)
        learner = learner if cut == learner.cut else prepare(exp, cut)[0]
        other = learner if reference.strategy == exp.strategy else prepare(reference, cut)[0]
        learners = [learner] if other is learner else [learner, other]
        names = [exp.names["strategy"], "backprop"]
        strategy, *rest = _measured(dict(zip(names, learners, strict=False)), options.micro_batches, batch)
        backprop = rest[0] if rest else strategy
        error_bytes = 4 * batch * learner.model.classes
        table = rows(options, strategy, backprop, error_bytes)
        model = learner.model
        copies = f"{options.depth} x " if options.depth > 1 else ""
        title = (
            f"{copies}{model.name} in {len(cut)} blocks on {options.stages} devices, batch {batch}, measured on "
            f"{learner.device} with {facts['threads']} thread{'s' if facts['threads'] > 1 else ''}"
        )
        if options.picture:
            draw.draw(table, options, title)
        return render(title, table, options, model.names, cut, columns())


def _check(exp: Experiment, learner: Learner, options: PlanOptions, batch: int) -> None:
    name = exp.names["strategy"]
    if len(exp.strategy.phases(len(learner.blocks))) > 1:
        raise UserError(f"strategy={name} trains its blocks one after the other: there is no pipeline to plan")
    if batch % options.micro_batches or (learner.model.samples and options.micro_batches > 1):
        whole = " as a whole graph" if learner.model.samples else ""
        raise UserError(
            f"micro_batches={options.micro_batches} does not divide a batch of {batch}{whole}; choose a divisor"
        )


def _measured(learners: dict[str, Learner], parts: int, batch: int) -> list[Measured]:
    """What the blocks of each learner cost, with the batch whole and in `parts`. In turn, so that whatever else the
    machine does hits all alike."""
    best: dict[tuple[str, int], list[BlockTimes]] = {}
    for _ in range(ROUNDS):
        for name, learner in learners.items():
            for m in sorted({1, parts}):
                times = block_times(learner, batch, m, SAMPLES, REPEATS)
                before = best.get((name, m), times)
                best[name, m] = [BlockTimes(*map(min, a, b)) for a, b in zip(before, times, strict=True)]
    found = []
    for name, learner in learners.items():
        whole = block_costs(learner, batch, best[name, 1])
        divided = [c._replace(times=t) for c, t in zip(whole, best[name, parts], strict=True)]
        found.append(Measured(name, learner.strategy.route, whole, divided))
    return found
