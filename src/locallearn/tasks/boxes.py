"""Boxes (x1, y1, x2, y2): how much two of them agree, and which positions of a detector answer for which object."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

LEAST = 1e-7  # the least side and area of a box that a quotient sees


def ciou(a: Tensor, b: Tensor) -> Tensor:
    """Complete IoU of boxes [..., 4] and [..., 4], broadcast (Zheng et al. 2020): at most 1, for equal boxes; below 0
    for boxes far from each other.

    CIoU = IoU - rho^2 / c^2 - alpha v, with rho the distance of the centres, c the diagonal of the box round both,
    v = 4 / pi^2 (atan(w/h) - atan(w'/h'))^2 and alpha = v / (1 - IoU + v), which has no gradient. Finite for boxes
    without an area, too.
    """
    size_a, size_b = ((box[..., 2:] - box[..., :2]).clamp(min=LEAST) for box in (a, b))
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    area = size_a.prod(-1) + size_b.prod(-1) - overlap
    iou = overlap / area.clamp(min=LEAST)
    apart = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]).square().sum(-1) / 4
    around = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    angle_a, angle_b = (torch.atan(size[..., 0] / size[..., 1]) for size in (size_a, size_b))
    v = 4 / math.pi**2 * (angle_a - angle_b).square()
    with torch.no_grad():
        alpha = v / (1 - iou + v).clamp(min=LEAST)
    return iou - apart / around.square().sum(-1).clamp(min=LEAST) - alpha * v


class Assigned(NamedTuple):
    """What each position of each image is to answer.

    weight  t in [0, 1], 0 for positions that answer for nothing [B, A]
    classes   of the object, int64 [B, A], and its `boxes` [B, A, 4]; anything where the weight is 0
    """

    weight: Tensor
    classes: Tensor
    boxes: Tensor


@torch.no_grad()
def assigned(
    logits: Tensor, boxes: Tensor, centres: Tensor, y: Tensor, topk: int, alpha: float, beta: float
) -> Assigned:
    """Task-aligned assignment (Feng et al. 2021, "TOOD", as YOLOv9 has it).

    An object g takes, of the positions whose centre lies inside it, the `topk` with the largest alignment
    m = sigmoid(logit of its class)^alpha max(CIoU, 0)^beta. A position that several objects take goes to the one among
    them with the largest CIoU. Its weight is t = m O_g / (M_g + 1e-9), with the largest m and CIoU of g's positions.

    Args:
        logits: [B, A, classes].
        boxes: What the positions answer now, [B, A, 4].
        centres: Of the positions, [B, A, 2], all in pixels of the input.
        y: [B, M, 5]: class, x1, y1, x2, y2; class -1 pads.
    """
    there = y[..., 0] >= 0
    unit = torch.cat([y.new_zeros(2), y.new_ones(2)])
    truth = torch.where(there[..., None], y[..., 1:], unit).to(boxes.dtype)  # [B, M, 4]
    classes = y[..., 0].clamp(min=0).long()  # [B, M]
    overlap = ciou(boxes[:, None], truth[:, :, None]).clamp(min=0)  # [B, M, A]
    score = logits.sigmoid().transpose(1, 2)  # [B, classes, A]
    score = score.gather(1, classes[..., None].expand(-1, -1, score.shape[2]))
    aligned = score**alpha * overlap**beta
    x, y_ = centres[:, None, :, 0], centres[:, None, :, 1]  # [B, 1, A]
    left, top, right, bottom = (truth[:, :, None, side] for side in range(4))  # [B, M, 1]
    inside = torch.stack([x - left, y_ - top, right - x, bottom - y_]).amin(0) > 1e-9
    inside &= there[..., None]
    best = aligned.masked_fill(~inside, -1).topk(min(topk, aligned.shape[2]), dim=2).indices
    taken = torch.zeros_like(inside).scatter_(2, best, True) & inside
    owner = overlap.masked_fill(~taken, -1).argmax(dim=1, keepdim=True)  # [B, 1, A]
    taken &= torch.arange(taken.shape[1], device=y.device)[:, None] == owner
    own = aligned * taken
    weight = own * (overlap * taken).amax(2, keepdim=True) / (own.amax(2, keepdim=True) + 1e-9)
    of_owner = truth.gather(1, owner[:, 0, :, None].expand(-1, -1, 4))
    return Assigned(weight.sum(1), classes.gather(1, owner[:, 0]), of_owner)
