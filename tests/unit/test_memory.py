"""Activation memory, exactly: bytes that autograd holds at the peak of a step, every storage once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from locallearn.analysis.cost import SavedBytes
from locallearn.auxiliary import Linear, MLPSpatialReduction
from locallearn.engine import SGD, assemble
from locallearn.models.vgg import vgg
from locallearn.objectives import CrossEntropy
from locallearn.strategies.backprop import Backprop, Checkpoint
from locallearn.strategies.deep_supervision import DeepSupervision
from locallearn.strategies.greedy import DGL

BATCH = 16
AUXILIARIES = {"linear": Linear(), "mlp_sr": MLPSpatialReduction()}


@pytest.fixture(scope="module")
def vgg16():
    torch.manual_seed(0)
    return vgg((3, 32, 32), 10, depth=16)


def batch(size: int = BATCH):
    g = torch.Generator().manual_seed(0)
    return torch.randn(size, 3, 32, 32, generator=g), torch.randint(10, (size,), generator=g)


def peak(learner, with_weights: bool = False, size: int = BATCH) -> int:
    """Bytes at the peak of one step. autograd also keeps the weights that a backward needs; they are resident anyway,
    so they count only where a published ratio counts them."""
    with SavedBytes(() if with_weights else (p for _, p in learner.parameters())) as saved:
        learner.learn(*batch(size))
    assert saved.now == 0, "something kept a graph after the step"
    return saved.peak


def learner_of(strategy, model, balance="flops"):
    model = copy.deepcopy(model)
    return assemble(model, strategy, SGD(lr=0.01), model.cut(4, balance))


def block_alone(learner, k: int) -> int:
    """One block by itself, in a hand-written step: forward, local loss, backward."""
    x, y = batch()
    with torch.no_grad():
        for block in learner.blocks[:k]:
            x = block.layers.train()(x)
    block = learner.blocks[k]
    head = block.head if block.last else block.auxiliary["classifier"]
    with SavedBytes(p for _, p in learner.parameters()) as saved:
        F.cross_entropy(head(block.layers(x)), y).backward()
    return saved.peak


@pytest.mark.slow
@pytest.mark.parametrize("name", AUXILIARIES)
def test_dgl_holds_its_largest_block_and_not_the_sum(vgg16, name):
    dgl = learner_of(DGL(objective=CrossEntropy(), auxiliary=AUXILIARIES[name]), vgg16)
    alone = [block_alone(dgl, k) for k in range(4)]
    step, reference = peak(dgl), peak(learner_of(Backprop(), vgg16))
    print(f"{name}: DGL {step:,} bytes; blocks alone {[f'{a:,}' for a in alone]}; backprop {reference:,}")
    assert step <= 1.01 * max(alone)
    assert step <= 0.62 * reference
    assert sum(alone) > 0.99 * reference


@pytest.mark.slow
def test_all_that_autograd_holds_against_backprop(vgg16):
    """As the field counts it, weights included, at a batch of 128: the published prototype reached 0.499 and 0.323."""
    dgl = DGL(objective=CrossEntropy(), auxiliary=AUXILIARIES["linear"])
    reference = peak(learner_of(Backprop(), vgg16), with_weights=True, size=128)
    assert peak(learner_of(dgl, vgg16, "flops"), with_weights=True, size=128) <= 0.53 * reference
    assert peak(learner_of(dgl, vgg16, "memory"), with_weights=True, size=128) <= 0.37 * reference


@pytest.mark.slow
def test_recomputation_needs_less_than_backprop_and_deep_supervision_more(vgg16):
    reference = peak(learner_of(Backprop(), vgg16))
    assert peak(learner_of(Checkpoint(), vgg16)) < 0.6 * reference
    supervised = DeepSupervision(objective=CrossEntropy(), auxiliary=AUXILIARIES["linear"])
    assert peak(learner_of(supervised, vgg16)) > reference
