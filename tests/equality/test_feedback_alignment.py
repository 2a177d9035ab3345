"""Feedback alignment and sign symmetry against backpropagation, a net written in numpy, and stop-gradient autograd."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.gradcheck import GradcheckError, gradcheck
from torch.nn import functional as F

from helpers.feedback import (
    accuracy,
    angles,
    assert_close,
    digits,
    gradients,
    loss,
    np_gradients,
    np_model,
    odd_batches,
    odd_model,
    teach,
    true_gradients,
)
from helpers.nets import SGD_CONSTANT, tiny_batches, tiny_learner, tiny_model
from helpers.strategies import slow_where_alike
from locallearn.contract import BlockSpec, Strategy
from locallearn.engine import Learner
from locallearn.errors import UserError
from locallearn.models import BlockModel, as_blocks
from locallearn.strategies.backprop import Backprop
from locallearn.strategies.feedback_alignment import (
    BatchRandomSign,
    FeedbackAlignment,
    FeedbackLayer,
    FixedRandomSign,
    UniformSign,
)
from locallearn.strategies.greedy import Shallow

FAMILY: dict[str, Strategy] = {
    "fa": FeedbackAlignment(),
    "usf": UniformSign(),
    "frsf": FixedRandomSign(),
    "brsf": BatchRandomSign(),
}
SPEC = BlockSpec(1, 2, (2, 8, 8), (2, 8, 8), (3,), 3)


def wrapped(module: nn.Module) -> list[FeedbackLayer]:
    return [m for m in module.modules() if isinstance(m, FeedbackLayer)]


def layers_of(learner: Learner) -> list[FeedbackLayer]:
    parts = [part for block in learner.blocks for part in (block.layers, block.head) if part is not None]
    return [layer for part in parts for layer in wrapped(part)]


# ---- a net in numpy: two convolutions with tanh and a linear layer, forward and backward by loops


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("blocks", [1, 3])
def test_gradients_are_those_of_a_net_in_numpy(name, blocks):
    learner = tiny_learner(FAMILY[name], np_model(), blocks)
    draw = np.random.default_rng(0)
    back = [layer.weight.numpy().copy() for layer in layers_of(learner)]
    for k, layer in enumerate(layers_of(learner)):
        given = draw.normal(size=back[k].shape)
        if layer.feedback is not None:
            layer.feedback.copy_(torch.from_numpy(given))
        if name == "fa":
            back[k] = given
        elif name == "usf":
            back[k] = np.sign(back[k]) * layer.std
        elif name == "frsf":
            back[k] = np.sign(back[k]) * np.abs(given)
        else:
            layer.magnitude = lambda m=given: torch.from_numpy(np.abs(m))  # type: ignore[method-assign]
            back[k] = np.sign(back[k]) * np.abs(given)
    x, y = tiny_batches(1)[0]
    truth = np_gradients(learner.model, x, y, back)
    found = gradients(learner, x, y)
    assert found.keys() == truth.keys()
    for key, gradient in found.items():
        assert_close(gradient, torch.from_numpy(truth[key]), key)


def test_the_net_in_numpy_is_right():
    """With its own weights on the way back it is backpropagation."""
    model, (x, y) = np_model().double(), tiny_batches(1)[0]
    back = [m.weight.detach().numpy() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    truth = true_gradients(model, x, y)
    for key, gradient in np_gradients(model, x, y, back).items():
        assert_close(torch.from_numpy(gradient), truth[key], key)


# ---- ties to backpropagation


@pytest.mark.parametrize("name", ["fa", "frsf", "brsf"])
@pytest.mark.parametrize("blocks", [1, 3, 8])
def test_with_its_own_weights_it_is_backprop(name, blocks):
    batches = odd_batches()
    learner = tiny_learner(FAMILY[name], odd_model(), blocks, total_steps=len(batches))
    model = odd_model().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    assert len(layers_of(learner)) == 8
    for x, y in batches:
        for layer in layers_of(learner):
            if name == "brsf":
                layer.magnitude = layer.weight.abs  # type: ignore[method-assign]
            else:
                layer.feedback.copy_(layer.weight)
        learner.learn(x, y)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    for key, p in model.named_parameters():
        assert_close(learner.model.get_parameter(key), p, key)
    for key, b in model.named_buffers():
        assert torch.allclose(learner.model.get_buffer(key), b, rtol=1e-12)


@pytest.mark.parametrize("name", FAMILY)
def test_only_the_last_layer_learns_as_under_backprop(name):
    batches = odd_batches()
    learner = tiny_learner(FAMILY[name], odd_model(), 8, total_steps=len(batches))
    for x, y in batches:
        true, found = true_gradients(learner.model, x, y), gradients(learner, x, y)
        for key, gradient in found.items():
            if key.startswith("units.7"):
                assert_close(gradient, true[key], key)
            else:
                assert (gradient - true[key]).norm() > 0.05 * true[key].norm(), key
        learner.learn(x, y)


@pytest.mark.parametrize("name", FAMILY)
def test_gradcheck_holds_for_weights_and_bias_and_fails_for_the_input(name):
    torch.manual_seed(0)
    h = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    twin = FAMILY[name].adapt(nn.Conv2d(3, 2, 3, stride=2, padding=1).double(), SPEC)
    weight, bias = (p.detach().clone().requires_grad_() for p in twin.parameters())

    def run(h, weight, bias):
        return torch.func.functional_call(twin, {"layer.weight": weight, "layer.bias": bias}, (h,))

    assert gradcheck(lambda w, b: run(h, w, b), (weight, bias))
    with pytest.raises(GradcheckError):
        gradcheck(lambda h: run(h, weight, bias), (h,))


def test_sequences_and_a_layer_used_in_every_time_step():
    """A recurrent net, against y = W sg[h] + sg[B] h - sg[sg[B] h] on one autograd graph."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix, self.again = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 5)
            self.same = self.mix  # a second name for one layer

        def forward(self, x):
            inputs, h = torch.tanh(self.embed(x)), x.new_zeros(len(x), 4)
            for t in range(x.shape[1]):
                h = torch.tanh((self.mix if t % 2 else self.same)(h) + inputs[:, t])
            return self.again(inputs).sum(1) + self.again(h)

    torch.manual_seed(0)
    net, x = Recurrent().double(), torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    twin = FeedbackAlignment().adapt(net, SPEC)
    assert twin.mix is twin.same
    assert len(wrapped(twin)) == 3
    back = {"embed": twin.embed.feedback, "mix": twin.mix.feedback, "again": twin.again.feedback}

    class Stopped(nn.Module):
        def __init__(self, layer, b) -> None:
            super().__init__()
            self.layer, self.b = layer, b

        def forward(self, h):
            through = F.linear(h, self.b)
            return self.layer(h.detach()) + through - through.detach()

    truth = copy.deepcopy(net)
    for name, b in back.items():
        setattr(truth, name, Stopped(getattr(truth, name), b))
    truth.same = truth.mix
    direction = torch.randn(2, 5, dtype=torch.float64)
    ours = torch.autograd.grad((twin(x) * direction).sum(), [x, *net.parameters()])
    theirs = torch.autograd.grad((truth(x) * direction).sum(), [x, *truth.parameters()])
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, "recurrent")


@pytest.mark.parametrize("name", ["fa", "usf", "frsf"])
def test_micro_batches_average_the_gradient(name):
    model = odd_model()
    model.units[1][1] = nn.Identity()  # batch norm lets samples meet
    (x, y), learners = odd_batches(1)[0], []
    for micro in (1, 3):
        learners.append(tiny_learner(FAMILY[name], model, 4, micro_batches=micro))
        learners[-1].learn(x, y)
    for key, p in learners[0].model.named_parameters():
        assert_close(learners[1].model.get_parameter(key), p, key)


# ---- sign symmetry


@pytest.mark.parametrize("name", ["usf", "frsf", "brsf"])
def test_signs_are_those_of_the_weights(name):
    learner = tiny_learner(FAMILY[name], odd_model(), 8)
    for x, y in odd_batches(3):
        learner.learn(x, y)
        for layer in layers_of(learner):
            w, b = layer.weight.flatten(), layer.backward_weight().flatten()
            assert torch.equal(w.sign(), b.sign())
            cosine = F.cosine_similarity(w, b, dim=0).item()
            assert cosine > 0
            if name == "usf":
                assert cosine == pytest.approx((w.abs().sum() / (w.norm() * math.sqrt(w.numel()))).item(), rel=1e-12)
                out, fan_in = layer.weight.shape[0], layer.weight[0].numel()
                fan_out = out * fan_in / layer.weight.shape[1]
                assert b.abs().max().item() == pytest.approx(math.sqrt(2 / (fan_in + fan_out)), rel=1e-12)
            with torch.no_grad():
                layer.layer.weight.neg_()
                assert torch.equal(layer.backward_weight().flatten(), -b)
                layer.layer.weight.neg_()


@pytest.mark.parametrize("init", ["xavier", "kaiming"])
@pytest.mark.parametrize("strategy", [FeedbackAlignment, FixedRandomSign, BatchRandomSign])
def test_scale_of_the_feedback(strategy, init):
    torch.manual_seed(0)
    layer = strategy(init=init).adapt(nn.Conv2d(30, 50, 3), SPEC)
    fan_in, fan_out = 30 * 9, 50 * 9
    wanted = 2 / (fan_in + fan_out) if init == "xavier" else 1 / (3 * fan_in)
    b = layer.backward_weight()
    assert b.shape == (50, 30, 3, 3)
    assert b.square().mean().item() == pytest.approx(wanted, rel=0.05)
    assert abs(b.mean().item()) < 0.05 * math.sqrt(wanted)
    own = nn.Conv2d(30, 50, 3).weight.square().mean().item()  # as PyTorch initialises it
    assert (own == pytest.approx(wanted, rel=0.05)) == (init == "kaiming")


def magnitudes(learner: Learner, batches) -> list[torch.Tensor]:
    """|M| of every layer in every step, as the forward pass draws them."""
    drawn = []
    for layer in layers_of(learner):

        def look(layer=layer, draw=layer.magnitude):
            drawn.append(draw())
            return drawn[-1]

        layer.magnitude = look
    for x, y in batches:
        learner.learn(x, y)
    return drawn


def test_brsf_draws_anew_and_repeats():
    batches = odd_batches(3)
    first, second, other = (
        magnitudes(tiny_learner(BatchRandomSign(), odd_model(), 4, seed=seed, total_steps=3), batches)
        for seed in (0, 0, 1)
    )
    assert len(first) == 3 * 7  # the first layer of the net answers nobody
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    for k in range(7):
        assert not torch.equal(first[k], first[k + 7])
    assert not torch.equal(first[2].flatten()[:8], first[3].flatten()[:8])


@pytest.mark.parametrize("name", FAMILY)
def test_dropout_is_that_of_backprop(name):
    def masks(strategy):
        torch.manual_seed(0)
        units = [nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Tanh(), nn.Dropout(0.4)) for _ in range(4)]
        head = nn.Sequential(nn.Flatten(), nn.Dropout(0.4), nn.Linear(72, 3))
        model = BlockModel(units, head, image=(2, 6, 6), classes=3, name="dropout")
        learner, seen = tiny_learner(strategy, model, 2, total_steps=3), []
        for block in learner.blocks:
            for m in (*block.layers.modules(), *(block.head.modules() if block.head else ())):
                if isinstance(m, nn.Dropout):
                    m.register_forward_hook(lambda m, args, out: seen.append(out == 0))
        for x, y in tiny_batches(3):
            learner.learn(x, y)
        return seen

    ours, theirs = masks(FAMILY[name]), masks(Backprop())
    assert len(ours) == 3 * 5
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not torch.equal(ours[0], ours[5])


# ---- the twin


@pytest.mark.parametrize("name", FAMILY)
def test_the_twin_shares_every_parameter_and_buffer(name):
    learner = tiny_learner(FAMILY[name], tiny_model(dropout=0.2), channels_last=True, total_steps=2)
    own = {id(t) for t in (*learner.model.parameters(), *learner.model.buffers())}
    twin = [t for block in learner.blocks for t in (*block.layers.parameters(), *block.layers.named_buffers())]
    added = [t for t in twin if isinstance(t, tuple) and id(t[1]) not in own]
    assert all(id(t) in own for t in twin if not isinstance(t, tuple))
    assert [n.rpartition(".")[2] for n, _ in added] == (["feedback"] * 4 if name in ("fa", "frsf") else [])
    assert not any(wrapped(unit) for unit in learner.model.units), "the model itself was changed"
    for x, y in tiny_batches(2):
        learner.learn(x, y)
    assert learner.model.units[2][1].num_batches_tracked == 2
    x = tiny_batches(1)[0][0]
    assert torch.equal(learner.predict(x)[-1], learner.model.eval()(x))


@pytest.mark.parametrize("name", ["fa", "frsf"])
def test_feedback_stays_is_saved_and_belongs_to_no_optimizer(name):
    batches = odd_batches(6)
    learner = tiny_learner(FAMILY[name], odd_model(), 4, total_steps=6, optim=SGD_CONSTANT)
    before = [layer.feedback.clone() for layer in layers_of(learner)]
    for x, y in batches[:3]:
        learner.learn(x, y)
    assert all(torch.equal(layer.feedback, b) for layer, b in zip(layers_of(learner), before, strict=True))
    owned = {
        p.data_ptr()
        for block in learner.blocks
        for optimizer in block.optimizers.values()
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert not owned & {layer.feedback.data_ptr() for layer in layers_of(learner)}
    saved = [key for key in learner.state() if key.startswith("adapted.") and key.endswith(".feedback")]
    assert len(saved) == len(before)


def test_every_block_and_seed_has_feedback_of_its_own():
    def first(blocks, seed):
        return layers_of(tiny_learner(FeedbackAlignment(), odd_model(), blocks, seed=seed))[1].feedback

    assert torch.equal(first(2, 0), first(2, 0))
    assert not torch.equal(first(2, 0), first(2, 1))
    torch.manual_seed(0)
    model = BlockModel([nn.Linear(4, 4), nn.Linear(4, 4)], nn.Linear(4, 2), image=(4,), classes=2, name="two")
    a, b, *_ = (layer.feedback for layer in layers_of(tiny_learner(FeedbackAlignment(), model, 2)))
    assert not torch.equal(a, b)


@pytest.mark.parametrize("name", FAMILY)
def test_a_traced_module_with_in_place_activations(name):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(16, 8), nn.ReLU(inplace=True), nn.Linear(8, 3),
    )  # fmt: skip
    learner = tiny_learner(FAMILY[name], as_blocks(net, image=(2, 6, 6)), "max", total_steps=2)
    assert sum(len(wrapped(block.layers)) for block in learner.blocks) == 3
    if name in ("fa", "frsf"):
        for layer in layers_of(learner):
            layer.feedback.copy_(layer.weight)
        x, y = tiny_batches(1)[0]
        true, found = true_gradients(learner.model, x, y), gradients(learner, x, y)
        for key, gradient in true.items():
            assert_close(found[key], gradient, key)
    else:
        learner.learn(*tiny_batches(1)[0])


@pytest.mark.parametrize("name", FAMILY)
def test_a_parametrised_layer_keeps_its_parametrisation(name):
    torch.manual_seed(0)
    unit = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), nn.Tanh()).double()
    twin = FAMILY[name].adapt(unit, SPEC)
    assert len(wrapped(twin)) == 1
    h = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    parameters = list(unit.parameters())
    ours = torch.autograd.grad(twin(h).sum(), parameters)
    theirs = torch.autograd.grad(unit(h).sum(), parameters)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", FAMILY)
def test_on_the_meta_device(name):
    twin = FAMILY[name].adapt(odd_model().block(range(8)).to("meta"), SPEC)
    x = torch.empty(2, 2, 8, 8, device="meta", requires_grad=True)
    twin(x).sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize(
    "module",
    [
        nn.GRU(3, 3),
        nn.LSTMCell(3, 3),
        nn.MultiheadAttention(4, 2),
        nn.ConvTranspose2d(2, 2, 3),
        nn.Bilinear(2, 2, 2),
        type("Padding", (nn.Conv2d,), {"forward": lambda self, h: super(nn.Conv2d, self).forward(F.pad(h, (1, 1)))})(
            2, 2, 3
        ),
    ],
    ids=lambda m: type(m).__name__,
)
def test_weight_matrices_of_other_kinds_are_refused(module):
    unit = nn.Sequential(nn.Linear(3, 3), nn.Sequential(module))
    with pytest.raises(UserError, match=rf"block 1: layers.1.0 is a {type(module).__name__}, .*choose strategy=dfa"):
        FeedbackAlignment().adapt(unit, SPEC)


def test_init_is_checked():
    with pytest.raises(UserError, match=r"strategy.init=xavie: did you mean 'xavier'"):
        UniformSign(init="xavie")


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv1d(6, 4, 3), nn.Conv1d(6, 4, 3, padding="same")])
def test_no_activation_is_kept_that_backprop_would_not_keep(layer):
    def kept(module):
        """How many tensors as large as the input, or padded, autograd keeps."""
        h, found = torch.randn(5, 6, 6, requires_grad=True), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: found.append(t.numel()) or t, lambda t: t):
            module(h * 1.0)
        return sum(n >= h.numel() for n in found)

    twin = FeedbackAlignment().adapt(layer, SPEC)
    with torch.no_grad():
        assert torch.equal(twin(torch.ones(5, 6, 6)), layer(torch.ones(5, 6, 6)))
    assert kept(twin) == kept(layer) == 1


# ---- number formats, memory layout, compilation


def twin_gradients(twin: nn.Module, h: torch.Tensor, seed: int = 0) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    h = h.detach().requires_grad_()
    return list(torch.autograd.grad(twin(h).square().sum(), [h, *twin.parameters()]))


@pytest.fixture
def conv_unit() -> nn.Module:
    torch.manual_seed(0)
    convs = [nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh(), nn.Conv2d(6, 4, 3, stride=2)]
    return nn.Sequential(*convs, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(36, 5))


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("layer", [nn.Linear(6, 40), nn.Conv2d(6, 40, 3, stride=2, padding=1)], ids=["linear", "conv"])
def test_under_bfloat16_autocast(name, layer):
    """Gradients are those of exact arithmetic on rounded numbers, and arrive in the format of what they belong to."""
    twin = FAMILY[name].adapt(layer, SPEC)
    h = torch.randn(4, 7, 6) if isinstance(layer, nn.Linear) else torch.randn(4, 6, 7, 7)
    h.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = twin(h)
        dy = torch.randn(y.shape).bfloat16()
        dh, dw = torch.autograd.grad(y, [h, layer.weight], dy)
    assert y.dtype == torch.bfloat16
    assert dh.dtype == dw.dtype == torch.float32
    b, w, x, dy = (t.detach().bfloat16().double() for t in (twin.backward_weight(), layer.weight, h, dy))
    if isinstance(layer, nn.Linear):
        dh_true, dw_true = dy @ b, torch.einsum("bto,bti->oi", dy, x)
    else:
        dh_true = F.conv_transpose2d(dy, b, stride=2, padding=1)
        w.requires_grad_()
        (dw_true,) = torch.autograd.grad(F.conv2d(x, w, stride=2, padding=1), w, dy)
    assert_close(dh.double(), dh_true, "input", rtol=2**-8)  # one rounding of the result
    assert_close(dw.double(), dw_true, "weight", rtol=2**-8)


@pytest.mark.parametrize("name", FAMILY)
def test_channels_last_is_the_same(name, conv_unit):
    twin, h = FAMILY[name].adapt(conv_unit.double(), SPEC), torch.randn(8, 4, 8, 8, dtype=torch.float64)
    plain = twin_gradients(twin, h)
    twin.to(memory_format=torch.channels_last)
    last = twin_gradients(twin, h.contiguous(memory_format=torch.channels_last))
    assert last[0].is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(last, plain, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fa", "usf", "brsf"])
def test_compiled_is_the_same(name, conv_unit):
    twin, h = FAMILY[name].adapt(conv_unit.double(), SPEC), torch.randn(8, 4, 8, 8, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=name != "brsf")
    for seed in (1, 2):  # the second pass reuses the compiled graph
        for a, b in zip(twin_gradients(compiled, h, seed=seed), twin_gradients(twin, h, seed=seed), strict=True):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        twin[3].layer.weight.neg_()
    for a, b in zip(twin_gradients(compiled, h), twin_gradients(twin, h), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


# ---- does it learn


@pytest.mark.parametrize("seed", [0, 1])
def test_weights_come_to_agree_with_the_feedback(seed):
    learner, x, y = digits(64, FeedbackAlignment(), seed)
    before, start = angles(learner, x[:256], y[:256]), loss(learner, x, y)
    assert len(before) == 3
    assert all(60 < angle < 120 for angle in before), before
    teach(learner, x, y, 300)
    after = angles(learner, x[:256], y[:256])
    assert all(angle < 85 for angle in after), after
    assert sum(after) / 3 < 75
    assert loss(learner, x, y) < 0.2 * start


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_where_alike(FAMILY))
def test_hidden_layers_of_a_narrow_net_learn_something(name):
    """Against the control in which only the classifier learns."""
    learner, x, y = digits(12, FAMILY[name], seed=0)
    control, _, _ = digits(12, Shallow(), seed=0)
    teach(learner, x, y, 400)
    teach(control, x, y, 400)
    assert accuracy(learner, x, y) > accuracy(control, x, y) + 0.05
