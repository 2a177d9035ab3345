"""The forms of predsim: without weight transport, and with a loss that reads no labels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.nets import tiny_batches, tiny_learner, tiny_model
from locallearn.auxiliary import MLP, Linear
from locallearn.contract import BlockSpec, Packet
from locallearn.errors import UserError
from locallearn.objectives import PredSim
from locallearn.objectives.local_signals import InputDecoder
from locallearn.strategies.greedy import DGL
from locallearn.task import Classification

X = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2, -1, -5])


def spec(reads=(6,), emits=(6,), index=1, **options) -> BlockSpec:
    return BlockSpec(index, 4, (6,), reads, emits, 3, **options)


def loss_of(options: PredSim, h: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    modules = nn.ModuleDict(options.modules(spec(), Linear())).double()
    loss, logits = options.loss(spec(), modules, h, Packet(X[: len(h)], y))
    assert (logits is None) == options.bio
    assert (options.predict(modules, h) is None) == options.bio
    return loss


@pytest.mark.parametrize("beta", [0.0, 0.6, 1.0])
def test_samples_without_a_label_teach_the_bio_form_nothing(beta):
    h = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    options = PredSim(beta=beta, bio=True)
    assert not options.unlabelled
    assert loss_of(options, h, Y).item() == pytest.approx(loss_of(options, h[:6], Y[:6]).item(), rel=1e-12)
    assert loss_of(options, h, torch.full((8,), -1)).item() == 0


@pytest.mark.parametrize("kind", ["sim", "recon"])
def test_the_loss_without_labels_is_of_all_samples(kind):
    h = (3 * X.flip(0)).requires_grad_()  # no sample has only closed rectifiers in its reconstruction
    options = PredSim(unsupervised=kind, alpha=0.4)
    assert options.unlabelled
    (grad,) = torch.autograd.grad(loss_of(options, h, torch.full((8,), -1)), h)
    assert grad.any(1).all()


@pytest.mark.parametrize("reads", [(2, 6, 6), (2, 12, 6), (2, 18, 18)])
def test_the_decoder_makes_what_the_block_has_read(reads):
    decoder = InputDecoder(spec(reads, (4, 6, 6)))
    made = decoder.layers(torch.randn(3, 4, 6, 6))
    assert made.shape == (3, *reads)
    assert InputDecoder(spec((7, 5), (9,))).layers(torch.randn(3, 9)).shape == (3, 7, 5)


@pytest.mark.parametrize(
    ("options", "auxiliary", "block", "said"),
    [
        ({"bio": True}, MLP(), spec(), "one linear layer, but auxiliary is MLP"),
        ({"bio": True}, Linear(), spec(task=Classification(smoothing=0.1)), "data.smoothing and data.class_weights"),
        ({"unsupervised": "recon", "alpha": 0.1}, Linear(), spec((2, 7, 7), (4, 3, 3)), "sides do not divide them"),
        ({"unsupervised": "sim", "alpha": 0.1}, Linear(), spec(index=0, vocabulary=9), "tokens of a vocabulary of 9"),
    ],
)
def test_what_does_not_fit_is_one_sentence(options, auxiliary, block, said):
    with pytest.raises(UserError, match=said):
        PredSim(**options).modules(block, auxiliary)


@pytest.mark.parametrize("kind", ["sim", "recon"])
def test_options_do_nothing_without_one_another(kind):
    assert set(PredSim(alpha=0.1).unread([])) == {"alpha"}
    assert set(PredSim(unsupervised=kind).unread([])) == {"unsupervised"}
    assert not PredSim(unsupervised=kind, alpha=0.1).unread([])


@pytest.mark.parametrize("kind", ["none", "sim", "recon"])
@pytest.mark.parametrize("bio", [False, True])
def test_blocks_learn(bio, kind):
    options = PredSim(beta=0.5, bio=bio, unsupervised=kind, alpha=0.0 if kind == "none" else 0.2)
    learner = tiny_learner(DGL(objective=options, auxiliary=Linear(), last="local"), tiny_model(), total_steps=12)
    losses = [learner.step(*tiny_batches(1)[0]) for _ in range(12)]
    assert all(losses[-1][f"block/{k:02d}/loss"] < losses[0][f"block/{k:02d}/loss"] for k in range(3))


def test_random_matrices_of_the_bio_form_stay():
    options = PredSim(bio=True)
    learner = tiny_learner(DGL(objective=options, auxiliary=Linear()), tiny_model(), total_steps=2)
    own = learner.blocks[0].auxiliary["projected"]
    before = own.project.clone(), own.feedback.clone(), own.linear.weight.detach().clone()
    learner.step(*tiny_batches(1)[0])
    assert torch.equal(own.project, before[0])
    assert torch.equal(own.feedback, before[1])
    assert not torch.equal(own.linear.weight, before[2])
