"""Where feedback weights point (Lillicrap, Cownden, Tweed & Akerman 2016, arXiv 1411.0247)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

RCOND = 1e-6
"""Singular values below this share of the largest count as zero."""


class FeedbackAngles(NamedTuple):
    """Degrees between B^T, by which a layer answers, and what it stands for: W^T, or the pseudo-inverse W^+."""

    transpose: float
    pseudo_inverse: float


def feedback_angles(feedback: Tensor, weight: Tensor) -> FeedbackAngles | None:
    """Angles of all numbers of B^T as one vector to those of W^T and of W^+, of B and W [outputs, inputs]. 90 degrees,
    give or take 57 / sqrt(numbers), of a random B. None where one of them is zero."""
    b, w = feedback.detach().double().T, weight.detach().double()
    if not b.any() or not w.any():
        return None
    return FeedbackAngles(_degrees(b, w.T), _degrees(b, torch.linalg.pinv(w, rtol=RCOND)))


def _degrees(a: Tensor, b: Tensor) -> float:
    cosine = float((a * b).sum() / (a.norm() * b.norm()))
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
