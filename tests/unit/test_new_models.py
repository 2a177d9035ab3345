"""gelan, cspnet, revnet, rnn, gcn: published sizes, hand-written forwards, reversible blocks against plain autograd."""

from __future__ import annotations

import copy
import inspect
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from helpers.nets import assert_same, tiny_learner
from locallearn.analysis.cost import SavedBytes
from locallearn.errors import UserError
from locallearn.models import BlockModel, measure
from locallearn.models.coupling import Coupling, Reversible
from locallearn.models.gelan import RepConv, cspnet, fuse, gelan
from locallearn.models.graph import gcn
from locallearn.models.plain import mlp
from locallearn.models.recurrent import rnn
from locallearn.models.revnet import Downsample, revnet
from locallearn.models.summary import summary
from locallearn.models.vgg import vgg
from locallearn.strategies.backprop import Backprop, Checkpoint

CONF = Path(__file__).parents[2] / "conf" / "model"
RING = torch.tensor([[0, 1, 2, 3, 4, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 0, 1, 2, 3, 4]])  # five nodes in a circle


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def made(name: str, **options: object) -> BlockModel:
    """Each model on data that fits it, small."""
    torch.manual_seed(0)
    if name == "gcn":
        return gcn((6,), 3, RING, **options)  # type: ignore[arg-type]
    if name == "rnn":
        return rnn((7, 4), 3, **{"width": 5, **options})  # type: ignore[arg-type]
    return {"gelan": gelan, "cspnet": cspnet, "revnet": revnet}[name]((3, 16, 16), 3, **options)  # type: ignore[operator]


def inputs(model: BlockModel, batch: int = 4) -> torch.Tensor:
    return torch.randn(model.samples or batch, *model.image, generator=torch.Generator().manual_seed(1))


ALL = ["gelan", "cspnet", "revnet", "rnn", "gcn"]


@pytest.mark.parametrize("name", ALL)
def test_yaml_gives_the_defaults_of_the_builder(name):
    options = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    module, _, function = options.pop("_target_").rpartition(".")
    assert inspect.unwrap(getattr(import_module(module), function)).__kwdefaults__ == options


@pytest.mark.parametrize("name", ALL)
def test_forward_is_the_blocks_one_after_another_for_every_cut(name):
    model = made(name).eval()
    x = inputs(model)
    expected = model(x)
    assert expected.shape == (len(x), 3)
    for blocks in {1, 2, len(model.units)}:
        h = x
        for units in model.cut(blocks):
            h = model.block(units)(h)
            assert tuple(h.shape[1:]) == model.shapes()[units.stop - 1]
        assert torch.equal(model.head(h), expected)
    assert [unit.shape for unit in measure(model)] == model.shapes()


@pytest.mark.parametrize("name", ALL)
def test_no_unit_writes_into_its_input(name):
    model = made(name).train()
    h = inputs(model)
    for unit in [*model.units, model.head]:
        version = h._version
        out = unit(h)
        assert h._version == version
        h = out.detach()


# --- gelan and revnet


@pytest.mark.parametrize("image", [(1, 8, 8), (1, 28, 28), (3, 64, 64), (2, 17, 30), (3, 96, 96)])
@pytest.mark.parametrize("build", [gelan, cspnet, revnet])
def test_images_of_other_sizes(build, image):
    assert build(image, 7)(torch.randn(2, *image)).shape == (2, 7)


def conv(inputs: int, outputs: int, kernel: int) -> int:
    """Parameters of a convolution and its batch normalisation."""
    return inputs * outputs * kernel**2 + 2 * outputs


def test_gelan_by_hand():
    """The parameters of one unit of 64 channels with two branches of one computational block each."""

    def unit(block: int, blocks: int = 1, branches: int = 2) -> int:
        return conv(64, 64, 1) + branches * (blocks * block + conv(32, 32, 3)) + conv(64 + branches * 32, 64, 1)

    kinds = {
        "conv": conv(32, 32, 3),
        "res": 2 * conv(32, 32, 3),
        "dark": conv(32, 16, 1) + conv(16, 32, 3),
    }
    for block, parameters in kinds.items():
        assert count(gelan((3, 8, 8), 10, block=block).units[1]) == unit(parameters)
        deeper = gelan((3, 8, 8), 10, block=block, elan_depth=3, csp_depth=2).units[1]
        assert count(deeper) == unit(parameters, blocks=2, branches=3)
    csp = 2 * conv(32, 16, 1) + conv(32, 32, 1)
    residual = 2 * conv(16, 16, 3) + conv(16, 16, 1)  # of which a 3x3 and a 1x1 stand side by side
    assert count(gelan((3, 8, 8), 10, csp_depth=3).units[1]) == unit(csp + 3 * residual)


def test_fused_for_inference_a_gelan_answers_as_before_with_fewer_parameters():
    torch.manual_seed(0)
    model = gelan((3, 8, 8), 10, width=0.25).double()
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    model.train()(x)  # batch statistics of its own
    before, fast = model.eval()(x), fuse(model)
    assert not any(isinstance(m, RepConv) for m in fast.modules())
    assert any(isinstance(m, RepConv) for m in model.modules()), "the model itself still trains"
    torch.testing.assert_close(fast(x), before, rtol=1e-12, atol=1e-12)
    assert count(fast) < count(model)


@pytest.mark.slow
def test_gelan_has_the_size_that_its_header_gives():
    model = gelan((3, 32, 32), 10)
    assert (len(model.units), round(count(model) / 1e6, 1)) == (8, 2.1)
    assert model.shapes()[-1] == (256, 4, 4)
    assert gelan((3, 32, 32), 10, width=0.5).shapes()[-1] == (128, 4, 4)
    assert gelan((3, 96, 96), 10).shapes()[0] == (64, 24, 24)


def test_cspnet_by_hand():
    """Two 1x1 convolutions to the halves, residual blocks on one of them, and a 1x1 convolution of both."""

    def unit(c: int, depth: int) -> int:
        return 2 * conv(c, c // 2, 1) + depth * 2 * conv(c // 2, c // 2, 3) + conv(c, c, 1)

    model = cspnet((3, 32, 32), 10)
    stages = [unit(c, 2) for c in (64, 128, 192, 256)]
    downs = [conv(3, 64, 3), conv(64, 128, 3), conv(128, 192, 3), conv(192, 256, 3)]
    assert count(model) == sum(stages) + sum(downs) + 256 * 10 + 10
    assert (len(model.units), round(count(model) / 1e6, 1)) == (8, 2.1)
    assert count(cspnet((3, 8, 8), 10, depth=5).units[1]) == unit(64, 5)


@pytest.mark.parametrize(("depth", "millions"), [(38, 0.46), (110, 1.73)])  # table 1 of the paper
def test_revnet_has_the_published_size(depth, millions):
    model = revnet((3, 32, 32), 10, depth=depth)
    assert round(count(model) / 1e6, 2) == millions
    assert len(model.units) == 1 + 3 * (depth // 12)
    assert sum(isinstance(unit, Downsample) for unit in model.units) == 2


@pytest.mark.parametrize("training", [False, True])
def test_inverse_of_every_coupling(training):
    model = revnet((3, 16, 16), 10).double().train(training)
    h = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    for unit in model.units:
        out = unit(h)
        if isinstance(unit, Coupling):
            assert not torch.equal(out, h)
            torch.testing.assert_close(unit.inverse(out), h, rtol=1e-9, atol=1e-9)
        h = out


def pair() -> tuple[BlockModel, nn.Module, BlockModel, nn.Module]:
    """A RevNet in float64 with its units joined, and a copy with the plain units one after another."""
    torch.manual_seed(0)
    model = revnet((3, 12, 12), 5).double().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    other = copy.deepcopy(model)
    return model, model.block(range(len(model.units))), other, nn.Sequential(*other.units)


@pytest.mark.parametrize("wanted", [False, True], ids=["block 0", "block above"])
def test_gradients_and_statistics_are_those_of_plain_autograd(wanted):
    model, joined, other, plain = pair()
    assert [type(part) for part in joined].count(Reversible) == 3
    for step in range(2):  # the second time gradients accumulate and statistics have moved
        x = torch.randn(6, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        a, b = x.clone().requires_grad_(wanted), x.clone().requires_grad_(wanted)
        out, expected = joined(a), plain(b)
        assert torch.equal(out, expected)
        model.head(out).square().sum().backward()
        other.head(expected).square().sum().backward()
        if wanted:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-11)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-11)
    assert_same(model, other)  # batch statistics: moved once a step, not by the recomputation
    assert {int(m.num_batches_tracked) for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {2}


def test_autograd_grad_gives_the_same_and_touches_nothing():
    model, joined, other, plain = pair()
    x = torch.randn(6, 3, 12, 12, dtype=torch.float64)
    some = [*model.units[1].parameters(), *model.units[8].parameters()]
    same = [*other.units[1].parameters(), *other.units[8].parameters()]
    found = torch.autograd.grad(joined(x).sin().sum(), some)
    for a, b in zip(found, torch.autograd.grad(plain(x).sin().sum(), same), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    assert all(p.grad is None for p in model.parameters())


def test_frozen_and_eval_units():
    model, joined, other, plain = pair()
    for net in (model, other):
        net.eval()
        net.units[2].f.requires_grad_(False)
    x = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    joined(x).square().sum().backward()
    plain(x).square().sum().backward()
    for p, q in zip(model.units.parameters(), other.units.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-11)
    assert_same(model, other)


def test_a_parameter_that_changed_before_the_backward_pass_is_noticed():
    model, joined, _, _ = pair()
    out = joined(torch.randn(2, 3, 12, 12, dtype=torch.float64)).sum()
    with torch.no_grad():
        next(model.units[1].parameters()).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


class Wrapped(nn.Module):
    """What feedback alignment puts in a convolution's place: the same weight, another class."""

    def __init__(self, inner: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.padding = inner.weight, inner.padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.weight, padding=self.padding)


def test_a_deep_copy_with_replaced_convolutions_trains_the_shared_weights():
    couplings = [Coupling(nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2)) for _ in range(3)]
    joined = Reversible(couplings).double()
    twin = copy.deepcopy(joined, memo={id(p): p for p in joined.parameters()})
    for unit in twin.units:
        unit.f = Wrapped(unit.f)
    x = torch.randn(4, 4, 5, 5, dtype=torch.float64)
    expected = torch.autograd.grad(nn.Sequential(*couplings)(x).square().sum(), list(joined.parameters()))
    twin(x).square().sum().backward()
    for p, grad in zip(joined.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-9, atol=1e-11)


def saved(units: int, joined: bool) -> tuple[int, int]:
    """Bytes held after the forward pass, and at the peak, of so many couplings on 8x32x32."""
    couplings = [Coupling(half(), half()) for _ in range(units)]
    run = Reversible(couplings) if joined else nn.Sequential(*couplings)
    with SavedBytes(run.parameters()) as held:
        out = run(torch.randn(4, 8, 32, 32))
        after = held.now
        out.sum().backward()
    assert held.now == 0
    return after, held.peak


def half() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, bias=False))


def test_memory_does_not_grow_with_the_number_of_couplings():
    output = 4 * 8 * 32 * 32 * 4
    assert saved(2, joined=True)[0] == saved(12, joined=True)[0] == output
    assert saved(12, joined=True)[1] == saved(3, joined=True)[1] < 3 * output
    plain = [saved(units, joined=False)[1] for units in (2, 12)]
    assert plain[1] > 5 * plain[0] > 5 * output


@pytest.mark.slow
def test_bfloat16_keeps_the_streams_wide():
    torch.manual_seed(0)
    model = revnet((3, 16, 16), 5)
    joined = model.block(range(len(model.units)))
    x = torch.randn(8, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = joined(x)
        loss = model.head(out).square().sum()
        expected = torch.autograd.grad(model.head(nn.Sequential(*model.units)(x)).square().sum(), model.parameters())
    loss.backward()  # outside autocast, as a user's own loop may do
    assert out.dtype == torch.float32
    for p, grad in zip(model.parameters(), expected, strict=True):
        assert torch.nn.functional.cosine_similarity(p.grad.flatten(), grad.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("strategy", [Backprop(), Checkpoint()])
def test_training_a_cut_revnet_is_training_it_whole(strategy):
    model = revnet((2, 6, 6), 3, depth=26)
    learner = tiny_learner(strategy, model, blocks=3)
    whole = copy.deepcopy(model).double().train()
    optim = torch.optim.SGD(whole.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    g = torch.Generator().manual_seed(2)
    for _ in range(3):
        x = torch.randn(8, 2, 6, 6, generator=g, dtype=torch.float64)
        y = torch.randint(3, (8,), generator=g)
        learner.learn(x, y)
        optim.zero_grad()
        nn.functional.cross_entropy(whole(x), y).backward()
        optim.step()
    for (name, p), q in zip(learner.model.state_dict().items(), whole.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9, msg=name)


# --- rnn


def test_rnn_by_hand():
    model = rnn((5, 3), 2, width=4, depth=2).double()
    x = torch.randn(6, 5, 3, dtype=torch.float64)
    sequence = [x[:, t] for t in range(5)]
    for unit in model.units:
        h, emitted = torch.zeros(6, 4, dtype=torch.float64), []
        for x_t in sequence:
            h = torch.tanh(x_t @ unit.inputs.weight.T + unit.inputs.bias + h @ unit.recurrent.weight.T)
            emitted.append(h)
        sequence = emitted
    expected = sequence[-1] @ model.head[1].weight.T + model.head[1].bias
    torch.testing.assert_close(model(x), expected)
    assert model.shapes() == [(5, 4), (5, 4)]
    assert count(model) == (3 * 4 + 4 + 16) + (4 * 4 + 4 + 16) + (4 * 2 + 2)


# --- gcn


def test_gcn_is_the_normalised_adjacency_written_out():
    model = made("gcn", depth=3, width=4).double().eval()
    x = torch.randn(5, 6, dtype=torch.float64)
    adjacency = torch.eye(5, dtype=torch.float64)
    adjacency[RING[0], RING[1]] = 1
    degree = adjacency.sum(1)
    norm = adjacency / (degree[:, None] * degree[None]).sqrt()
    h = x
    for layer in model.units:
        h = (norm @ h @ layer.conv.lin.weight.T + layer.conv.bias).relu()
    expected = norm @ h @ model.head.conv.lin.weight.T + model.head.conv.bias
    torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-7)  # the norm itself is float32
    assert set(model.state_dict()) == {
        f"{p}.conv.{n}" for p in ("units.0", "units.1", "head") for n in ("bias", "lin.weight")
    }
    assert isinstance(model.units[0].conv.lin, nn.Linear)


def test_gcn_costs_are_per_node():
    model = made("gcn", width=4)
    first, second = measure(model)
    assert (first.shape, first.parameters, first.flops) == ((4,), 6 * 4 + 4, 2 * 6 * 4)
    assert (second.parameters, second.flops) == (4 * 4 + 4, 2 * 4 * 4)
    rows = summary(model, model.cut(2))
    assert rows[1].flops == 2 * 4 * 4 + 2 * 4 * 3  # with the head, which needs the whole graph too
    assert len(model.cut(2, "time")) == 2


def test_gcn_survives_a_deep_copy():
    model = made("gcn").eval()
    twin = copy.deepcopy(model)
    x = inputs(model)
    assert torch.equal(model(x), twin(x))


def test_torch_geometric_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch_geometric.nn", None)
    with pytest.raises(UserError, match=r"model=gcn needs torch_geometric: pip install 'locallearn\[graph\]'"):
        gcn((6,), 3, RING)


# --- mistakes


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: gelan((3, 8, 8), 10, block="cps"), "model.block=cps: did you mean 'csp'?"),
        (lambda: gelan((3, 8, 8), 10, elan_depth=0), "model.elan_depth=0: must be"),
        (lambda: gelan((3, 8, 8), 10, width=0.0), "model.width=0.0: must be a number above 0"),
        (lambda: cspnet((3, 8, 8), 10, depth=0), "model.depth=0: must be"),
        (
            lambda: gelan((19, 57), 10),
            "gelan reads images (channels, height, width), but the data has shape [19, 57]; use rnn",
        ),
        (lambda: revnet((3, 8, 8), 10, depth=20), "model.depth=20: must be 12n+2 layers for a RevNet, such as 38, 110"),
        (
            lambda: rnn((3, 8, 8), 10),
            "rnn reads sequences (steps, features), but the data has shape [3, 8, 8]; use data=names",
        ),
        (lambda: rnn((5, 3), 10, depth=0), "model.depth=0: must be"),
        (lambda: gcn((6,), 3), "gcn reads the nodes of a graph, but the data have none; use data=cora"),
        (lambda: gcn((6,), 3, RING, depth=1), "model.depth=1: must be a whole number of at least 2"),
        (lambda: gcn((6,), 3, RING, dropout=1.0), "model.dropout=1.0: must be"),
        (lambda: made("gcn")(torch.zeros(4, 6)), "a graph of 5 nodes, but this batch has 4"),
        (lambda: vgg((12,), 10), "[12]; use mlp"),
    ],
)
def test_a_mistake_is_one_sentence(call, said):
    with pytest.raises(UserError) as error:
        call()
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_mlp_reads_sequences_and_nodes():
    assert mlp((19, 57), 18)(torch.randn(2, 19, 57)).shape == (2, 18)
