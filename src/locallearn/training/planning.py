"""`locallearn plan`: build what a run would build, measure its blocks, and predict every schedule."""

from __future__ import annotations

from locallearn.config.experiment import Experiment
from locallearn.engine import Learner
from locallearn.errors import UserError
from locallearn.runtime import draw
from locallearn.runtime.measure import block_costs, block_times
from locallearn.runtime.plan import Measured, Options, rows
from locallearn.runtime.table import render
from locallearn.training.environment import process_settings
from locallearn.training.session import prepare

SAMPLES = 32  # a larger batch is measured with so many


def plan(exp: Experiment, reference: Experiment, options: Options) -> str:
    """The plan as text, and its picture if one was asked for. `reference`: the same run with backprop."""
    if options.picture:
        draw.check()
    with process_settings(exp.settings) as facts:
        learner, data = prepare(exp)
        batch = data.batch(exp.settings.batch_size)
        _check(exp, learner, options, batch)
        cut = options.cut(learner.model, exp.settings.blocks, exp.settings.balance)
        learner = learner if cut == learner.cut else prepare(exp, cut)[0]
        other = learner if reference.strategy == exp.strategy else prepare(reference, cut)[0]
        strategy = _measured(learner, exp.names["strategy"], options, batch)
        backprop = strategy if other is learner else _measured(other, "backprop", options, batch)
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
        return render(title, table, options, model.names, cut)


def _check(exp: Experiment, learner: Learner, options: Options, batch: int) -> None:
    name = exp.names["strategy"]
    if len(exp.strategy.phases(len(learner.blocks))) > 1:
        raise UserError(f"strategy={name} trains its blocks one after the other: there is no pipeline to plan")
    if batch % options.micro_batches or (learner.model.samples and options.micro_batches > 1):
        whole = " as a whole graph" if learner.model.samples else ""
        raise UserError(
            f"micro_batches={options.micro_batches} does not divide a batch of {batch}{whole}; choose a divisor"
        )


def _measured(learner: Learner, name: str, options: Options, batch: int) -> Measured:
    whole = block_costs(learner, batch, SAMPLES)
    times = [c.times for c in whole]
    if options.micro_batches > 1:
        times = block_times(learner, batch, options.micro_batches, SAMPLES)
    parts = [c._replace(times=t) for c, t in zip(whole, times, strict=True)]
    return Measured(name, learner.strategy.route, whole, parts)
