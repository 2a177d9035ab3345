"""Half the squared error to a one-hot target, for rules that are made for it."""

from __future__ import annotations

from locallearn.contract import BlockSpec
from locallearn.errors import UserError
from locallearn.task import CLASSES


def plain_targets(spec: BlockSpec) -> None:
    """Raise UserError where the data ask for a loss over classes that the squared error does not have."""
    if spec.task != CLASSES:
        raise UserError(
            "strategy.output=squared has no loss over classes, so data.smoothing and data.class_weights must be off: "
            "leave them out, or choose strategy.output=task"
        )
