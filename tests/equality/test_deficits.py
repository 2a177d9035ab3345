"""Deficits of the training batches: what each does, when, and that they follow from (seed, epoch, step) alone."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

import locallearn
from helpers.nets import assert_same
from locallearn.data.augment import DEFICITS, permutation
from locallearn.data.digits import Digits
from locallearn.data.synthetic import Synthetic
from locallearn.data.tishby import Tishby
from locallearn.errors import UserError

CPU = torch.device("cpu")
WINDOW = {"deficit_from": 1, "deficit_until": 3}
SOURCE = {"images": 400, "classes": 5, "size": 12, "channels": 2}


def raw(data, epoch: int, batch_size: int = 64) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The batches as bytes again."""
    mean, std = (t[:, None, None] * 255 for t in (data.normaliser.mean, data.normaliser.std))
    batches = data.batches(epoch, batch_size)
    return [((x.double() * std + mean).round().to(torch.uint8), y) for x, y in batches]


def same(a, b) -> bool:
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", DEFICITS)
@pytest.mark.parametrize("augmented", [False, True])
def test_outside_the_window_nothing_is_touched(kind, augmented):
    options = {"crop": 2, "flip": True, "cutout": 4} if augmented else {}
    clean, seen = (Synthetic(**SOURCE, **options, **more).load(3, CPU) for more in ({}, {"deficit": kind, **WINDOW}))
    for epoch, untouched in enumerate([True, False, False, True, True]):
        assert same(clean.batches(epoch, 64), seen.batches(epoch, 64)) == untouched, epoch
    for split in ("train", "validation", "test"):
        a, b = (data.evaluation(getattr(data, split), 64) for data in (clean, seen))
        assert same(a, b), "only training batches suffer"


def test_a_window_may_be_told_by_its_length():
    of_length = {"deficit_from": 1, "deficit_length": 2}
    one, two = (Synthetic(**SOURCE, deficit="flip", **more).load(3, CPU) for more in (WINDOW, of_length))
    assert all(same(one.batches(epoch, 64), two.batches(epoch, 64)) for epoch in range(5))


@pytest.mark.fault("R11")
@pytest.mark.parametrize("kind", DEFICITS)
def test_a_skipped_start_gives_what_an_uninterrupted_epoch_gives(kind):
    one, two = (Synthetic(**SOURCE, crop=2, flip=True, deficit=kind).load(5, CPU) for _ in range(2))
    whole = list(one.batches(1, 32))
    torch.rand(7)  # the global generator is not asked
    for start in (0, 1, 4, len(whole)):
        assert same(whole[start:], two.batches(1, 32, start=start))
    other = list(Synthetic(**SOURCE, crop=2, flip=True, deficit=kind).load(6, CPU).batches(1, 32))
    assert not same(whole, other)


def test_blur_is_the_mean_of_4x4_pixels_scaled_up():
    """Against averages taken by hand and the bilinear weights of a matrix written out."""
    clean, seen = (Synthetic(**SOURCE, deficit=d).load(0, CPU) for d in (None, "blur"))
    weights = torch.zeros(12, 3, dtype=torch.float64)  # [fine, coarse]: centres at (i + 0.5) / 4 - 0.5
    for i in range(12):
        at = min(max((i + 0.5) / 4 - 0.5, 0.0), 2.0)
        low = min(int(at), 1)
        weights[i, low] += 1 - (at - low)
        weights[i, low + 1] += at - low
    for (x, _), (b, _) in zip(raw(clean, 0), raw(seen, 0), strict=True):
        coarse = x.double().view(-1, 2, 3, 4, 3, 4).mean(dim=(3, 5))
        expected = torch.einsum("ia,bcad,jd->bcij", weights, coarse, weights)
        assert (b.double() - expected).abs().max() <= 0.5 + 1e-3, "the nearest byte"


def test_blur_of_sides_that_four_does_not_divide_and_of_tiny_images():
    from locallearn.data.augment import blurred

    images = torch.randint(256, (3, 1, 10, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    coarse = F.adaptive_avg_pool2d(images.double(), (2, 1))
    assert (blurred(images)[:, :, 0].double() - coarse[:, :, 0].expand(3, 1, 3)).abs().max() <= 0.5 + 1e-3
    assert torch.equal(blurred(torch.full((1, 1, 2, 2), 7, dtype=torch.uint8)), torch.full((1, 1, 2, 2), 7).byte())


def test_a_flip_is_upside_down_and_twice_is_nothing():
    clean, seen = (Digits(deficit=d).load(0, CPU) for d in (None, "flip"))
    for (x, y), (u, v) in zip(clean.batches(0, 128), seen.batches(0, 128), strict=True):
        assert torch.equal(x, u.flip(2))
        assert torch.equal(y, v)
        assert not torch.equal(x, u)


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_a_permutation_is_one_cycle(classes):
    found = permutation(classes, seed=4)
    assert sorted(found.tolist()) == list(range(classes))
    seen, at = [], 0
    for _ in range(classes):
        seen.append(at)
        at = int(found[at])
    assert at == 0
    assert len(set(seen)) == classes, "one cycle through all classes: none keeps its label"


def test_permuted_labels_are_the_same_in_every_batch_and_the_images_are_left_alone():
    clean, seen = (Digits(deficit=d).load(2, CPU) for d in (None, "permutation"))
    table = permutation(10, 2)
    for epoch in (0, 3):
        for (x, y), (u, v) in zip(clean.batches(epoch, 100), seen.batches(epoch, 100), strict=True):
            assert torch.equal(x, u)
            assert torch.equal(table[y], v)
    assert any(not torch.equal(permutation(10, s), table) for s in range(3))


def test_noise_is_new_in_every_step_and_uniform():
    data = Synthetic(**{**SOURCE, "images": 2000}, deficit="noise").load(0, CPU)
    first, second = (torch.cat([x for x, _ in raw(data, epoch)]) for epoch in (0, 1))
    count = torch.bincount(first.flatten().long(), minlength=256).double()
    expected = count.sum() / 256
    chi2 = float(((count - expected) ** 2 / expected).sum())
    assert chi2 < 340, "the 99.97th percentile of chi-squared with 255 degrees of freedom"
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]).double())[0, 1]) < 0.01
    assert not torch.equal(first[:64], first[64:128])
    labels = torch.cat([y for _, y in raw(data, 0)])
    assert torch.equal(
        labels, torch.cat([y for _, y in Synthetic(**{**SOURCE, "images": 2000}).load(0, CPU).batches(0, 64)])
    )


@pytest.mark.fault("F22")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"deficit": "blurr"}, "did you mean 'blur'"),
        ({"deficit_from": -1}, "data.deficit_from=-1: must be a whole number of at least 0"),
        ({"deficit": "blur", "deficit_from": 4, "deficit_until": 3}, "data.deficit_until=3: must be at least .*=4"),
        ({"deficit": "blur", "deficit_length": 2, "deficit_until": 3}, "deficit_length=2: must be null beside .*=3"),
    ],
)
def test_options_that_mean_nothing(options, said):
    with pytest.raises(UserError, match=said):
        Digits(**options)


@pytest.mark.fault("F19")
@pytest.mark.parametrize("kind", DEFICITS)
def test_sets_without_pixels_refuse(kind, real_root):
    with pytest.raises(UserError, match=r"data=tishby has no pixels: data.deficit must be off"):
        Tishby(root=str(real_root), deficit=kind).load(0, CPU)


@pytest.mark.fault("F19")
def test_a_graph_refuses(real_root):
    from locallearn.data.cora import Cora

    with pytest.raises(UserError, match=r"data=cora has no pixels: data.deficit must be off"):
        Cora(root=str(real_root), deficit="permutation").load(0, CPU)


SETTINGS = ["model=lenet", "strategy=dgl", "auxiliary=linear", "blocks=2", "epochs=3", "max_steps=60", "threads=1"]
SETTINGS += ["data.deficit=noise", "data.deficit_until=1", "data.deficit_from=0", "batch_size=64"]


def _given() -> dict:
    return {k: (int(v) if v.isdigit() else v) for k, v in (s.split("=") for s in SETTINGS)}


@pytest.mark.fault("F12", "R1")
@pytest.mark.slow
def test_a_run_that_stopped_inside_the_window_resumes_to_the_same_bits(tmp_path):
    whole = locallearn.train(out=str(tmp_path / "whole"), quiet=True, **_given())
    code = (
        "import os, sys\nfrom locallearn.cli import main as cli\nfrom locallearn.training.saving import Checkpoints\n"
        "save = Checkpoints.save\n"
        "def killed(self, position, folder=None, needed=True):\n"
        "    save(self, position, folder)\n    if self.learner.step_count >= 14: os._exit(9)\n"
        "Checkpoints.save = killed\ncli.main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", code, *SETTINGS, "checkpoint.every=7it", f"out={tmp_path / 'cut'}"]
    assert subprocess.run(command, capture_output=True).returncode == 9
    run = next((tmp_path / "cut").iterdir())
    assert json.loads((run / "status.json").read_text())["state"] == "running"
    resumed = subprocess.run([sys.executable, "-m", "locallearn", "resume", str(run)], capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert_same(whole.model, locallearn.load(run))


@pytest.mark.fault("R6")
@pytest.mark.slow
def test_serial_and_pipeline_see_the_same(tmp_path):
    runs = []
    for runtime in ("serial", "pipeline"):
        more = ["runtime.stages=2"] if runtime == "pipeline" else []
        command = [sys.executable, "-m", "locallearn", *SETTINGS, "max_steps=6", f"runtime={runtime}", *more]
        done = subprocess.run([*command, f"out={tmp_path / runtime}"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        runs.append(locallearn.load(next((tmp_path / runtime).iterdir())))
    assert_same(*runs)
