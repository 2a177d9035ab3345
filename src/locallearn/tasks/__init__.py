"""The tasks beside classification, one file each; `TASKS` has them all by name."""

from locallearn.task import CLASSES, Classification, Task
from locallearn.tasks.detection import Detection
from locallearn.tasks.multilabel import Multilabel
from locallearn.tasks.regression import Regression
from locallearn.tasks.segmentation import Segmentation
from locallearn.tasks.tokens import Tokens

TASKS: dict[str, type[Task]] = {
    task.kind: task for task in (Classification, Detection, Multilabel, Regression, Segmentation, Tokens)
}

__all__ = [
    "CLASSES",
    "TASKS",
    "Classification",
    "Detection",
    "Multilabel",
    "Regression",
    "Segmentation",
    "Task",
    "Tokens",
]
