"""Synthetic gradients against hand-written loops, an oracle, and what zero initialisation promises; float64."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.nets import assert_same, bare_backprop, tiny_batches, tiny_learner, tiny_model, trained
from locallearn.auxiliary.synthesizer import InputSynthesizer, Synthesizer
from locallearn.contract import Route
from locallearn.engine import SGD
from locallearn.errors import UserError
from locallearn.models import BlockModel
from locallearn.strategies.dni import CDNI, DNI

SLOW = SGD(lr=0.05, momentum=0.9, weight_decay=0.0, schedule="constant")


@dataclass(frozen=True)
class Oracle(DNI):
    """DNI whose synthesizers know the truth: `true[k]` is the gradient of the loss for the output of block k."""

    true: list = field(default_factory=list)

    def synthesize(self, block, h, y):
        return self.true[block.spec.index]


def true_gradients(model, x, y):
    """d loss / d h_k of every unit's output, by one graph over a copy of the model."""
    model = copy.deepcopy(model).train()
    outputs = []
    h = x
    for unit in model.units:
        h = unit(h)
        outputs.append(h)
    return list(torch.autograd.grad(F.cross_entropy(model.head(h), y), outputs))


def test_with_an_oracle_it_is_backprop():
    batches = tiny_batches()
    strategy = Oracle()
    learner = tiny_learner(strategy, total_steps=len(batches))
    for x, y in batches:
        strategy.true[:] = true_gradients(learner.model, x, y)
        learner.learn(x, y)
    assert_same(learner.model, bare_backprop(tiny_model(), batches))


@pytest.mark.parametrize("options", [{"mix": 1.0}, {"warmup": 1.0}], ids=str)
@pytest.mark.parametrize("kind", [DNI, CDNI])
def test_with_the_true_gradient_mixed_in_wholly_it_is_backprop(kind, options):
    batches = tiny_batches()
    strategy = kind(**options)
    assert strategy.route is Route.CHAIN
    assert kind().route is Route.NEIGHBOR
    learner = trained(strategy, batches)
    assert_same(learner.model, bare_backprop(tiny_model(), batches))
    for block in learner.blocks[:-1]:
        assert block.auxiliary["synthesizer"].rest[-1].weight.abs().max() > 0, "the synthesizer did not learn meanwhile"


def test_half_of_each_gradient():
    """One step after the synthesizers were given weights: every block's update by hand."""
    (x, y), *_ = tiny_batches(1)
    learner = tiny_learner(DNI(mix=0.25), optim=SGD(lr=1.0, momentum=0.0, schedule="constant"), total_steps=4)
    awaken(learner)
    model, aux = copy.deepcopy(learner.model).train(), copy.deepcopy([b.auxiliary for b in learner.blocks])
    hs, xs, h = [], [], x
    for unit in model.units:
        xs.append(h.detach().requires_grad_())
        h = unit(xs[-1])
        hs.append(h)
    F.cross_entropy(model.head(hs[-1]), y).backward()
    for k in (2, 1, 0):
        guess = aux[k]["synthesizer"](hs[k].detach(), y).detach() / len(x)
        hs[k].backward(0.25 * xs[k + 1].grad + 0.75 * guess)
    learner.learn(x, y)
    for name, p in model.named_parameters():
        assert torch.allclose(p - p.grad, learner.model.get_parameter(name), rtol=1e-12, atol=1e-14), name


def awaken(learner) -> None:
    """Give every synthesizer a last layer that predicts something."""
    torch.manual_seed(7)
    for block in learner.blocks:
        for module in block.auxiliary.values():
            synthesizer = module if isinstance(module, Synthesizer) else module.body
            nn.init.normal_(synthesizer.last_layer.weight, std=0.1)


@pytest.mark.parametrize("options", [{}, {"depth": 0}, {"depth": 1, "width": 5, "batch_norm": False}], ids=str)
@pytest.mark.parametrize("synthetic_inputs", [False, True])
@pytest.mark.parametrize("kind", [DNI, CDNI])
def test_it_is_a_hand_written_loop(kind, synthetic_inputs, options):
    """The loop of the paper, written out: bootstrapped targets, everything detached by hand, separate optimizers."""
    batches = tiny_batches()
    learner = tiny_learner(kind(synthetic_inputs=synthetic_inputs, **options), optim=SLOW, total_steps=len(batches))
    awaken(learner)
    model = copy.deepcopy(learner.model).train()
    aux = copy.deepcopy([block.auxiliary for block in learner.blocks])

    def sgd(*modules):
        return torch.optim.SGD([p for m in modules for p in m.parameters()], lr=0.05, momentum=0.9)

    body = [sgd(unit, *([model.head] if k == 3 else [])) for k, unit in enumerate(model.units)]
    synth = [sgd(aux[k]["synthesizer"]) for k in range(3)]
    guess = [sgd(aux[k]["inputs"]) if synthetic_inputs and k else None for k in range(4)]

    def learn(optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for image, y in batches:
        learner.learn(image, y)
        h, before = image, None
        for k, unit in enumerate(model.units):
            if guess[k] is not None:
                predicted = aux[k]["inputs"](image, y)
                learn(guess[k], ((predicted - h) ** 2).mean())
                h = predicted
            x = h.detach().requires_grad_()
            out = unit(x)
            body[k].zero_grad()
            if k == 3:
                F.cross_entropy(model.head(out), y).backward()
            else:
                out.backward(aux[k]["synthesizer"](out.detach(), y).detach() / len(y))
            body[k].step()
            if before is not None:
                synthesizer, read = aux[k - 1]["synthesizer"], x.detach() if synthetic_inputs else before
                statistics = [(b, b.clone()) for b in synthesizer.buffers()]  # they have moved in this step
                learn(synth[k - 1], ((synthesizer(read, y) - len(y) * x.grad) ** 2).mean())
                for buffer, moved in statistics:
                    buffer.copy_(moved)
            h = before = out.detach()
    for name, p in model.named_parameters():
        assert torch.allclose(p, learner.model.get_parameter(name), rtol=1e-10, atol=1e-13), name
    for k, block in enumerate(learner.blocks):
        for name, t in aux[k].state_dict().items():
            assert torch.allclose(t.double(), block.auxiliary.state_dict()[name].double(), rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("kind", [DNI, CDNI])
def test_the_first_update_does_nothing(kind):
    """The last layer of a synthesizer starts at zero, weight and bias: blocks rest until it has learned something."""
    batches = tiny_batches(2)
    learner = tiny_learner(kind(), optim=SLOW, total_steps=4)
    before = copy.deepcopy(learner.model)
    learner.learn(*batches[0])
    for k in range(3):
        for p, q in zip(before.units[k].parameters(), learner.model.units[k].parameters(), strict=True):
            assert torch.equal(p, q)
    assert not torch.equal(before.units[3][0].weight, learner.model.units[3][0].weight)
    learner.learn(*batches[1])  # the synthesizer of block 2 has learned
    assert not torch.equal(before.units[2][0].weight, learner.model.units[2][0].weight)


def test_batch_statistics_of_synthesizers_move_once_a_step():
    batches = tiny_batches(3)
    learner = tiny_learner(CDNI(synthetic_inputs=True), optim=SLOW, total_steps=3)
    for x, y in batches:
        learner.learn(x, y)
    counts = [
        m.num_batches_tracked.item()
        for block in learner.blocks
        for m in block.auxiliary.modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    assert len(counts) == 2 * 3 + 2 * 3
    assert set(counts) == {3}


def test_cdni_without_context_is_dni():
    batches = tiny_batches()
    plain = tiny_learner(DNI(), optim=SLOW, total_steps=5)
    conditional = tiny_learner(CDNI(), optim=SLOW, total_steps=5)
    for a, b in zip(plain.blocks, conditional.blocks, strict=True):
        if "synthesizer" in b.auxiliary:
            b.auxiliary.load_state_dict(a.auxiliary.state_dict(), strict=False)
            b.auxiliary["synthesizer"].context.weight.requires_grad_(False).zero_()
    for x, y in batches:
        plain.learn(x, y)
        conditional.learn(x, y)
    assert_same(plain.model, conditional.model)


def test_the_context_is_the_label_and_nothing_else():
    torch.manual_seed(0)
    h, y = torch.randn(6, 4, 5, 5), torch.tensor([0, 1, 2, 0, 1, -100])
    net = Synthesizer((4, 5, 5), classes=3)
    nn.init.normal_(net.rest[-1].weight)
    assert not torch.allclose(net(h, y), net(h, y.roll(1)))
    context = []
    net.rest.register_forward_pre_hook(lambda m, args: context.append(args[0]))
    net(h, y)
    added = context[0] - net.first(h)
    assert torch.allclose(added[0], net.context.weight[:, 0, None, None].expand(4, 5, 5), atol=1e-6)
    assert added[5].abs().max() < 1e-6, "a sample without a label has no context"
    blind = Synthesizer((4, 5, 5))
    nn.init.normal_(blind.rest[-1].weight)
    assert torch.equal(blind(h, y), blind(h, y.roll(1)))


@pytest.mark.parametrize("depth", [0, 1, 2, 4])
@pytest.mark.parametrize("size", [(4, 5, 5), (3, 1, 1), (7,), (6, 5)], ids=str)
def test_a_synthesizer_keeps_the_shape_and_starts_at_zero(size, depth):
    h, y = torch.randn(8, *size), torch.arange(8) % 3
    for classes in (0, 3):
        net = Synthesizer(size, depth=depth, width=9, classes=classes)
        assert sum(p.dim() > 1 for p in net.parameters()) == depth + 1 + bool(classes)
        assert sum(isinstance(m, nn.ReLU) for m in net.modules()) == depth
        out = net(h, y)
        assert out.shape == h.shape
        assert out.abs().max() == 0


def test_a_linear_synthesizer_is_linear_and_one_without_batch_norm_knows_single_samples():
    torch.manual_seed(0)
    h, y = torch.randn(8, 7), torch.arange(8) % 3
    linear, plain = Synthesizer((7,), depth=0), Synthesizer((7,), batch_norm=False)
    for net in (linear, plain):
        nn.init.normal_(net.last_layer.weight)
        assert torch.allclose(net(h[:1], y[:1]), net(h, y)[:1], atol=1e-6)
    assert torch.allclose(linear(h + h.roll(1, 0), y), linear(h, y) + linear(h, y).roll(1, 0), atol=1e-5)


@pytest.mark.parametrize(
    ("image", "reads"), [((1, 8, 8), (4, 4, 4)), ((1, 8, 8), (10,)), ((5, 6), (5, 3)), ((9,), (4,))]
)
def test_an_input_synthesizer_fits_and_learns(image, reads):
    torch.manual_seed(0)
    x, y, target = torch.randn(16, *image), torch.arange(16) % 3, torch.randn(16, *reads)
    net = InputSynthesizer(image, reads, Synthesizer(reads, classes=3))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = F.mse_loss(net(x, y), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert net(x, y).shape == target.shape
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_on_a_linear_net_the_synthesizer_learns_the_gradient():
    """Fixed data, a linear net: the recorded loss starts at 1, which is predicting zero, and falls far below."""
    torch.manual_seed(0)
    units = [nn.Linear(5, 8), nn.Linear(8, 8)]
    model = BlockModel(units, nn.Linear(8, 3), image=(5,), classes=3, name="linear")
    x, y = torch.randn(32, 5, dtype=torch.float64), torch.arange(32) % 3
    learner = tiny_learner(CDNI(), model, blocks=2, optim=SGD(lr=0.05, momentum=0.9, schedule="constant"))
    losses = [learner.step(x, y)["block/00/synthesizer_loss"] for _ in range(200)]
    assert losses[0] == pytest.approx(1.0)
    assert losses[-1] < 0.2


def test_options_are_checked():
    for bad in ({"warmup": 1.5}, {"mix": -0.1}, {"width": -1}, {"depth": -1}):
        with pytest.raises(UserError, match=f"strategy.{next(iter(bad))}="):
            DNI(**bad)
