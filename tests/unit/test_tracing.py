"""A trace freezes no draw, no decision and no state, and leaves the user's module as it was."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import locallearn
from locallearn.errors import UserError
from locallearn.models import as_blocks

OF_THIS_FILE = np.random.default_rng(0)


class Net(nn.Module):
    """Three layers, between which `middle` does something unusual."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.counter, self.log, self.plain = 0, [], torch.ones(8)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(8))
        self.python, self.numpy = random.Random(0), np.random.default_rng(0)
        self.old_numpy, self.torch = np.random.RandomState(0), torch.Generator().manual_seed(0)

    def forward(self, x):
        return self.c(self.b(self.middle(self.a(x.flatten(1)).tanh())).tanh())

    def middle(self, h):
        return h


def with_middle(middle) -> nn.Module:
    return type("Net", (Net,), {"middle": middle})()


def with_part(middle) -> nn.Module:
    """The same as a submodule, which can stay in one piece."""
    part = type("Part", (Net,), {"forward": middle})()
    return nn.Sequential(nn.Linear(12, 8), nn.Tanh(), part, nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def drop(self, h):
    return h * torch.rand(8)


def own_generator(self, h):
    return h * torch.randn(8, generator=self.torch)


def fill(self, h):
    return h * torch.empty(8).bernoulli_(0.5)


def shuffle(self, h):
    return h[:, torch.randperm(8)]


def sample(self, h):
    return h[:, torch.multinomial(torch.ones(8), 8)]


def skip_by_torch(self, h):
    return h if torch.rand(()) < 0.05 else h * 2


def skip_by_python(self, h):
    return h if random.random() < 0.05 else h * 2


def skip_in_training(self, h):
    return h * 2 if self.training and random.random() < 0.05 else h


def skip_by_own_python(self, h):
    return h if self.python.random() < 0.05 else h * 2


def skip_by_numpy(self, h):
    return h if np.random.rand() < 0.05 else h * 2


def skip_by_own_numpy(self, h):
    return h if self.numpy.random() < 0.05 else h * 2


def skip_by_old_numpy(self, h):
    return h if self.old_numpy.rand() < 0.05 else h * 2


def skip_by_a_generator_of_the_file(self, h):
    return h if OF_THIS_FILE.random() < 0.05 else h * 2


def numbers_of_numpy(self, h):
    return h * torch.from_numpy(np.random.rand(8).astype("float32"))


def reseed(self, h):
    torch.manual_seed(3)
    return h


DRAWS = [
    *(drop, own_generator, fill, shuffle, sample, skip_by_torch, skip_by_python, skip_in_training, skip_by_own_python),
    *(skip_by_numpy, skip_by_own_numpy, skip_by_old_numpy, skip_by_a_generator_of_the_file, numbers_of_numpy, reseed),
]


def sign(self, h):
    return h * 2 if h.sum() > 0 else h


def size(self, h):
    return h * 2 if h.shape[0] > 1 else h


def gradient(self, h):
    return h * 2 if h.requires_grad else h


def buffer(self, h):
    return h * 2 if self.steps > 5 else h


def loop(self, h):
    for row in h:
        h = h + row
    return h


DECISIONS = [sign, size, gradient, buffer, loop]


def count(self, h):
    self.counter += 1
    return h


def count_and_decide(self, h):
    self.counter += 1
    return h if self.counter % 100 else h * 2


def count_in_a_buffer(self, h):
    self.steps += 1
    return h


def replace_a_buffer(self, h):
    self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
    return h - self.mean


def write_into_a_tensor(self, h):
    self.plain.mul_(0.5)
    return h * self.plain


def cache(self, h):
    self.cached = h
    return h


def append(self, h):
    self.log.append(h.sum())
    return h


STATES = {
    count: "counter",
    count_and_decide: "counter",
    count_in_a_buffer: "steps",
    replace_a_buffer: "mean",
    write_into_a_tensor: "plain",
    cache: "cached",
    append: "log",
}


def without_gradients(self, h):
    with torch.no_grad():
        return h + self.b(h)


def in_half(self, h):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return (h @ self.b.weight).float()


MODES = [without_gradients, in_half]
SENTENCES = {
    **dict.fromkeys(DRAWS, "its forward draws random numbers"),
    **dict.fromkeys(DECISIONS, "its forward makes a decision on the values of a tensor"),
    **{middle: f"its forward changes self.{name}" for middle, name in STATES.items()},
    **dict.fromkeys(MODES, "its forward switches gradients or autocast for a part of it"),
}


def everything(net: nn.Module) -> dict[str, object]:
    """All that can be seen of a module: attributes, tensors with their identity and layout, modes, generators."""
    seen: dict[str, object] = {}
    for path, module in net.named_modules():
        for key, value in vars(module).items():
            if key in ("_parameters", "_buffers"):
                for name, t in value.items():
                    seen[f"{path}.{name}"] = id(t), t.dtype, t.stride(), t.data_ptr(), t.tolist(), t.requires_grad
            elif isinstance(value, torch.Tensor):
                seen[f"{path}.{key}"] = id(value), value.tolist()
            elif isinstance(value, random.Random):
                seen[f"{path}.{key}"] = value.getstate()
            elif isinstance(value, torch.Generator):
                seen[f"{path}.{key}"] = value.get_state().tolist()
            elif isinstance(value, np.random.Generator):
                seen[f"{path}.{key}"] = repr(value.bit_generator.state)
            elif isinstance(value, np.random.RandomState):
                seen[f"{path}.{key}"] = value.get_state()[1].tolist()
            else:
                seen[f"{path}.{key}"] = id(value), copy.copy(value)
    place = np.random.get_state()[2]
    return seen | {"random": (random.getstate(), place, torch.get_rng_state().tolist())}


@pytest.mark.parametrize("middle", SENTENCES, ids=lambda f: f.__name__)
def test_what_a_trace_would_freeze_is_refused(middle):
    net = with_middle(middle)
    net.a.eval()
    before = everything(net)
    for _ in range(3):  # not by chance
        with pytest.raises(UserError) as error:
            as_blocks(net, image=(12,), name="net")
        assert str(error.value) == (
            f"net cannot be cut: {SENTENCES[middle]}; move that part into a submodule, which then stays in one piece, "
            "or write the model as a locallearn.BlockModel"
        )
    assert everything(net) == before


def restart() -> None:
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)


def run(module: nn.Module, net: nn.Module, steps: int = 12) -> list[torch.Tensor]:
    """Some outputs in training and in evaluation, with a state that goes on; and what the state is then."""
    restart()
    x = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    outputs = []
    for step in range(steps):
        module.train(step % 3 > 0)
        outputs.append(module(x).detach())
    part = net[2]
    return [*outputs, torch.tensor(part.counter), part.steps.clone(), part.mean.clone(), part.plain.clone()]


@pytest.mark.parametrize("middle", SENTENCES, ids=lambda f: f.__name__)
def test_a_submodule_that_a_trace_would_freeze_stays_as_it_is(middle):
    """Bit for bit what the module does: the same draws, the same counts, the same decisions."""
    net, twin = with_part(middle), with_part(middle)
    twin.load_state_dict(net.state_dict())
    before = everything(net)
    model = as_blocks(net, image=(12,))
    assert everything(net) == before
    assert len(model.units) == 3
    state = OF_THIS_FILE.bit_generator.state
    ours = run(model, net)
    OF_THIS_FILE.bit_generator.state = state
    theirs = run(twin, twin)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def at_run_time(self, h):
    return h * torch.rand_like(h)


def functional_dropout(self, h):
    return F.dropout(h, 0.5, self.training)


def always_dropped(self, h):
    return F.dropout(h, 0.5)


def mixed(self, h):
    return h[torch.randperm(h.size(0))]


def of_the_batch(self, h):
    return h + torch.arange(h.size(0))[:, None] + h.new_zeros(h.shape[0], 8)


def constants(self, h):
    return h * torch.tril(torch.ones(8, 8))[3] + torch.arange(8)


def running_mean(self, h):
    self.mean.mul_(0.9).add_(h.detach().mean(0) * 0.1)
    self.steps.add_(1)
    return (h - self.mean) / (self.mean.abs() + self.steps).sqrt()


def gumbel(self, h):
    return F.gumbel_softmax(h)


def plain(self, h):
    return h * self.plain.sqrt()


TRACED = [at_run_time, functional_dropout, always_dropped, mixed, of_the_batch, constants, running_mean, gumbel, plain]


@pytest.mark.parametrize("middle", TRACED, ids=lambda f: f.__name__)
def test_what_a_graph_can_say_is_traced(middle):
    net, twin = with_part(middle), with_part(middle)
    twin.load_state_dict(net.state_dict())
    before = everything(net)
    model = as_blocks(net, image=(12,))
    assert everything(net) == before
    assert not any(str(node.target) == "2" for unit in [*model.units, model.head] for node in unit.graph.nodes)
    for a, b in zip(run(model, net), run(twin, twin), strict=True):
        assert torch.equal(a, b)


def type_of_it(self, h):
    return h * 2 if isinstance(h, torch.Tensor) else h


def catch(self, h):
    try:
        return h * float(h.sum().item())
    except TypeError:
        return h


@pytest.mark.parametrize("middle", [type_of_it, catch], ids=lambda f: f.__name__)
@pytest.mark.parametrize("make", [with_middle, with_part])
def test_what_a_trace_cannot_see_is_found_by_running_it(middle, make):
    net = make(middle)
    before = everything(net)
    with pytest.raises(UserError, match="computes something else when it is cut: its forward depends on what no trace"):
        as_blocks(net, image=(12,))
    assert everything(net) == before


def test_hooks_of_the_user_run_as_often_as_in_their_own_loop():
    calls: list[str] = []
    net = nn.Sequential(nn.Linear(12, 8), nn.Sequential(nn.Tanh(), nn.Linear(8, 8)), nn.Tanh(), nn.Linear(8, 3))
    net[0].register_forward_hook(lambda *_: calls.append("layer"))
    net[1].register_forward_pre_hook(lambda *_: calls.append("container"))
    model = as_blocks(net, image=(12,))
    calls.clear()
    model(torch.randn(2, 12))
    assert sorted(calls) == ["container", "layer"]
    net.register_forward_hook(lambda *_: None)
    with pytest.raises(UserError, match="cannot be cut: it has hooks; move that part into a submodule"):
        as_blocks(net, image=(12,))


class Typed(nn.Module):
    """Complex weights and buffers, integer weights, a mask."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        half = width // 2 + 1
        self.weight = nn.Parameter(torch.randn(half, dtype=torch.complex64))
        self.order = nn.Parameter(torch.arange(width).flip(0), requires_grad=False)
        self.register_buffer("phase", torch.polar(torch.ones(half), torch.rand(half)))
        self.register_buffer("mask", torch.ones(width, dtype=torch.bool))

    def forward(self, x):
        spectrum = torch.fft.rfft(x) * self.weight * self.phase
        return (torch.fft.irfft(spectrum, n=x.shape[-1]) * self.mask)[:, self.order]


def typed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), Typed(), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize(("precision", "real"), [("fp32", torch.float32), ("fp64", torch.float64)])
@pytest.mark.parametrize("optim", ["sgd", "adam"])
def test_complex_and_integer_numbers_keep_their_kind(precision, real, optim):
    torch.manual_seed(0)
    net = typed()
    before = copy.deepcopy(net[2])
    settings = {"blocks": "max", "precision": precision, "optim": optim, "device": "cpu"}
    built = locallearn.build("dgl", net, image=(8,), classes=3, **settings)
    part = net[2]
    assert (part.weight.dtype, part.phase.dtype) == (real.to_complex(), real.to_complex())
    assert (part.order.dtype, part.mask.dtype) == (torch.int64, torch.bool)
    assert torch.equal(part.phase.to(torch.complex64), before.phase), "the imaginary part is there"
    built.step(torch.randn(8, 8), torch.randint(3, (8,)))
    moved = part.weight.detach().to(torch.complex64) - before.weight
    assert moved.real.abs().max() > 0 < moved.imag.abs().max()
    owned = {id(t) for t in (*built.model.parameters(), *built.model.buffers())}
    assert {id(t) for t in (*net.parameters(), *net.buffers())} <= owned, "the user's module is the one that is trained"


def test_weights_are_never_rounded_in_place():
    net = typed().double()
    before = everything(net)
    with pytest.raises(UserError, match=r"holds units\.0\.0\.weight in float64, and precision=fp32 would round it"):
        locallearn.build("dgl", net, image=(8,), classes=3, blocks="max", device="cpu")
    assert everything(net) == before
    locallearn.build("dgl", net, image=(8,), classes=3, blocks="max", precision="fp64", device="cpu")


def small() -> nn.Sequential:
    maps = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()
    return nn.Sequential(*maps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"strategy": "greedy"}, "trains in phases"),
        ({"objective": "infonce", "blocks": [1]}, "InfoNCE predicts rows"),
        ({"precision": "fp64", "strategy": "greedy"}, "trains in phases"),
        ({"strategy": "dni", "blocks": 1, "strategy.width": 3, "precision": "fp64"}, "read only with blocks=2 or more"),
        ({"blocks": 9}, "blocks=9 but Sequential has 2 units"),
        ({"classes": 5}, "returns 3 logits"),
        ({"image": (3, 8, 8)}, "cannot read images of 3x8x8"),
    ],
)
def test_a_refusal_leaves_the_module_as_it_was(settings, sentence):
    net = small()
    net[1].eval()
    net[3].weight.requires_grad_(False)
    image = (2, 5, 5) if settings.get("objective") else (2, 8, 8)
    if settings.get("objective"):  # the last block emits one position
        net = nn.Sequential(nn.Conv2d(2, 4, 5), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3))
    before = everything(net)
    with pytest.raises(UserError, match=sentence):
        locallearn.build(model=net, **{"image": image, "classes": 3, "blocks": "max", "device": "cpu"} | settings)
    assert everything(net) == before


def test_a_module_without_values_is_one_sentence():
    with pytest.raises(UserError, match="Sequential is on the meta device, where weights have no values"):
        as_blocks(small().to("meta"), image=(2, 8, 8))


@pytest.mark.parametrize("found", [lambda z: (z, z), lambda z: {"logits": z}, lambda z: [z], lambda z: None])
def test_a_module_that_returns_no_logits_is_one_sentence(found):
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            return found(self.b(self.a(x).relu()))

    kind = type(found(torch.zeros(1))).__name__
    with pytest.raises(UserError) as error:
        as_blocks(Odd(), image=(8,))
    assert str(error.value) == (
        f"Odd returns a {kind} for a batch of 2, not logits [batch, classes]; wrap it in a module that returns these "
        "alone"
    )


def test_a_layer_that_returns_a_tuple_is_one_sentence():
    net = nn.Sequential(nn.LSTM(5, 8, batch_first=True), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(UserError, match="a layer returns more than one tensor, of which a module of your own must"):
        as_blocks(net, image=(6, 5))

    class Taken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.LSTM(5, 8, batch_first=True), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x):
            return self.c(self.b(self.a(x)[0])[0][:, -1])

    assert as_blocks(Taken(), image=(6, 5)).shapes() == [(6, 8), (6, 8)]
    with pytest.raises(UserError, match="Taken cannot be cut after 'a': it does not return one tensor"):
        as_blocks(Taken(), ["a"], image=(6, 5))


def test_scripted_parts_stay_in_one_piece():
    part = torch.jit.script(nn.Sequential(nn.Linear(12, 8), nn.ReLU()))
    net = nn.Sequential(part, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model, x = as_blocks(net, image=(12,)), torch.randn(2, 12)
    assert torch.equal(model(x), net(x))
    with pytest.raises(UserError, match="RecursiveScriptModule cannot be cut"):
        as_blocks(torch.jit.script(nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))), image=(12,))
