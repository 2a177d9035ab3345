"""What is known of samples that are made of parts."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class KnownLevel(NamedTuple):
    """What samples are made of at one level of a hierarchy.

    classes   how many kinds there are
    train, test  which of them, int64 [N, rows, columns], by the place in the store of the training and validation
              samples, and of the test samples
    accuracy  of the best answer there is, mean over the test samples
    bits      that this answer lacks, the mean entropy given the sample
    """

    classes: int
    train: Tensor
    test: Tensor
    accuracy: float
    bits: float
