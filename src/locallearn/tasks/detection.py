"""Objects in images: the class and the box of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn import functional as F

from locallearn.errors import UserError
from locallearn.task import BOXES, DETECTION, Task, not_a_tensor
from locallearn.tasks.boxes import assigned, ciou
from locallearn.tasks.precision import THRESHOLDS, average_precisions
from locallearn.tasks.sizes import EDGES, by_size

OF_ANCHOR = 3  # x and y of a position's centre and its stride, in pixels of the input: the first columns of an answer
LEAST_SCORE = 1e-3
SAME = 0.7  # IoU above which two boxes of one class are one object
KEPT = 300  # boxes of an image


class Answers(NamedTuple):
    """The parts of answers z [B, A, 3 + 4 R + classes], in at least float32.

    centres [B, A, 2] and stride [B, A, 1] in pixels, bins [B, A, 4, R], logits [B, A, classes]
    """

    centres: Tensor
    stride: Tensor
    bins: Tensor
    logits: Tensor

    @classmethod
    def of(cls, z: Tensor, classes: int) -> Answers:
        """Raises UserError for answers that leave no bins for each side of a box."""
        bins, rest = divmod(z.shape[-1] - OF_ANCHOR - classes, 4)
        if z.dim() != 3 or rest or bins < 2:
            raise UserError(
                f"answers {list(z.shape)} for boxes of {classes} classes: must be [B, positions, 3 + 4 bins + "
                f"{classes}], with at least 2 bins, as a DetectHead gives them"
            )
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        centres, stride, sides, logits = z.split([2, 1, 4 * bins, classes], dim=2)
        return cls(centres, stride, sides.unflatten(2, (4, bins)), logits)

    @property
    def boxes(self) -> Tensor:
        """The expected distances of the four sides from the centre, as boxes [B, A, 4] in pixels."""
        cells = torch.arange(self.bins.shape[3], dtype=self.bins.dtype, device=self.bins.device)
        left_top, right_bottom = ((self.bins.softmax(3) * cells).sum(3) * self.stride).chunk(2, dim=2)
        return torch.cat([self.centres - left_top, self.centres + right_bottom], dim=2)


@dataclass(frozen=True)
class Detection(Task):
    """Boxes: y float32 [B, M, 5] = class, x1, y1, x2, y2 in pixels of the input, class -1 pads; answers z as `Answers`
    has them, one for each of A positions.

    With the weights t of `boxes.assigned` and S = max(sum t, 1), both over the batch:

        L = 7.5 sum t (1 - CIoU) / S + 0.5 sum BCE(logits, t at the class) / S + 1.5 sum t DFL / S

    DFL (Li et al. 2020) is the cross-entropy of a side's bins to the two neighbours of its distance in cells, weighted
    by nearness, a mean over the sides. The score is COCO's average precision, `average_precisions` over classes and
    IoU 0.5 to 0.95; `ap_NAME` is that of a class. With the extra `detection` there are `ap_small`, `ap_medium` and
    `ap_large`, too.

    names  of the classes
    topk, alpha, beta  see `boxes.assigned`
    box_weight, class_weight, dfl_weight  of the three terms
    scale  how large a pixel of the images as they were taken is to the net, for the sizes of COCO
    """

    names: tuple[str, ...] = ()
    topk: Annotated[int, Ge(1)] = 10
    alpha: Annotated[float, Gt(0)] = 0.5
    beta: Annotated[float, Gt(0)] = 6.0
    box_weight: Annotated[float, Ge(0)] = 7.5
    class_weight: Annotated[float, Ge(0)] = 0.5
    dfl_weight: Annotated[float, Ge(0)] = 1.5
    scale: Annotated[float, Gt(0)] = 1.0
    kind: ClassVar[str] = DETECTION
    wanted: ClassVar[str] = "the class and the box of each object"
    form: ClassVar[str] = BOXES
    score: ClassVar[str] = "ap"
    inner: ClassVar[frozenset[str]] = frozenset({"loss"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.names or len(set(self.names)) < len(self.names):
            raise UserError(f"task.names={list(self.names)}: give each class a name of its own, as Detection(('cat',))")

    @property
    def metrics(self) -> Mapping[str, bool]:  # type: ignore[override]  # it has one for each class
        names = *(f"ap_{name}" for name in self.names), *(f"ap_{size}" for size in EDGES)
        return {"loss": False} | dict.fromkeys(("ap", "ap50", "ap75", *names), True)

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        answers = Answers.of(z, len(self.names))
        boxes = answers.boxes
        goal = assigned(answers.logits, boxes, answers.centres, y, self.topk, self.alpha, self.beta)
        total = goal.weight.sum().clamp(min=1)
        of_class = goal.classes[..., None] == torch.arange(len(self.names), device=z.device)
        right = F.binary_cross_entropy_with_logits(answers.logits, goal.weight[..., None] * of_class, reduction="sum")
        apart = (goal.weight * (1 - ciou(boxes, goal.boxes))).sum()
        sides = torch.cat([answers.centres - goal.boxes[..., :2], goal.boxes[..., 2:] - answers.centres], dim=2)
        distances = (goal.weight * dfl(answers.bins, sides / answers.stride)).sum()
        return (self.box_weight * apart + self.class_weight * right + self.dfl_weight * distances) / total

    def count(self, y: Tensor) -> Tensor:
        """Images: also one without an object is asked for."""
        return y.new_full((), len(y), dtype=torch.int64)

    def sums(self, z: Tensor, y: Tensor) -> Tensor:
        """Nothing adds up but the loss."""
        return z.new_zeros(0, dtype=torch.float64)

    def numbers(self, total: float | None, sums: Sequence[float] | None, count: float) -> dict[str, float]:
        return {} if total is None else {"loss": total / count}

    def rows(self, z: Tensor, y: Tensor) -> Tensor:
        """[B, 300 + M, 6] on the CPU: class, box and score of what was found, then of what is there, with the score 2;
        class -1 pads."""
        found = torch.stack(self.decoded(z))
        there = torch.cat([y.cpu().double(), y.new_full((*y.shape[:2], 1), 2.0).cpu().double()], dim=2)
        return torch.cat([found, there], dim=1)

    def decoded(self, z: Tensor) -> list[Tensor]:
        """Of each image the best 300 boxes with a score above 0.001, float64 [300, 6] on the CPU: class, x1, y1, x2,
        y2, score, the best first; class -1 pads. Of boxes of one class that overlap by more than 0.7 the best stays."""
        from torchvision.ops import batched_nms

        answers = Answers.of(z.detach().cpu(), len(self.names))
        images = []
        for boxes, scores in zip(answers.boxes, answers.logits.sigmoid(), strict=True):
            position, which = (scores > LEAST_SCORE).nonzero(as_tuple=True)
            boxes, scores = boxes[position], scores[position, which]
            kept = batched_nms(boxes, scores, which, SAME)[:KEPT]
            found = torch.cat([which[kept, None], boxes[kept], scores[kept, None]], dim=1).double()
            images.append(F.pad(found, (0, 0, 0, KEPT - len(found)), value=-1.0))
        return images

    def finish(self, rows: Tensor) -> dict[str, float]:
        images = [row.double().numpy() for row in rows]
        precisions: dict[str, np.ndarray] = {}
        for k, name in enumerate(self.names):
            own = [row[row[:, 0] == k] for row in images]
            found, there = ([each[(each[:, 5] > 1) == truth] for each in own] for truth in (False, True))
            of_class = average_precisions(
                [f[:, 1:5] for f in found], [t[:, 1:5] for t in there], [f[:, 5] for f in found]
            )
            if of_class is not None:
                precisions[name] = of_class
        if not precisions:
            return {}
        mean = np.mean([*precisions.values()], axis=0)
        at = {f"ap{round(100 * t)}": float(mean[i]) for i, t in enumerate(THRESHOLDS) if i in (0, 5)}
        of_classes = {f"ap_{name}": float(p.mean()) for name, p in precisions.items()}
        return {"ap": float(mean.mean()), **at, **by_size(images, len(self.names), self.scale), **of_classes}

    def random(self, batch: int, classes: int, image: Sequence[int], generator: torch.Generator) -> Tensor:
        """Three boxes in each image."""
        height, width = image[-2:]
        corners = torch.rand(batch, 3, 2, 2, generator=generator).sort(dim=2).values * torch.tensor([width, height])
        which = torch.randint(classes, (batch, 3, 1), generator=generator)
        low, high = corners.unbind(2)
        return torch.cat([which, low, torch.maximum(high, low + 1)], dim=2)

    def checked(self, y: Any, count: int, classes: int, look: bool = True) -> Tensor:
        if not isinstance(y, Tensor):
            raise not_a_tensor("boxes", y)
        if y.dim() != 3 or len(y) != count or y.shape[2] != 5 or not y.shape[1] or y.is_complex():
            raise UserError(
                f"the boxes are {list(y.shape)} {y.dtype}, but must be [{count}, M, 5]: class, x1, y1, x2, y2 of up to "
                "M objects in each image, with class -1 where there are fewer"
            )
        if classes != len(self.names):
            raise UserError(f"the task names {len(self.names)} classes, but the data have {classes}: name the same")
        y = y.float()
        if look:
            _check_values(y, classes)
        return y


def dfl(bins: Tensor, distances: Tensor) -> Tensor:
    """The distribution focal loss [...] of bins [..., 4, R] for distances [..., 4] in cells, clamped to [0, R - 1.01],
    so that both neighbours are bins; a mean over the sides."""
    distances = distances.clamp(0, bins.shape[-1] - 1.01)
    below = distances.floor()
    nearness = torch.stack([1 - (distances - below), distances - below], dim=-1)
    neighbours = torch.stack([below, below + 1], dim=-1).long()
    return -(bins.log_softmax(-1).gather(-1, neighbours) * nearness).sum(-1).mean(-1)


def _check_values(y: Tensor, classes: int) -> None:
    """Raise UserError for boxes that would train a wrong model."""
    own = y[y[..., 0] >= 0]
    wrong = None
    if not bool(torch.isfinite(y).all()):
        wrong = "a box has a number that is NaN or infinite"
    elif bool((own[:, 0] != own[:, 0].floor()).any()) or (len(own) and int(own[:, 0].max()) >= classes):
        wrong = f"a box of class {float(own[:, 0].max()):g}, but there are {classes} classes, 0 to {classes - 1}"
    elif bool((own[:, 3:] <= own[:, 1:3]).any()):
        wrong = "a box ends before it begins, or has no area"
    if wrong:
        raise UserError(f"{wrong}: correct the boxes (class, x1, y1, x2, y2 in pixels; class -1 pads)")
