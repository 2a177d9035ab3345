"""A run that is made longer: what its schedule means then.

Whatever follows progress (the learning rate, a warm-up, the phases of a strategy) is either `stretched` over all epochs
of the longer run, or `held` where it ended. Stretched is the default: most schedules end at a rate of zero, at which
nothing would go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from locallearn.config.experiment import Experiment
from locallearn.errors import UserError, unknown
from locallearn.training.saved import Longer

STRETCHED, HELD = "stretched", "held"
NEGLIGIBLE = 1e-6
"""A share of the base rate below which nothing is learned."""


def scheduled_epochs(epochs: int, manifest: Mapping[str, Any]) -> int:
    """The epochs that a schedule runs over, in a run of `epochs`; without a manifest, or in a run that was never made
    longer, all of them."""
    for change in reversed(manifest.get("longer") or []):
        if change["schedule"] == STRETCHED:
            return change["epochs"]
        epochs = change["before"]
    return epochs


def longer(before: Experiment, exp: Experiment, schedule: str) -> Longer | None:
    """The change from an experiment to one of more epochs; None for as many. Raises UserError for what cannot be."""
    settings = exp.settings
    if schedule not in (STRETCHED, HELD):
        raise unknown("schedule", schedule, (STRETCHED, HELD))
    if settings.epochs < before.settings.epochs:
        raise UserError(
            f"epochs={settings.epochs} is less than the {before.settings.epochs} that the run has: resume makes a run "
            "longer, never shorter"
        )
    if settings.epochs == before.settings.epochs:
        return None
    if settings.max_steps is not None:
        raise UserError(
            f"epochs={settings.epochs}: the run ends after max_steps={settings.max_steps}, however many epochs it has; "
            "start one without max_steps"
        )
    if schedule == HELD and exp.optim.factor(1.0) < NEGLIGIBLE:
        raise UserError(
            f"schedule=held: optim.schedule={exp.optim.schedule} ends at a learning rate of 0, at which nothing is "
            "learned; choose schedule=stretched"
        )
    return Longer(before.settings.epochs, settings.epochs, schedule)


def described(change: Longer, exp: Experiment, steps_per_epoch: int, manifest: Mapping[str, Any]) -> str:
    """What a change means, in a sentence for the console. `manifest` is that of the longer run."""
    rates = []
    earlier = {"longer": manifest["longer"][:-1]}
    for epochs in (scheduled_epochs(change.before, earlier), scheduled_epochs(change.epochs, manifest)):
        rates.append(exp.optim.lr * exp.optim.factor(min(1.0, change.step / (epochs * steps_per_epoch))))
    text = f"it goes on to epoch {change.epochs}, not {change.before}, and its schedule ({exp.optim.schedule}) is "
    if change.schedule == HELD:
        return f"{text}held: the learning rate stays at {rates[1]:.3g}"
    return f"{text}stretched over all of them: here the learning rate is {rates[1]:.3g}, and was {rates[0]:.3g}"
