"""A loop of one's own: what a batch must be is said in one sentence, before a weight moves; looking changes nothing."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
import torch
from torch import nn

import locallearn
from helpers.marks import slow
from helpers.nets import tiny_model
from helpers.strategies import ANY_MODEL, quick_of_each_route
from locallearn.engine import Learner
from locallearn.errors import UserError
from locallearn.models import BlockModel

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.randint(4, (8,), generator=torch.Generator().manual_seed(1))


def conv(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(conv(3, 8), conv(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def build(strategy: str = "dgl", model: nn.Module | None = None, **settings) -> Learner:
    known = {"steps": 9} if strategy in ("greedy", "mono_forward") else {}
    settings = {"blocks": "max", "device": "cpu", **known, **settings}
    return locallearn.build(strategy, model or net(), image=(3, 8, 8), classes=4, **settings)


def state(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in learner.state().items()}


def assert_same_state(learner: Learner, before: dict[str, torch.Tensor]) -> None:
    after = learner.state()
    assert after.keys() == before.keys()
    assert not [name for name, t in after.items() if not torch.equal(t, before[name])]


# --- labels and images -----------------------------------------------------------------------------------------------

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint64]


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("strategy", ["backprop", *map(slow, ("dgl", "cdni"))])
def test_labels_of_every_integer_type_train_alike(strategy, dtype):
    ours, (_, truth) = build(strategy), refusing(strategy)
    ours.step(X, Y.to(dtype))
    assert_same_state(ours, truth)


def test_truth_values_are_labels_of_two_classes():
    ours, truth = build(), build()
    assert ours.step(X, Y > 1) == truth.step(X, (Y > 1).long())


ONE_HOT = nn.functional.one_hot(Y, 4)
WRONG_LABELS = {
    "above": (Y * 0 + 4, "label 4, but there are 4 classes, 0 to 3"),
    "far above": (Y.int() + 1000, "label 100[0-3], but there are 4 classes"),
    "bytes above": (Y.to(torch.uint8) + 250, "label 25[0-3], but there are 4 classes"),
    "a column": (Y[:, None], r"the labels are \[8, 1\], but must be \[8\], .*labels.squeeze\(1\)"),
    "a row": (Y[None], r"the labels are \[1, 8\], but must be \[8\]"),
    "a number": (Y[0], r"the labels are \[\], but must be \[8\]"),
    "one-hot": (ONE_HOT, r"the labels are \[8, 4\], scores or one-hot, .*labels.argmax\(dim=1\)"),
    "one-hot floats": (ONE_HOT.float(), r"one-hot, .*labels.argmax\(dim=1\)"),
    "floats": (Y.float(), r"the labels are torch.float32, but must be integers, .*labels.long\(\)"),
    "complex": (Y.to(torch.complex64), "the labels are torch.complex64, but must be integers"),
    "too few": (Y[:4], "4 labels for a batch of 8: give one class number, from 0 to 3, for each of the 8 samples"),
    "too many": (torch.cat([Y, Y]), "16 labels for a batch of 8"),
    "no label": (Y[:0], "0 labels for a batch of 8"),
    "a list": (Y.tolist(), "the labels are a list, not a tensor: make it one with torch.as_tensor"),
    "an array": (Y.numpy(), "the labels are a ndarray, not a tensor"),
    "nothing": (None, "the labels are a NoneType, not a tensor"),
}
WRONG_IMAGES = {
    "1 channel": (X[:, :1], r"the images are \[8, 1, 8, 8\], but the learner was built for \[B, 3, 8, 8\]"),
    "channels last": (X.permute(0, 2, 3, 1), r"images.permute\(0, 3, 1, 2\)"),
    "another size": (X[:, :, :6], r"\[8, 3, 6, 8\], but the learner was built for \[B, 3, 8, 8\]"),
    "flat": (X.flatten(1), r"the images are \[8, 192\]"),
    "one without a batch": (X[0], r"the images are \[3, 8, 8\]"),
    "a number": (torch.tensor(1.0), r"the images are \[\]"),
    "bytes": ((X * 50).byte(), r"the images are torch.uint8, which Sequential cannot read .*\.float\(\) / 255"),
    "integers": ((X * 50).long(), "the images are torch.int64, which Sequential cannot read"),
    "truth values": (X > 0, "the images are torch.bool, which Sequential cannot read"),
    "complex": (X.to(torch.complex64), "the images are torch.complex64, which Sequential cannot read"),
    "an array": (X.numpy(), "the images are a ndarray, not a tensor: make it one with torch.as_tensor"),
    "a list": (list(X), "the images are a list, not a tensor"),
}
BATCHES = {f"labels: {k}": (X, y, said) for k, (y, said) in WRONG_LABELS.items()}
BATCHES |= {f"images: {k}": (x, Y, said) for k, (x, said) in WRONG_IMAGES.items()}
BATCHES["no sample"] = X[:0], Y[:0], "the batch is empty: give at least one sample"


@functools.cache
def refusing(strategy: str) -> tuple[Learner, dict[str, torch.Tensor]]:
    """One learner for all mistakes: none of them changes it."""
    learner = build(strategy)
    learner.step(X, Y)
    return learner, state(learner)


@pytest.mark.fault("F17")
@pytest.mark.parametrize("which", BATCHES)
@pytest.mark.parametrize("strategy", ["backprop", "dgl", "dni"])
def test_a_wrong_batch_is_one_sentence_before_a_weight_moves(strategy, which):
    x, y, said = BATCHES[which]
    learner, before = refusing(strategy)
    for step in (learner.step, learner.learn):
        with pytest.raises(UserError, match=said) as raised:
            step(x, y)
        assert "\n" not in str(raised.value)
    assert_same_state(learner, before)
    assert learner.step_count == 1


@pytest.mark.parametrize("strategy", quick_of_each_route(ANY_MODEL))
def test_refused_batches_leave_no_trace(strategy):
    learner, undisturbed = build(strategy), build(strategy)
    for x, y, said in BATCHES.values():
        with pytest.raises(UserError, match=said):
            learner.step(x, y)
    assert learner.step(X, Y) == undisturbed.step(X, Y)
    assert_same_state(learner, state(undisturbed))


@pytest.mark.parametrize("strategy", quick_of_each_route(ANY_MODEL))
def test_a_single_sample_trains_or_is_refused_before_a_weight_moves(strategy):
    learner = build(strategy)
    before = state(learner)
    try:
        assert learner.step(X[:1], Y[:1])["loss"] > 0
    except UserError as error:
        assert "one sample, and a batch norm cannot take the variance of one value" in str(error)  # noqa: PT017
        assert strategy in ("dgl", "man", "greedy", "loco", "deep_supervision", "pgi", "pgi_causal", "infomax")
        assert_same_state(learner, before)
        assert learner.step(X[:2], Y[:2])["loss"] > 0
    else:
        assert strategy not in ("dgl", "greedy")


@pytest.mark.parametrize("which", WRONG_IMAGES)
def test_predict_says_the_same(which):
    x, said = WRONG_IMAGES[which]
    learner, before = refusing("dgl")
    with pytest.raises(UserError, match=said):
        learner.predict(x)
    assert_same_state(learner, before)
    assert learner.predict(X)[-1].shape == (8, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_every_type_are_the_models(dtype):
    learner = build("backprop")
    assert learner.step(X.to(dtype), Y)["loss"] > 0
    assert learner.predict(X.to(dtype))[-1].dtype == torch.float32


class Indices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 5)

    def forward(self, x):
        return self.table(x.long()).mean(1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.float32])
def test_a_model_of_indices_reads_integers(dtype):
    units = [Indices(), nn.Sequential(nn.Linear(5, 6), nn.ReLU())]
    model = BlockModel(units, nn.Linear(6, 3), image=(4,), classes=3, name="indices")
    learner = locallearn.build("dgl", model, image=(4,), classes=3, blocks="max", device="cpu", auxiliary="linear")
    x, y = torch.randint(7, (6, 4)), torch.randint(3, (6,))
    assert learner.step(x.to(dtype), y)["loss"] > 0
    assert learner.predict(x.to(dtype))[-1].shape == (6, 3)


def test_a_single_sample_trains_where_no_norm_objects():
    learner = build("backprop")
    reference = build("backprop")
    counts = Counter[str]()
    learner.blocks[0].layers.register_forward_hook(lambda *_: counts.update(["forward"]))
    for _ in range(3):
        learner.step(X[:1], Y[:1])
        reference.stage.step(reference.prepare(X[:1]), Y[:1], reference.step_count, None)
        reference.step_count += 1
    assert_same_state(learner, state(reference))
    assert counts["forward"] == 4, "tried once"


def test_a_graph_is_read_whole():
    edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
    learner = locallearn.build("dgl", "gcn", image=(5,), classes=2, graph=edges, blocks=1, device="cpu")
    nodes = learner.model.samples
    assert learner.step(torch.randn(nodes, 5), torch.zeros(nodes, dtype=torch.int64))["loss"] > 0
    with pytest.raises(UserError, match=f"reads all {nodes} nodes of its graph at once, not 2"):
        learner.step(torch.randn(2, 5), torch.zeros(2, dtype=torch.int64))


# --- micro-batches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 3, 5, 64])
def test_a_loop_of_ones_own_has_no_batch_size(parts):
    learner = build(micro_batches=parts)
    x, y = torch.randn(2 * parts, 3, 8, 8), torch.randint(4, (2 * parts,))
    assert learner.step(x, y)["loss"] > 0
    with pytest.raises(UserError, match=f"micro_batches={parts} does not divide a batch of {2 * parts + 1}"):
        learner.step(torch.randn(2 * parts + 1, 3, 8, 8), torch.randint(4, (2 * parts + 1,)))
    with pytest.raises(UserError, match="has one sample"):
        learner.step(x[:parts], y[:parts])


def test_micro_batches_must_be_a_number_all_the_same():
    for wrong in (0, -2):
        with pytest.raises(UserError, match=f"micro_batches={wrong}: must be a whole number of at least 1"):
            build(micro_batches=wrong)


# --- modes and hooks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", quick_of_each_route(ANY_MODEL))
def test_a_norm_in_eval_mode_stays_in_it(strategy):
    module = net()
    learner = build(strategy, module)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    learner.step(X, Y)
    learner.predict(X)
    before = module[0][1].running_mean.clone()
    learner.step(X + 3, Y)
    assert torch.equal(module[0][1].running_mean, before)
    assert not module[1][1].training
    assert module[0][0].training


OFTEN = {"pepita": 2, "predictive_coding": 6, "dual_propagation": 2, "equilibrium": 44}
"""Of each batch: the passes of a block."""


@pytest.mark.parametrize("strategy", quick_of_each_route(ANY_MODEL))
def test_a_hook_runs_as_often_as_in_ones_own_loop(strategy):
    """Once a step, in the user's own module; more often where a block runs again, and not where an answer of its own
    leaves out the head."""
    module, seen = net(), Counter[str]()
    learner = build(strategy, module)
    for name, m in module.named_modules():
        if not list(m.children()):
            m.register_forward_hook(lambda this, args, out, name=name: seen.update([name]))
    learner.step(X, Y)
    leaves = [name for name, m in module.named_modules() if not list(m.children())]
    first, units = leaves[:3], leaves[:6]
    learning = {
        "greedy": first,
        "mono_forward": first,
        "cafo": units,
        "forward_forward": units,
        "noprop": units,
        "diffusion_blocks": units,
    }.get(strategy, leaves)
    times = dict.fromkeys(learning, OFTEN.get(strategy, 1))
    times |= dict.fromkeys(first, 2) if strategy == "checkpoint" else {}
    stays = {"predictive_coding": 1, "equilibrium": 3}  # the first block, whose input stays while states move
    times |= dict.fromkeys(first, stays[strategy]) if strategy in stays else {}
    times |= dict.fromkeys(units[3:], 2) if strategy == "sigprop" else {}  # of inputs and of targets
    if strategy == "dtp":  # the blocks above the first one and the head also compute what their inverses learn from
        times |= dict.fromkeys(units[3:], 6) | dict.fromkeys(leaves[6:], 11)
    assert seen == times


@pytest.mark.parametrize("strategy", ["fa", "usf", "frsf", "brsf"])
def test_feedback_weights_leave_the_users_modules_in_place(strategy):
    """Layers are the user's own; what contains them is copied, with its hooks, also those that come later."""
    torch.manual_seed(0)
    model = tiny_model(dropout=0.5)
    learner = locallearn.build(strategy, model, image=(2, 6, 6), classes=3, blocks=2, device="cpu")
    seen = Counter[str]()
    watched = {"unit": model.units[1], "convolution": model.units[1][0], "norm": model.units[1][1], "head": model.head}
    for name, m in watched.items():
        m.register_forward_hook(lambda this, args, out, name=name: seen.update([name]))
        m.register_forward_pre_hook(lambda this, args, name=name: seen.update([name]))
    model.units[0][3].eval()
    learner.step(torch.randn(8, 2, 6, 6), torch.randint(3, (8,)))
    assert seen == dict.fromkeys(watched, 2)
    assert not model.units[0][3].training


# --- what else a learner does ----------------------------------------------------------------------------------------


def test_a_learner_tests_answers_and_goes_on_from_its_state_dict():
    """Against the model itself; and to the same bits as a learner that was not interrupted."""
    ours = build("dgl")
    for _ in range(3):
        ours.step(X, Y)
    ours.model.train()
    logits = ours(X)
    assert all(m.training for m in ours.model.modules())
    ours.model.eval()
    with torch.no_grad():
        assert torch.equal(logits, ours.model(X))
        loss, accuracy = nn.functional.cross_entropy(logits, Y).item(), (logits.argmax(1) == Y).double().mean()
    for numbers in (ours.evaluate(X, Y.to(torch.uint8)), ours.evaluate([(X[:5], Y[:5]), (X[5:], Y[5:])])):
        assert numbers["loss"] == pytest.approx(loss, rel=1e-6)
        assert numbers["accuracy"] == accuracy == numbers[f"block/{len(ours.cut) - 1:02d}/accuracy"]
    with pytest.raises(UserError, match="4 labels for a batch of 8"):
        ours.evaluate([(X, Y[:4])])
    assert "DGL on " in repr(ours)
    assert "3 steps on cpu" in repr(ours)
    saved = ours.state_dict()
    again = build("dgl")
    again.load_state_dict(saved)
    for learner in (ours, again):
        learner.step(X, Y)
    assert_same_state(again, ours.state())
    assert again.step_count == 4
    with pytest.raises(UserError, match="step_count is missing"):
        again.load_state_dict(ours.state())
