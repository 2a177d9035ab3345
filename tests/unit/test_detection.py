"""Detection against worked examples, a plain-Python assigner, torchvision's losses and COCO's own evaluation."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import complete_box_iou, complete_box_iou_loss

from locallearn.errors import UserError
from locallearn.tasks import Detection
from locallearn.tasks.boxes import assigned, ciou
from locallearn.tasks.detection import KEPT, dfl
from locallearn.tasks.precision import average_precisions

STRIDE, BINS = 8, 8


def boxes(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def random_boxes(n: int, side: float, seed: int) -> Tensor:
    corners = torch.rand(n, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * side
    low, high = corners.sort(dim=1).values.unbind(1)
    return torch.cat([low, high + 0.5], dim=1)


def test_ciou_of_hand_examples():
    a = boxes([0, 0, 2, 2], [0, 0, 2, 2], [-1, -0.5, 1, 0.5], [0, 0, 1, 1])
    b = boxes([0, 0, 2, 2], [1, 0, 3, 2], [-0.5, -1, 0.5, 1], [2, 0, 3, 1])
    v = 4 / math.pi**2 * (math.atan(2) - math.atan(0.5)) ** 2
    unequal = 1 / 3 - v * v / (2 / 3 + v)
    torch.testing.assert_close(ciou(a, b), torch.tensor([1, 1 / 3 - 1 / 13, unequal, -0.4], dtype=torch.float64))
    assert (round(v, 6), round(unequal, 6)) == (0.167826, 0.299582)


def test_ciou_is_torchvisions_with_its_gradient():
    a, b = random_boxes(50, 20, 1).requires_grad_(), random_boxes(50, 20, 2)
    torch.testing.assert_close(ciou(a[:, None], b), complete_box_iou(a, b), rtol=0, atol=1e-6)
    theirs = torch.autograd.grad(complete_box_iou_loss(a, b, reduction="sum"), a)[0]
    torch.testing.assert_close(torch.autograd.grad((1 - ciou(a, b)).sum(), a)[0], theirs, rtol=0, atol=1e-5)


def test_the_gradient_of_ciou_by_finite_differences():
    """Between squares alpha v has no gradient, whatever alpha is."""
    a, b = boxes([0, 0, 4, 4]), boxes([1, 2, 4, 5])
    gradient = torch.autograd.grad(ciou(a.requires_grad_(), b).sum(), a)[0][0]
    for side in range(4):
        moved = [a.detach().clone() for _ in range(2)]
        for box, step in zip(moved, (1e-6, -1e-6), strict=True):
            box[0, side] += step
        assert float(gradient[side]) == pytest.approx(float(ciou(moved[0], b) - ciou(moved[1], b)) / 2e-6, abs=1e-6)


def test_ciou_of_boxes_without_area_is_finite_with_its_gradient():
    a = boxes([0, 0, 0, 0], [3, 3, 3, 3], [0, 0, 0, 5]).requires_grad_()
    value = ciou(a, boxes([0, 0, 0, 0], [0, 0, 2, 2], [0, 0, 2, 2]))
    assert value.isfinite().all()
    assert torch.autograd.grad(value.sum(), a)[0].isfinite().all()


CENTRES = boxes([4, 4], [12, 4], [4, 12], [12, 12])
ANSWERED = boxes([0, 0, 16, 8], [4, 0, 16, 8], [0, 8, 8, 16], [8, 0, 16, 16])
SCORES = torch.tensor([[0.81, 0.04], [0.49, 0.36], [0.25, 0.25], [0.09, 0.64]], dtype=torch.float64)
OBJECTS = torch.tensor([[0.0, 0, 0, 16, 8], [1, 8, 0, 16, 16], [-1, 0, 0, 0, 0]])
NAMES = ("a", "b")


def test_assignment_of_a_hand_example():
    goal = assigned(SCORES.logit()[None], ANSWERED[None], CENTRES[None], OBJECTS[None].double(), 2, 0.5, 6.0)
    torch.testing.assert_close(goal.weight[0], torch.tensor([1, 0.124993, 0, 1.0]).double(), rtol=0, atol=1e-6)
    assert goal.classes[0, [0, 1, 3]].tolist() == [0, 0, 1]
    assert goal.boxes[0, 1].tolist() == [0, 0, 16, 8]


def answers(centres: Tensor, found: Tensor, scores: Tensor) -> Tensor:
    """z [1, A, 3 + 4 R + classes] that decodes to these boxes and scores."""
    sides = torch.cat([centres - found[:, :2], found[:, 2:] - centres], dim=1) / STRIDE
    below = sides.floor()
    shares = torch.zeros(*sides.shape, BINS, dtype=torch.float64)
    shares.scatter_(2, below[..., None].long(), (1 - sides + below)[..., None])
    shares.scatter_(2, below[..., None].long() + 1, (sides - below)[..., None])
    bins = shares.clamp(min=1e-30).log().flatten(1)
    return torch.cat([centres, torch.full((len(centres), 1), float(STRIDE)), bins, scores.logit()], dim=1)[None]


def test_the_loss_of_a_hand_example():
    z = answers(CENTRES, ANSWERED, SCORES)
    task = Detection(NAMES, topk=2, dfl_weight=0.0)
    assert float(task.loss(z, OBJECTS[None])) == pytest.approx(0.702258, abs=2e-6)
    assert float(Detection(NAMES, topk=2, dfl_weight=0.0, box_weight=0.0).loss(z, OBJECTS[None])) == pytest.approx(
        0.5 * 1.172774, abs=1e-6
    )


def assigned_plainly(scores, found, centres, objects, topk, alpha, beta):
    """{position: (weight, object)} by loops."""
    overlap = complete_box_iou(objects[:, 1:], found).clamp(min=0)
    m = {
        (g, a): float(scores[a, int(objects[g, 0])] ** alpha * overlap[g, a] ** beta)
        for g in range(len(objects))
        for a in range(len(found))
    }
    takers: dict[int, list[int]] = {}
    for g, (_, x1, y1, x2, y2) in enumerate(objects.tolist()):
        inside = [a for a, (x, y) in enumerate(centres.tolist()) if min(x - x1, y - y1, x2 - x, y2 - y) > 1e-9]
        for a in sorted(inside, key=lambda a: -m[g, a])[:topk]:
            takers.setdefault(a, []).append(g)
    owner = {a: max(gs, key=lambda g: float(overlap[g, a])) for a, gs in takers.items()}
    result = {}
    for a, g in owner.items():
        own = [b for b in owner if owner[b] == g]
        largest, best = max(m[g, b] for b in own), max(float(overlap[g, b]) for b in own)
        result[a] = (m[g, a] * best / (largest + 1e-9), g)
    return result


def scene(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions on a grid, boxes about them, scores, and up to 6 objects."""
    draws = torch.Generator().manual_seed(seed)
    side = torch.arange(6, dtype=torch.float64) * STRIDE + 4
    centres = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1).flatten(0, 1)
    sides = torch.rand(36, 4, generator=draws, dtype=torch.float64) * 20
    found = torch.cat([centres - sides[:, :2], centres + sides[:, 2:]], dim=1)
    scores = torch.rand(36, 2, generator=draws, dtype=torch.float64) * 0.98 + 0.01
    count = int(torch.randint(7, (), generator=draws))
    where = random_boxes(count, 40, seed + 1000)
    where[:, 2:] += 6
    which = torch.randint(2, (count, 1), generator=draws)
    return centres, found, scores, torch.cat([which, where], dim=1)


def test_assignment_is_that_of_loops():
    for seed in range(200):
        centres, found, scores, objects = scene(seed)
        padded = F.pad(objects, (0, 0, 0, 8 - len(objects)), value=-1.0)
        goal = assigned(scores.logit()[None], found[None], centres[None], padded[None], 4, 0.5, 6.0)
        plainly = assigned_plainly(scores, found, centres, objects, 4, 0.5, 6.0)
        weights = torch.tensor([plainly.get(a, (0.0, 0))[0] for a in range(len(found))])
        torch.testing.assert_close(goal.weight[0], weights.double(), rtol=1e-4, atol=1e-7)
        for a, (weight, g) in plainly.items():
            if weight > 1e-6:
                assert torch.equal(goal.boxes[0, a], objects[g, 1:])
                assert goal.classes[0, a] == objects[g, 0]


def test_order_and_padding_of_objects_change_nothing():
    task = Detection(NAMES)
    centres, found, scores, objects = scene(3)
    assert len(objects) > 2
    z = answers(centres, found, scores)
    once = task.loss(z, objects[None])
    torch.testing.assert_close(task.loss(z, objects.flip(0)[None]), once, rtol=1e-12, atol=0)
    torch.testing.assert_close(task.loss(z, F.pad(objects, (0, 0, 0, 5), value=-1.0)[None]), once, rtol=0, atol=0)


def test_without_objects_only_scores_have_a_loss():
    centres, found, scores, _ = scene(4)
    z = answers(centres, found, scores).requires_grad_()
    loss = Detection(NAMES).loss(z, torch.full((1, 4, 5), -1.0))
    expected = 0.5 * F.binary_cross_entropy(scores, torch.zeros_like(scores), reduction="sum")
    torch.testing.assert_close(loss, expected)
    gradient = torch.autograd.grad(loss, z)[0]
    assert float(gradient[..., 3 : 3 + 4 * BINS].abs().max()) == 0
    assert gradient.isfinite().all()


def test_dfl():
    bins = torch.zeros(1, 4, BINS, dtype=torch.float64)
    assert float(dfl(bins, torch.full((1, 4), 2.3, dtype=torch.float64))) == pytest.approx(math.log(8))
    best = torch.full((1, 4, BINS), -1e9, dtype=torch.float64)
    best[..., 2], best[..., 3] = math.log(0.7), math.log(0.3)
    assert float(dfl(best, torch.full((1, 4), 2.3, dtype=torch.float64))) == pytest.approx(0.610864, abs=1e-6)
    beyond = torch.full((1, 4), 50.0, dtype=torch.float64)
    assert float(dfl(best, beyond)) > 1e8  # clamped to between the last two bins, which answer nothing


def test_decoding_gives_back_what_was_encoded():
    centres, found, scores, _ = scene(5)
    task = Detection(NAMES)
    (image,) = task.decoded(answers(centres, found, scores))
    assert image.shape == (KEPT, 6)
    first = image[image[:, 0] >= 0]
    assert torch.equal(first[:, 5], first[:, 5].sort(descending=True).values)
    best = scores.flatten().argmax()
    torch.testing.assert_close(first[0, 1:5], found[best // 2], rtol=0, atol=1e-6)
    assert (int(first[0, 0]), float(first[0, 5])) == (int(best % 2), pytest.approx(float(scores.max())))


def test_answers_of_another_shape_are_refused():
    with pytest.raises(UserError, match="must be \\[B, positions, 3 \\+ 4 bins \\+ 2\\]"):
        Detection(NAMES).loss(torch.zeros(1, 4, 12), OBJECTS[None])


@pytest.mark.parametrize(
    ("y", "sentence"),
    [
        (torch.zeros(2, 5), "must be \\[2, M, 5\\]"),
        (torch.tensor([[[2.0, 0, 0, 1, 1]]]), "a box of class 2, but there are 2"),
        (torch.tensor([[[0.5, 0, 0, 1, 1]]]), "a box of class 0.5"),
        (torch.tensor([[[0.0, 1, 0, 1, 1]]]), "has no area"),
        (torch.tensor([[[0.0, 2, 0, 1, 1]]]), "ends before it begins"),
        (torch.tensor([[[0.0, 0, 0, 1, math.nan]]]), "NaN"),
    ],
)
def test_wrong_boxes_are_refused(y, sentence):
    with pytest.raises(UserError, match=sentence):
        Detection(NAMES).checked(y, len(y), 2)


def precisions(images: list[tuple[list[list[float]], list[list[float]]]]) -> np.ndarray:
    """Average precisions of one class from (found with a score, truth) of each image."""
    found = [np.array(f, dtype=float).reshape(-1, 5) for f, _ in images]
    truth = [np.array(t, dtype=float).reshape(-1, 4) for _, t in images]
    result = average_precisions([f[:, :4] for f in found], truth, [f[:, 4] for f in found])
    assert result is not None
    return result


SQUARES = [[20.0 * i, 0.0, 20.0 * i + 10, 10.0] for i in range(4)]


def test_average_precision_of_hand_examples():
    right = [[*box, 0.9] for box in SQUARES]
    assert precisions([(right, SQUARES)]) == pytest.approx(np.ones(10))
    shifted = [[x1 + 1.62791, y1, x2 + 1.62791, y2, 0.9] for x1, y1, x2, y2 in SQUARES]
    by_threshold = precisions([(shifted, SQUARES)])  # an IoU of 0.72
    assert by_threshold.mean() == pytest.approx(0.5)
    assert (by_threshold[0], by_threshold[5]) == (pytest.approx(1), 0)
    assert precisions([([[200, 200, 210, 210, 0.99], *right], SQUARES)]) == pytest.approx(np.full(10, 0.8))
    assert precisions([(right[:2], SQUARES)]) == pytest.approx(np.full(10, 51 / 101))
    assert precisions([([], SQUARES)]) == pytest.approx(np.zeros(10))
    assert average_precisions([np.zeros((0, 4))], [np.zeros((0, 4))], [np.zeros(0)]) is None


def test_the_metrics_of_rows():
    """The same object in two images: found in one as what it is, in the other as the wrong class."""
    task = Detection(NAMES)
    truth = torch.tensor([[[0.0, 0, 0, 16, 8]], [[0.0, 0, 0, 16, 8]]])
    as_a, as_b = torch.tensor([[0.9, 0.01]]).double(), torch.tensor([[0.01, 0.9]]).double()
    z = torch.cat([answers(CENTRES[:1], ANSWERED[:1], s) for s in (as_a, as_b)])
    rows = task.rows(z, truth)
    both = torch.cat([rows, rows[:1]])
    numbers = task.finish(rows)
    assert numbers.keys() - {"ap_small"} == {"ap", "ap50", "ap75", "ap_a"}  # with faster-coco-eval
    assert numbers["ap50"] == pytest.approx(1)  # of low score, the class a is found there, too
    assert task.finish(both)["ap_a"] == pytest.approx(1)
    wrong = torch.where((rows[..., :1] == 0) & (rows[..., 5:] < 2), torch.tensor([1.0, 0, 0, 9, 9, 0.5]).double(), rows)
    assert task.finish(wrong)["ap"] == 0


def images_at_random(seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of some images found boxes with scores, many of them equal, and true ones: as classes, boxes, scores."""
    draws = np.random.default_rng(seed)
    images = []
    for _ in range(int(draws.integers(1, 6))):
        there = int(draws.integers(0, 7))
        low = draws.integers(0, 40, (there, 2)).astype(float)
        truth = np.concatenate([draws.integers(0, 2, (there, 1)), low, low + draws.integers(4, 30, (there, 2))], axis=1)
        copies = truth[draws.integers(0, there, 12)] if there else np.zeros((0, 5))
        found = copies + np.concatenate([np.zeros((len(copies), 1)), draws.integers(-3, 4, (len(copies), 4))], axis=1)
        found[:, 3:] = np.maximum(found[:, 3:], found[:, 1:3] + 1)
        scores = draws.integers(1, 6, (len(found), 1)) / 6
        images.append((np.concatenate([found, scores], axis=1), truth))
    return images


@pytest.mark.skipif(importlib.util.find_spec("faster_coco_eval") is None, reason="pip install faster-coco-eval")
def test_average_precision_is_that_of_coco():
    sets = [images_at_random(seed) for seed in range(100)]
    sets = [images for images in sets if any(len(truth) for _, truth in images)]
    assert len(sets) > 90
    for images in sets:
        ours = of_rows(images)
        assert [ours["ap"], ours["ap50"], ours["ap75"]] == pytest.approx(of_coco(images), abs=1e-9)


@pytest.mark.skipif(importlib.util.find_spec("faster_coco_eval") is None, reason="pip install faster-coco-eval")
@pytest.mark.parametrize(("scale", "size"), [(2.0, "small"), (0.01, "large")])
def test_objects_of_one_size_have_the_precision_of_all(scale, size):
    """Sides from 4 to 30 pixels are small where a pixel was two, and large where it was a hundredth."""
    images = next(i for i in map(images_at_random, range(9)) if sum(len(truth) for _, truth in i) > 8)
    numbers = of_rows(images, scale)
    assert numbers[f"ap_{size}"] == pytest.approx(numbers["ap"], abs=1e-9)
    assert {"ap_small", "ap_medium", "ap_large"} & numbers.keys() == {f"ap_{size}"}


def of_coco(images) -> list[float]:
    from faster_coco_eval import COCO, COCOeval_faster

    objects = [
        {"image_id": i + 1, "category_id": int(c) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": 500, "iscrowd": 0}
        for i, (_, truth) in enumerate(images)
        for c, x1, y1, x2, y2 in truth.tolist()
    ]
    truth = COCO(
        {
            "images": [{"id": i + 1, "width": 80, "height": 80} for i in range(len(images))],
            "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
            "annotations": [{"id": n + 1, **each} for n, each in enumerate(objects)],
        }
    )
    found = [
        {"image_id": i + 1, "category_id": int(c) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": s}
        for i, (own, _) in enumerate(images)
        for c, x1, y1, x2, y2, s in own.tolist()
    ]
    evaluation = COCOeval_faster(truth, truth.loadRes(found), iouType="bbox", print_function=lambda *_: None)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return list(evaluation.stats[:3])


def of_rows(images, scale: float = 1.0) -> dict[str, float]:
    own_objects = torch.full((len(images), 8, 6), -1.0, dtype=torch.float64)
    own_found = torch.full((len(images), 16, 6), -1.0, dtype=torch.float64)
    for i, (f, t) in enumerate(images):
        own_found[i, : len(f)] = torch.from_numpy(f)
        own_objects[i, : len(t), :5], own_objects[i, : len(t), 5] = torch.from_numpy(t), 2.0
    return Detection(NAMES, scale=scale).finish(torch.cat([own_found, own_objects], dim=1))
