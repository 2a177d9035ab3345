"""Known nuisances on images, and how much of them is read: by hand, by closed forms, and by what no net can exceed."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import locallearn
from locallearn.analysis.readout import density_ratio, label_entropy, usable_information
from locallearn.data.digits import Digits
from locallearn.data.nuisance import VALUES, asked_for_nuisance, disturbed
from locallearn.data.synthetic import Synthetic
from locallearn.errors import UserError

CPU = torch.device("cpu")


def images(count: int, height: int = 28, width: int = 28, least: int = 1) -> torch.Tensor:
    draw = torch.Generator().manual_seed(5)
    return torch.randint(least, 256, (count, 2, height, width), dtype=torch.uint8, generator=draw)


def under(kind: str, x: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return disturbed(x, kind, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("height", "width", "side"), [(28, 28, 10), (32, 40, 11), (8, 8, 3)])
def test_occlusion_is_a_black_square_at_one_of_sixteen_places(height, width, side):
    x = images(64, height, width)
    seen, n = under("occlusion", x)
    for before, after, k in zip(x, seen, n.tolist(), strict=True):
        top, left = round((k // 4) * (height - side) / 3), round((k % 4) * (width - side) / 3)
        expected = before.clone()
        expected[:, top : top + side, left : left + side] = 0
        assert torch.equal(after, expected)


def test_translation_by_hand():
    x = images(64)
    seen, n = under("translation", x)
    assert set(n.tolist()) <= set(range(25))
    for before, after, k in zip(x, seen, n.tolist(), strict=True):
        down, right = 2 * (2 - k // 5), 2 * (2 - k % 5)
        expected = np.zeros_like(before.numpy())
        rows, columns = (slice(max(0, d), 28 + min(0, d)) for d in (down, right))
        from_rows, from_columns = (slice(max(0, -d), 28 + min(0, -d)) for d in (down, right))
        expected[:, rows, columns] = before.numpy()[:, from_rows, from_columns]
        assert np.array_equal(after.numpy(), expected)


def test_rotation_by_right_angles_is_exact_and_between_them_keeps_the_middle():
    x = images(64, 9, 9)
    seen, n = under("rotation", x)
    for before, after, k in zip(x, seen, n.tolist(), strict=True):
        assert torch.equal(after[:, 4, 4], before[:, 4, 4])
        if k % 2 == 0:
            assert torch.equal(after, before.rot90(k // 2, (1, 2)))
        else:  # the corners come from beyond the image
            assert int(after[:, [0, 0, 8, 8], [0, 8, 0, 8]].max()) == 0
    wide = images(32, 6, 12)
    seen, n = under("rotation", wide)
    half = (n == 4).nonzero().flatten()
    assert len(half)
    assert torch.equal(seen[half], wide[half].flip(2, 3))


def test_clutter_lies_under_the_image_whose_sixteenth_is_known():
    x = images(40, 14, 14)
    seen, n = under("clutter", x)
    assert seen.shape == (40, 2, 28, 28)
    for before, after, k in zip(x.int(), seen.int(), n.tolist(), strict=True):
        fits = [
            (top, left)
            for top in range(15)
            for left in range(15)
            if bool((after[:, top : top + 14, left : left + 14] >= before).all())
        ]
        quarter = [0] * 3 + [1] * 4 + [2] * 4 + [3] * 4  # of the fifteen places of an edge
        assert any((quarter[top], quarter[left]) == (k // 4, k % 4) for top, left in fits)
    lit = (seen > 0).double().flatten(1).mean(1)
    assert float(lit.min()) > 0.25
    assert float(lit.max()) <= (14 * 14 + 8 * 4 * 4) / 28**2


@pytest.mark.parametrize("kind", VALUES)
def test_its_value_is_uniform_and_independent_of_the_label(kind):
    data = asked_for_nuisance(Synthetic(images=4000, classes=4, size=8, channels=1, nuisance=kind).load(0, CPU))
    plain = Synthetic(images=4000, classes=4, size=8, channels=1, nuisance=kind).load(0, CPU)
    values, labels = data.train.labels, plain.train.labels
    assert label_entropy(values) == pytest.approx(math.log2(VALUES[kind]), abs=0.01)
    joint = label_entropy(values * 4 + labels)
    assert joint == pytest.approx(label_entropy(values) + 2, abs=0.03)


def test_the_test_set_is_the_same_under_every_seed_and_the_training_set_is_not():
    one, two, again = (Digits(nuisance="occlusion").load(seed, CPU) for seed in (0, 1, 0))
    assert torch.equal(one.test.store.nuisance, two.test.store.nuisance)
    assert torch.equal(one.test.store.samples, two.test.store.samples)
    assert not torch.equal(one.train.store.nuisance, two.train.store.nuisance)
    assert torch.equal(one.train.store.samples, again.train.store.samples)
    clean = Digits().load(0, CPU)
    seen, _ = disturbed(clean.test.store.samples, "occlusion", torch.Generator())
    assert seen.shape == one.test.store.samples.shape
    chosen = asked_for_nuisance(one).train
    assert torch.equal(chosen.labels, one.train.store.nuisance[one.train.index])


def test_what_has_no_nuisance_is_refused():
    with pytest.raises(UserError, match=r"choose data\.nuisance=occlusion"):
        asked_for_nuisance(Digits().load(0, CPU))
    from locallearn.data.clicks import Clicks

    with pytest.raises(UserError, match="no pixels"):
        Clicks(nuisance="occlusion").load(0, CPU)
    with pytest.raises(UserError, match="nuisance=blur"):
        Digits(nuisance="blur")


# Estimators


def both(z: np.ndarray, n: np.ndarray, classes: int, steps: int = 300) -> tuple[float, float, float]:
    h, values = torch.from_numpy(z).float(), torch.from_numpy(n)
    half = len(h) // 2
    parts = h[:half], values[:half], h[half:], values[half:]
    read = usable_information(*parts, classes=classes, steps=steps).bits
    ratio = density_ratio(*parts, classes=classes, steps=steps)
    return read, ratio.bits, ratio.bound


def test_a_code_that_is_the_nuisance_has_four_bits():
    n = np.random.default_rng(0).integers(0, 16, 4000)
    assert both(np.eye(16)[n], n, 16) == pytest.approx((4, 4, 4), abs=0.05)


def test_a_code_that_knows_nothing_of_it():
    draw = np.random.default_rng(0)
    read, ratio, bound = both(draw.normal(size=(8000, 4)), draw.integers(0, 4, 8000), 4, steps=100)
    assert (read, ratio, bound) == pytest.approx((0, 0, 0), abs=0.05)


@pytest.mark.parametrize(("a", "bits"), [(1.0, 0.4859), (2.0, 0.9128)])
def test_one_bit_under_gaussian_noise(a, bits):
    """z = +-a + N(0, 1): one-dimensional integral."""
    x = np.linspace(-12, 12, 200_001)
    one, other = (np.exp(-((x - m) ** 2) / 2) / np.sqrt(2 * np.pi) for m in (a, -a))
    mixture = (one + other) / 2
    exact = -np.trapezoid(mixture * np.log2(mixture), x) - math.log2(2 * math.pi * math.e) / 2
    assert exact == pytest.approx(bits, abs=1e-3)
    draw = np.random.default_rng(1)
    n = draw.integers(0, 2, 12_000)
    z = a * (2 * n - 1)[:, None] + draw.normal(size=(12_000, 1))
    assert both(z, n, 2) == pytest.approx((exact,) * 3, abs=0.03)


# The probe


@pytest.mark.slow
def test_what_passes_a_bottleneck_is_at_least_what_is_told_of_nuisance_and_label(tmp_path):
    """Behind the noise, at a price where nothing is told and at one where something is."""
    told = {}
    for beta in (1e-3, 3.0):
        found = locallearn.train(
            strategy="backprop", blocks=1, model="mlp", quiet=True, threads=1, out=str(tmp_path), epochs=3,
            evaluate_every="never", **{"data.nuisance": "occlusion", "model.width": 16, "model.depth": 2},
            bottleneck="vib", probe=["nuisance", "bottleneck"], **{"bottleneck.beta": beta, "bottleneck.warmup": 0.0},
            **{"probe.nuisance.every": 9, "probe.bottleneck.every": 9, "optim.lr": 1e-2},
            **{"probe.nuisance.steps": 60, "probe.nuisance.samples": 1000, "probe.bottleneck.draws": 4},
        )  # fmt: skip
        nuisance, passes = (
            json.loads((found.run_dir / "probes" / name / "rows.jsonl").read_text().splitlines()[place])
            for name, place in (("nuisance", -1), ("bottleneck", -2))
        )
        assert nuisance["nuisance_bits"] == pytest.approx(4, abs=0.06)
        assert max(nuisance["i_z_n"], nuisance["i_z_n_bound"]) + nuisance["i_z_y"] <= passes["bits"] + 0.05
        told[beta] = nuisance["i_z_n"], nuisance["i_z_y"]
    assert told[1e-3][1] > 1
    assert max(told[3.0]) < 0.02
    with pytest.raises(UserError, match=r"data\.nuisance=occlusion or clutter"):
        locallearn.train(strategy="backprop", model="mlp", probe="nuisance", quiet=True, out=str(tmp_path))
