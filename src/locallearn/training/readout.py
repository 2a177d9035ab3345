"""A linear classifier on frozen features: how self-supervised runs are scored, and what any block has learned."""

from __future__ import annotations

from locallearn import names
from locallearn.analysis.readout import features, linear_accuracy
from locallearn.data import Data
from locallearn.engine import Learner

BATCH = 256


def linear_readout(learner: Learner, data: Data) -> dict[str, float]:
    """`linear_accuracy` (of the last block) and `block/00/linear_accuracy`, ...: logistic regression fitted to the
    training split's frozen features without augmentation, scored on the test split.

    Maps are averaged over space and sequences over time. Holds the pooled features of the training split in memory.
    """
    train, labels = features(data.evaluation(data.train, BATCH), learner.features)
    test, truth = features(data.evaluation(data.test, BATCH), learner.features)
    scores = {
        k: {"linear_accuracy": linear_accuracy(fit_on, labels, score_on, truth)}
        for k, (fit_on, score_on) in enumerate(zip(train, test, strict=True))
    }
    return scores[len(train) - 1] | names.of_blocks(scores)
