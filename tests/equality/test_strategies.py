"""One suite over every yaml in conf/strategy: a strategy is tested from the day its file exists."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import math
import os
from pathlib import Path

import pytest
import torch
import yaml
from sklearn.datasets import load_digits

from helpers.marks import slow
from helpers.nets import SGD_CONSTANT, assert_same, fitting, tiny_batches, tiny_learner, tiny_model
from helpers.strategies import FILES, ROUTES, make, slow_where_alike
from locallearn.auxiliary import MLP
from locallearn.config.compose import header
from locallearn.config.targets import instantiate
from locallearn.contract import Route, Send, Strategy
from locallearn.engine import SGD, Adam, Setup, assemble
from locallearn.engine.answer import answering_model, exported
from locallearn.engine.assemble import check_ownership
from locallearn.engine.block import TrainedBlock
from locallearn.errors import RunError, UserError
from locallearn.models.plain import basic_cnn
from locallearn.models.revnet import revnet
from locallearn.objectives import CrossEntropy
from locallearn.strategies.backprop import Backprop
from locallearn.strategies.denoising import Denoising
from locallearn.strategies.dfa import DFA
from locallearn.strategies.dual_propagation import DualPropagation
from locallearn.strategies.forward_gradient import ForwardGradient
from locallearn.strategies.sigprop import SigProp
from locallearn.strategies.targets import CounterCurrent, FixedWeightDTP

GOLDEN = Path(__file__).parent / "first_losses.json"


def learns_from_labels(strategy: Strategy) -> bool:
    """False for a self-supervised strategy: its head is a read-out on features that no label has touched."""
    objective = getattr(strategy, "objective", None)
    return objective is None or objective.labels


@pytest.fixture(params=slow_where_alike(FILES))
def name(request) -> str:
    return request.param


def test_the_quick_strategies_have_every_route():
    assert {make(name).route for name in ROUTES} == set(Route)


def test_yaml_names_every_option_the_paper_and_the_route(name):
    config, facts = yaml.safe_load(FILES[name].read_text()), header(FILES[name])
    module, _, cls = config.pop("_target_").rpartition(".")
    target = getattr(importlib.import_module(module), cls)
    options = {f.name for f in dataclasses.fields(target) if f.init} - {"objective", "auxiliary"}
    assert set(config) == options
    assert facts["summary"].endswith(".")
    assert facts["paper"]
    assert facts["route"] == make(name).route.value


def test_first_losses(name):
    """What three steps on fixed data report, against the file made by WRITE_GOLDEN=1 when the strategy was checked."""
    learner = tiny_learner(make(name), tiny_model(dropout=0.1), total_steps=3)
    losses = [learner.step(x, y) for x, y in tiny_batches(3)]
    known = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
    if os.environ.get("WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(dict(sorted({**known, name: losses}.items())), indent=1) + "\n")
        return
    assert name in known, (
        f"{name} is new: WRITE_GOLDEN=1 python -m pytest tests/equality/test_strategies.py -k test_first_losses"
    )
    # states that have not settled blow up what processors round differently: of these the first step is compared
    steps = 1 if name == "equilibrium" else len(losses)
    for step, (found, expected) in enumerate(zip(losses[:steps], known[name][:steps], strict=True)):
        assert found == pytest.approx(expected, rel=1e-9), f"step {step}"


TARGETS = ("fw_dtp", "dtp", "counter_current")
"""What they send down is no gradient."""
NOT_BACKPROP = DFA | DualPropagation | FixedWeightDTP | CounterCurrent | ForwardGradient | SigProp
"""Inside a block, or before it."""


def is_backprop_within_a_block(strategy: Strategy) -> bool:
    """Not one that changes the backward pass (feedback alignment, forward gradient), nor one whose blocks read no
    labels."""
    plain = type(strategy).adapt is Strategy.adapt and not isinstance(strategy, NOT_BACKPROP)
    plain = plain and strategy.plain
    return plain and learns_from_labels(strategy)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("alone", [n for n in sorted(FILES) if is_backprop_within_a_block(make(n))])
def test_one_block_is_backprop(alone, dropout):
    """K = 1: the true loss is all there is."""
    strategy, batches, model = make(alone), tiny_batches(), tiny_model(dropout=dropout)
    ours, truth = (tiny_learner(s, model, blocks=1, total_steps=5) for s in (strategy, Backprop()))
    for x, y in batches:
        ours.learn(x, y)
        truth.learn(x, y)
    assert_same(ours.model, truth.model)


@pytest.mark.fault("F24")
def test_every_parameter_has_one_owner(name):
    learner = tiny_learner(make(name), total_steps=4)
    check_ownership(learner)
    block = learner.blocks[0]
    block.optimizers["second"] = torch.optim.SGD(block.layers.parameters(), lr=0.1)
    with pytest.raises(UserError, match="2 optimizers"):
        check_ownership(learner)


def test_nothing_auxiliary_ships(name):
    """The plain model has the parameters of an untrained one, and the logits need no auxiliary module but those that
    the strategy names."""
    learner = tiny_learner(make(name), total_steps=4)
    for x, y in tiny_batches(4):
        learner.learn(x, y)
    assert learner.model.state_dict().keys() == fitting(learner.strategy, tiny_model()).state_dict().keys()
    x = tiny_batches(1)[0][0]
    logits = learner.predict(x)[-1]
    for block in learner.blocks:
        for module in set(block.auxiliary) - learner.strategy.ships:
            del block.auxiliary[module]
    model = answering_model(learner)
    assert torch.equal(model(x), logits)
    assert model.state_dict().keys() == exported(learner).keys()


def test_route_is_honest(name):
    """A strategy without feedback gets none and gives none; under a chain every block but the first answers."""
    strategy = make(name)
    learner = tiny_learner(strategy, total_steps=1)
    answers = []
    original = learner.stage._finish

    def finish(running, message):
        answer = original(running, message)
        answers.append((running[0].spec.index, message, answer))
        return answer

    learner.stage._finish = finish  # type: ignore[method-assign]
    learner.learn(*tiny_batches(1)[0])
    for index, message, answer in answers:
        if strategy.route is Route.NONE:
            assert message is None
            assert answer is None
        if strategy.route is Route.CHAIN:
            assert (message is None) == (index == 3)
            assert answer is not None
            assert (answer[0] is None) == (index == 0), "block 0 must not pay for the gradient of its input"


def test_inputs_collect_gradients_only_where_feedback_is_owed(name):
    """A decoupled block must not pay for the gradient of its input, nor the first block of any strategy."""
    strategy = make(name)
    learner = tiny_learner(strategy, total_steps=4)
    wants: dict[int, bool] = {}

    def look(k: int, h: torch.Tensor) -> None:
        wants.setdefault(k, h.requires_grad)  # of the first forward; recomputation comes later

    for block in learner.blocks:
        block.layers.register_forward_pre_hook(lambda m, args, k=block.spec.index: look(k, args[0]))
    learner.learn(*tiny_batches(1)[0])
    assert wants
    answers = strategy.route in (Route.CHAIN, Route.NEIGHBOR) and name not in TARGETS
    answers |= isinstance(strategy, Denoising)  # a module of the block's own stands before its units
    if strategy.route is Route.ROUNDS:  # a message may be a gradient or not
        answers = wants[1]
    assert all(wanted == (answers and k > 0) for k, wanted in wants.items())


@pytest.mark.fault("F24")
def test_gradients_of_a_block_stay_in_the_block(name, monkeypatch):
    strategy = make(name)
    learner = tiny_learner(strategy, tiny_model(dropout=0.2), total_steps=4)
    original, leaks = TrainedBlock.update, []

    def update(block, part="main"):
        if strategy.route in (Route.NONE, Route.NEIGHBOR):
            own = {id(p) for m in (block.layers, block.head, block.auxiliary) if m is not None for p in m.parameters()}
            foreign = ((n, p) for n, p in learner.parameters() if p.grad is not None and id(p) not in own)
            # A neighbour that waits for feedback already holds its own head's gradient, and no other.
            leaks.extend(n for n, _ in foreign if strategy.route is Route.NONE or n.startswith("model.units"))
        original(block, part)

    monkeypatch.setattr(TrainedBlock, "update", update)
    for x, y in tiny_batches(4):
        learner.learn(x, y)
    assert not leaks
    assert all(p.grad is None for _, p in learner.parameters()), "gradients are not cleared"


def test_what_lies_above_does_not_matter(name):
    """Other weights in the two blocks above: a block without feedback learns the same, bit for bit, unless it reads
    them; one with feedback from the whole net notices."""
    strategy = make(name)
    model = fitting(strategy, tiny_model(dropout=0.2))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in (*other.units[2].parameters(), *other.units[3].parameters(), *other.head.parameters()):
            p.mul_(-2.0)
    learners = [tiny_learner(strategy, m, total_steps=4) for m in (model, other)]
    for x, y in tiny_batches(2):
        for learner in learners:
            learner.learn(x, y)
    a, b = (learner.state() for learner in learners)
    below = [n for n in a if n.startswith(("model.units.0.", "model.units.1."))]
    same = all(torch.equal(a[n], b[n]) for n in below)
    if strategy.route is Route.NONE and not learners[0].blocks[1].copies:  # of weights above
        assert same
        assert all(torch.equal(a[n], b[n]) for n in a if n.startswith(("auxiliary.0.", "auxiliary.1.")))
    elif strategy.route in (Route.CHAIN, Route.BROADCAST):
        assert same == (name == "sdfa"), "the signs of the error tell the label alone"


@pytest.mark.parametrize("stop", [3, *map(slow, (1, 5))])
@pytest.mark.parametrize("name", slow_where_alike(FILES))
@pytest.mark.fault("R1")
def test_resume_is_exact(name, stop):
    """Train 6 = train some, put the state into a fresh learner, train the rest."""
    batches, model = tiny_batches(6), tiny_model(dropout=0.3)
    whole = tiny_learner(make(name), model, total_steps=6)
    first = tiny_learner(make(name), model, total_steps=6)
    for x, y in batches:
        whole.learn(x, y)
    for x, y in batches[:stop]:
        first.learn(x, y)
    second = tiny_learner(make(name), model, total_steps=6, seed=0)
    with torch.no_grad():
        for t in second.state().values():
            t.zero_()  # weights, statistics, feedback matrices: all must come from the state, none from the seed
    second.load_state({k: v.clone() for k, v in first.state().items()})
    second.step_count = stop
    for x, y in batches[stop:]:
        second.learn(x, y)
    assert_same(whole.model, second.model)
    ours = second.state()
    assert all(torch.equal(t, ours[k]) for k, t in whole.state().items())


@pytest.mark.fault("F6")
def test_a_state_that_does_not_fit_is_refused(name):
    learner = tiny_learner(make(name), total_steps=4)
    state = {k: v.clone() for k, v in learner.state().items()}
    before = {k: v.clone() for k, v in state.items()}
    del state["model.units.0.0.weight"]
    state["model.head.2.weight"] = torch.zeros(1, dtype=torch.float64)
    with pytest.raises(UserError, match="does not fit"):
        learner.load_state(state)
    assert all(torch.equal(v, before[k]) for k, v in learner.state().items()), "half loaded"


@pytest.mark.fault("R6")
def test_same_seed_same_bits_other_seed_others(name):
    def train(seed):
        learner = tiny_learner(make(name), tiny_model(dropout=0.3), total_steps=4, seed=seed)
        for x, y in tiny_batches(4):
            learner.learn(x, y)
        return learner.model

    assert_same(train(1), train(1))
    with pytest.raises(AssertionError):
        assert_same(train(1), train(2))


@pytest.mark.fault("F24")
@pytest.mark.parametrize(
    ("times", "said"),
    [(0, "never yielded: it must yield at least once"), (2, "yielded twice")],
)
def test_a_strategy_without_rounds_yields_exactly_once(times, said):
    @dataclasses.dataclass(frozen=True)
    class Odd(Backprop):
        def step(self, block, packet):
            for _ in range(times):
                yield Send(packet.at(block.layers(packet.h)))
            return None

    with pytest.raises(UserError, match=f"Odd.step {said}"):
        tiny_learner(Odd()).learn(*tiny_batches(1)[0])


@pytest.mark.parametrize("precision", ["bf16", *map(slow, ("fp16", "fp32"))])
@pytest.mark.parametrize("name", slow_where_alike(FILES))
def test_precisions(name, precision):
    learner = tiny_learner(make(name), precision=precision, channels_last=True, total_steps=4)
    for x, y in tiny_batches(4):
        learner.learn(x.float(), y)
    assert all(p.dtype == torch.float32 for _, p in learner.parameters())
    assert all(torch.isfinite(p).all() for _, p in learner.parameters())


@pytest.mark.fault("F16", "R10")
def test_a_broken_loss_stops_the_run_before_it_teaches(name):
    learner = tiny_learner(make(name), total_steps=4)
    batches = tiny_batches(2)
    learner.learn(*batches[0])
    last = copy.deepcopy(learner.model.units[3])
    x, y = batches[1]
    x[0, -1, -1, -1] = math.nan
    with pytest.raises(RunError, match=r"block \d of 4, step 1: the [a-z0-9._ ]+ is nan at learning rate 0.1"):
        learner.learn(x, y)
    for p, q in zip(last.parameters(), learner.model.units[3].parameters(), strict=True):
        assert torch.equal(p, q)


SUITS = {
    "counter_current": SGD(lr=0.5, momentum=0.0, clip=1.0, schedule="constant"),  # as its paper; else weights explode
    "forward_gradient": SGD(lr=0.05, momentum=0.9, schedule="cosine"),  # its estimate scatters: the rate must fall
    "forward_forward": Adam(lr=2e-3, schedule="constant"),  # one rate for goodness and read-out suits neither of them
    "pepita": SGD(lr=0.03, momentum=0.9, schedule="cosine"),  # the difference of two passes does not become smaller
}
"""With what a strategy learns that does not learn with the rate of the others."""
HALF = ("shallow", "cafo", "sdfa", "equilibrium", "pepita")


@pytest.mark.slow
def test_learns_to_memorise_64_real_images(name):
    """Real handwritten digits, 8x8, enlarged to 16x16: all 64 right. More than half for features that no label has
    touched, those of random blocks and self-supervised ones, for sdfa and pepita, whose signals never become smaller,
    and for equilibrium, whose states end at 0 and 1."""
    images, labels = load_digits(return_X_y=True)
    x = torch.nn.functional.interpolate(torch.tensor(images[:64], dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1, 16)
    y = torch.tensor(labels[:64])
    torch.manual_seed(0)
    hidden = 16 if name == "solo" else 0  # its read-out reads one vector
    model = (
        revnet((1, 16, 16), 10, depth=14) if name == "petra" else basic_cnn((1, 16, 16), 10, width=16, hidden=hidden)
    )
    steps = 480 if name == "forward_gradient" else 120
    strategy = make(name)
    optim = SUITS.get(name, SGD(lr=0.05, momentum=0.9, schedule="constant"))
    if isinstance(strategy, Denoising):  # whose losses differ by powers of ten from block to block
        optim = Adam(lr=2e-3, schedule="constant")
    learner = assemble(model, strategy, optim, model.cut(3), Setup(total_steps=steps))
    for _ in range(steps):
        learner.learn(x, y)
    accuracy = (learner.predict(x)[-1].argmax(1) == y).float().mean().item()
    half = name in HALF or not learns_from_labels(strategy)
    assert accuracy > 0.5 if half else accuracy == 1.0


def test_options_are_checked():
    assert SGD_CONSTANT.lr == 0.1
    config = yaml.safe_load(Path(FILES["deep_supervision"]).read_text())
    given = {"objective": CrossEntropy(), "auxiliary": MLP()}
    for bad, sentence in [
        ({"weight": -1.0}, "must be a number of at least 0"),
        ({"weight": "abc"}, "must be a number"),
        ({"anneal": "cosin"}, "did you mean 'cosine'"),
        ({"wieght": 1.0}, "did you mean 'weight'"),
    ]:
        with pytest.raises(UserError, match=sentence):
            instantiate({**config, **bad}, "strategy", [], **given)
