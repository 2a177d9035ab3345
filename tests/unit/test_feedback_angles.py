"""Angles of feedback weights: against the pseudo-inverse itself, orthonormal rows, chance, and numpy in a run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from helpers.nets import tiny_batches, tiny_learner, tiny_model
from helpers.strategies import make
from locallearn.analysis.feedback import feedback_angles
from locallearn.probes.alignment import alignment


def random(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_known_angles():
    w = random(4, 9)
    assert feedback_angles(torch.linalg.pinv(w).T, w).pseudo_inverse == pytest.approx(0, abs=1e-5)
    assert feedback_angles(w, w).transpose == pytest.approx(0, abs=1e-5)
    orthonormal = torch.linalg.qr(random(9, 4)).Q.T
    angles = feedback_angles(random(4, 9, seed=1), orthonormal)
    assert angles.transpose == pytest.approx(angles.pseudo_inverse, abs=1e-9)
    found = [feedback_angles(random(10, 20, seed=s), random(10, 20, seed=100 + s)) for s in range(40)]
    assert np.mean([a.transpose for a in found]) == pytest.approx(90, abs=3)
    assert np.std([a.transpose for a in found]) == pytest.approx(57 / math.sqrt(200), rel=0.35)
    assert feedback_angles(torch.zeros(2, 2), torch.ones(2, 2)) is None


def test_the_probe_has_them_where_there_are_feedback_weights():
    x, y = tiny_batches(1)[0]
    learner = tiny_learner(make("fa"), tiny_model(), blocks=2)
    first, last = alignment(learner, x, y)
    assert "transpose_angle" not in first, "convolutions alone"
    layer = learner.blocks[1].head[2]
    b, w = layer.feedback.numpy().T, layer.weight.numpy()
    for name, other in (("transpose", w.T), ("pseudo_inverse", np.linalg.pinv(w))):
        cosine = (b * other).sum() / (np.linalg.norm(b) * np.linalg.norm(other))
        assert last[f"{name}_angle"] == pytest.approx(np.degrees(np.arccos(cosine)), abs=1e-5)
    assert "transpose_angle" not in alignment(tiny_learner(make("dfa"), tiny_model(), blocks=2), x, y)[1]
