"""NoProp against a loop written by hand and closed forms; the noise of a sample against big integers of Python."""

from __future__ import annotations

import copy
import math
import struct

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.nets import assembled, assert_descended, tiny_batches, tiny_learner, tiny_model
from locallearn import seeds
from locallearn.contract import BlockSpec
from locallearn.engine import SGD, Learner
from locallearn.errors import UserError
from locallearn.strategies import noprop
from locallearn.strategies.denoising import normal, reader
from locallearn.strategies.noprop import NoProp
from locallearn.task import Classification
from locallearn.tasks.regression import Regression

PLAIN = SGD(lr=0.1, momentum=0.0, schedule="constant")
STRATEGY = NoProp(width=7, eta=0.3, snr=20.0)


def learner_of(strategy=STRATEGY, **options) -> Learner:
    return tiny_learner(strategy, optim=PLAIN, total_steps=9, **options)


@pytest.mark.parametrize("depth", [1, 2, 3, 10, 50])
def test_an_oracle_keeps_the_marginals(depth):
    """If z_{t-1} = sqrt(abar) u + sqrt(1 - abar) eps and u_t = u, so is z_t, with mean and variance of step t."""
    strategy = NoProp()
    for t in range(1, depth + 1):
        before, now = strategy.kept(t - 1, depth), strategy.kept(t, depth)
        mix = strategy.mix(t, depth)
        assert mix.estimate + mix.before * math.sqrt(before) == pytest.approx(math.sqrt(now), rel=1e-12)
        assert mix.before**2 * (1 - before) + mix.noise**2 == pytest.approx(1 - now, rel=1e-12)
        assert before < now
    assert strategy.kept(0, depth) == 0, "the first one reads noise alone"


@pytest.mark.parametrize("depth", [1, 2, 10])
def test_the_weights_of_the_losses_add_up_to_the_largest_ratio(depth):
    strategy = NoProp(eta=0.3, snr=40.0)
    total = sum(strategy.weight(t, depth) for t in range(1, depth + 1))
    assert total == pytest.approx(depth / 2 * 0.3 * 40.0, rel=1e-12)


def test_other_blocks_do_not_matter_below_or_above():
    """No feature and no gradient passes: with other weights everywhere else a block learns the same, bit for bit."""
    batches = tiny_batches(3)
    for k in range(4):
        one, other = learner_of(), learner_of()
        with torch.no_grad():
            for block in other.blocks:
                for root in block.roots() if block.spec.index != k else ():
                    for p in root.parameters():
                        p.mul_(-1.5)
        for x, y in batches:
            one.learn(x, y)
            other.learn(x, y)
        for root, same in zip(one.blocks[k].roots(), other.blocks[k].roots(), strict=True):
            for p, q in zip(root.parameters(), same.parameters(), strict=True):
                assert torch.equal(p, q)


def test_no_gradient_reaches_another_block():
    learner, (x, y) = learner_of(), tiny_batches(1)[0]
    reached = []
    for block in learner.blocks:

        def look(part: str = "main", own=block) -> None:
            reached.append([n for n, p in learner.parameters() if p.grad is not None])
            for root in own.roots():
                root.zero_grad()

        block.update = look
    learner.learn(x, y)
    for k, names in enumerate(reached):
        assert names
        assert all(n.startswith((f"model.units.{k}.", f"auxiliary.{k}.")) for n in names)


def fixed(monkeypatch) -> list[Tensor]:
    """The noise of a run in the order of its draws, instead of that of samples."""
    drawn: list[Tensor] = []

    def draw(x: Tensor, size: int) -> Tensor:
        g = torch.Generator().manual_seed(len(drawn))
        drawn.append(torch.randn(len(x), size, generator=g, dtype=torch.float64))
        return drawn[-1]

    monkeypatch.setattr(noprop, "draw", draw)
    return drawn


def logits_of(block, image: Tensor, z: Tensor) -> Tensor:
    """With the modules of a block, one by one."""
    own = block.auxiliary
    h = block.layers(own["image"](image) if "image" in own else image)
    denoiser = own["denoiser"]
    pooled = h.flatten(1) @ denoiser.features[-1].weight.T + denoiser.features[-1].bias
    hidden = F.relu(pooled + z @ denoiser.label.weight.T + denoiser.label.bias)
    hidden = F.relu(hidden @ denoiser.both[1].weight.T + denoiser.both[1].bias)
    return hidden @ denoiser.both[3].weight.T + denoiser.both[3].bias


def kept(t: int) -> float:
    return 20 / 21 * math.sin(math.pi * t / 8) ** 2


def test_a_step_by_hand(monkeypatch):
    drawn = fixed(monkeypatch)
    learner, (x, y) = learner_of(), tiny_batches(1)[0]
    before = copy.deepcopy(learner)
    learner.learn(x, y)
    assert len(drawn) == 5
    u = torch.eye(3, dtype=torch.float64)[y]
    for t, (block, after) in enumerate(zip(before.blocks, learner.blocks, strict=True), 1):
        eps = drawn[t - 1]
        z = kept(t - 1) ** 0.5 * u + (1 - kept(t - 1)) ** 0.5 * eps
        ratio = [kept(s) / (1 - kept(s)) for s in (t - 1, t)]
        estimate = logits_of(block, x, z).softmax(1)
        loss = 4 / 2 * 0.3 * (ratio[1] - ratio[0]) * ((estimate - u) ** 2).sum(1).mean()
        if t == 4:
            last = kept(4) ** 0.5 * u + (1 - kept(4)) ** 0.5 * drawn[4]
            out = block.auxiliary["out"]
            assert torch.equal(out.weight, torch.eye(3, dtype=torch.float64)), "it begins as the identity"
            loss = loss + F.cross_entropy(last @ out.weight.T + out.bias, y)
        assert after.read()["loss"] == pytest.approx(loss.item(), rel=1e-10)
        assert_descended(block, after, loss, 0.1, rtol=1e-10, atol=1e-12)


def test_an_answer_by_hand():
    learner = learner_of()
    for x, y in tiny_batches(3):
        learner.learn(x, y)
    x, _ = tiny_batches(1)[0]
    found = learner.predict(x)
    for block in learner.blocks:
        for root in block.roots():
            root.eval()
    seed = learner.setup.seed
    z = normal(x, seeds.derive(seed, "noise"), 3)
    with torch.no_grad():
        for t, block in enumerate(learner.blocks, 1):
            logits = logits_of(block, x, z)
            alpha, rest = kept(t - 1) / kept(t), 1 - kept(t - 1)
            a, b = kept(t) ** 0.5 * (1 - alpha) / rest, alpha**0.5 * (1 - kept(t)) / rest
            c = (1 - kept(t)) * (1 - alpha) / rest
            z = a * logits.softmax(1) + b * z + c**0.5 * normal(x, seeds.derive(seed, "noise", t - 1), 3)
            if t < 4:
                torch.testing.assert_close(found[t - 1], logits, rtol=1e-10, atol=1e-12)
        out = learner.blocks[-1].auxiliary["out"]
        torch.testing.assert_close(found[-1], z @ out.weight.T + out.bias, rtol=1e-10, atol=1e-12)


def test_labels_never_reach_an_answer():
    """Poisoned labels change no logit, and what blocks are given at an evaluation holds none."""
    learner = learner_of()
    for x, y in tiny_batches(2):
        learner.learn(x, y)
    x, y = tiny_batches(1)[0]
    seen, predict = [], learner.predict

    def watched(inputs: Tensor) -> list:
        seen.append(predict(inputs))
        return seen[-1]

    learner.predict = watched
    learner.evaluate(x, y)
    learner.evaluate(x, (y + 1) % 3)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    assert all(packet.y.numel() == 0 for packet in learner.packets(x))


def test_an_answer_depends_neither_on_the_batch_nor_on_what_was_asked_before():
    learner, other = learner_of(), learner_of(seed=5)
    x, _ = tiny_batches(1)[0]
    whole = learner.predict(x)[-1]
    torch.manual_seed(7)
    assert torch.equal(learner.predict(x)[-1], whole)
    for parts in (x.split(3), [x[i : i + 1] for i in range(8)]):
        found = torch.cat([learner.predict(part)[-1] for part in parts])
        torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-14)
    turned = learner.predict(x.flip(0))[-1]
    torch.testing.assert_close(turned.flip(0), whole, rtol=1e-12, atol=1e-14)
    noise = [normal(x, seeds.derive(each.setup.seed, "noise"), 3) for each in (learner, other)]
    assert not torch.allclose(*noise), "each run has a noise of its own"


def mixed(z: int) -> int:
    """splitmix64, Steele, Lea & Flood 2014."""
    z = (z + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_the_noise_of_a_sample_in_big_integers():
    x = torch.tensor([[0.5, -1.25, 3.0], [1e-30, 7.0, -0.0]], dtype=torch.float64)
    key = 2**62 - 12345
    found = normal(x, key, 4)
    for row, numbers in zip(found, x.tolist(), strict=True):
        words = [struct.unpack("<i", struct.pack("<f", number))[0] for number in numbers]
        sample = mixed(sum(word * (mixed(i) | 1) for i, word in enumerate(words)) % 2**64) ^ key
        stream = [mixed((mixed(sample) + i * 0x9E3779B97F4A7C15) % 2**64) >> 11 for i in range(8)]
        uniform = [(number + 0.5) / 2**53 for number in stream]
        pairs = zip(uniform[:4], uniform[4:], strict=True)
        wanted = [math.sqrt(-2 * math.log(a)) * math.cos(2 * math.pi * b) for a, b in pairs]
        assert row.tolist() == pytest.approx(wanted, rel=1e-12)


def test_noise_is_normal_and_differs_between_samples_numbers_and_keys():
    x = torch.rand(2000, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    first, second = (normal(x, key, 5).double() for key in (1, 2))
    n = first.numel()
    ordered = np.sort(first.flatten().numpy())
    below = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in ordered])
    assert abs(below - (np.arange(n) + 0.5) / n).max() < 1.63 / math.sqrt(n), "Kolmogorov-Smirnov, 1 %"
    for other in (second, first.roll(1, 0), first.roll(1, 1)):
        assert abs((first * other).mean()) < 4 / math.sqrt(n)
    assert torch.equal(normal(x[:3].double(), 1, 5).float(), normal(x[:3], 1, 5)), "whatever the type"
    layout = x.repeat(1, 2, 1, 1).contiguous(memory_format=torch.channels_last)
    assert torch.equal(normal(layout, 1, 5), normal(layout.contiguous(), 1, 5)), "and the layout in memory"


@pytest.mark.parametrize(
    ("image", "reads"),
    [
        ((3, 8, 8), (5, 4, 4)),
        ((3, 8, 8), (5, 3, 3)),
        ((1, 4, 6), (2, 8, 6)),
        ((6, 4), (6, 9)),
        ((6, 4), (7,)),
        ((9,), (3, 2)),
    ],
)
def test_an_image_is_brought_to_what_a_block_reads(image, reads):
    spec = BlockSpec(1, 2, image, reads, (4,), 3)
    assert reader(spec)(torch.randn(2, *image)).shape == (2, *reads)


def test_what_does_not_fit_is_refused():
    model = tiny_model()
    for task, said in (
        (Classification(smoothing=0.1), "data.smoothing and data.class_weights must be off"),
        (Regression((0.0,), (1.0,)), "takes the noise from the class of each sample"),
    ):
        with pytest.raises(UserError, match=said) as error:
            assembled(model, STRATEGY, PLAIN, model.cut(2), task=task)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="reads numbers, but the data are tokens"):
        STRATEGY.modules(BlockSpec(0, 1, (9,), (9,), (4,), 3, vocabulary=7))
    with pytest.raises(UserError, match="at most 134,217,728 are allowed"):
        STRATEGY.modules(BlockSpec(1, 2, (3, 512, 512), (512,), (4,), 3))
