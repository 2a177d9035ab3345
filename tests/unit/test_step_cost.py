"""What the harness adds to a step, counted in operations and not in time: a step of a small net is as long as these."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from locallearn import seeds
from locallearn.engine import SGD, Adam, AdamW, Learner, Setup, assemble
from locallearn.engine.totals import HELD, Totals
from locallearn.engine.updates import take_step
from locallearn.models.plain import mlp
from locallearn.strategies.backprop import Backprop

X, Y = torch.randn(8, 12, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
CPU = torch.device("cpu")


class Operations(TorchDispatchMode):
    """Counts what reaches the kernels while it lasts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def learner(blocks: int = 1) -> Learner:
    torch.manual_seed(0)
    model = mlp((12,), 3, width=5, depth=4)
    return assemble(model, Backprop(), SGD(lr=0.1), model.cut(blocks), Setup(total_steps=100))


def operations(step: Callable[[], object]) -> Counter[str]:
    step()  # the first one makes the optimizer's state
    with Operations() as operations:
        step()
    return operations.found


def test_a_step_adds_three_readings_and_two_copies_to_a_bare_loop():
    trained = learner()
    model = copy.deepcopy(trained.model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)

    def bare() -> None:
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    added = operations(lambda: trained.learn(X, Y)) - operations(bare)
    added.pop("detach", None)  # a view, at the border of a block
    looked_at = {"max": 1, "min": 1, "_local_scalar_dense": 3}  # the largest label and the smallest; also the loss
    assert added == {**looked_at, "clone": 2}, "logits and labels are put by"


def test_a_run_copies_the_global_generator_once(monkeypatch):
    copies = Counter[str]()
    true = torch.default_generator

    class Watched:
        manual_seed = staticmethod(true.manual_seed)

        def get_state(self):
            copies["out"] += 1
            return true.get_state()

        def set_state(self, state):
            copies["back"] += 1
            return true.set_state(state)

    trained = learner(blocks=4)
    before = true.get_state()
    monkeypatch.setattr(torch, "default_generator", Watched())
    with trained.stage.random_state:
        for _ in range(3):
            trained.learn(X, Y)
    assert copies == {"out": 1, "back": 1}
    trained.learn(X, Y)
    assert copies == {"out": 2, "back": 2}
    assert torch.equal(true.get_state(), before)


def test_the_global_generator_is_put_back_after_an_error():
    before = torch.get_rng_state()
    state = seeds.Undisturbed(CPU)

    def failing() -> None:
        with state:
            with state:
                torch.manual_seed(3)
            assert not torch.equal(torch.get_rng_state(), before), "only the outermost one puts it back"
            raise ValueError("outer")

    with pytest.raises(ValueError, match="outer"):
        failing()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("steps", [range(200), [63, 64, 63, 65, 0, 1000]])
@pytest.mark.parametrize("micro_batches", [1, 3, 100])
def test_seeds_worked_out_ahead_are_the_seeds(steps, micro_batches):
    ahead = seeds.StepSeeds(12345, 2)
    for step in steps:
        for micro in {0, micro_batches - 1}:
            for part in range(2):
                assert ahead(step, micro, part) == seeds.mix(12345, step, micro, part)


def test_totals_are_those_of_every_batch_alone():
    draws = torch.Generator().manual_seed(1)
    totals, truth = Totals(CPU), [0.0, 0.0, 0.0]
    y, logits = torch.empty(4, dtype=torch.int64), torch.empty(4, HELD // 100)  # counted after 25 batches
    for step in range(60):
        size = 4 if step % 20 else 3
        y = y if size == 4 else torch.empty(3, dtype=torch.int64)
        logits = logits if size == 4 else torch.empty(3, HELD // 100)
        y.random_(-2, 4, generator=draws)  # negative: no label; the buffers are used again
        logits[:, :4].normal_(generator=draws)
        logits[:, 4:] = -100.0
        loss = torch.rand((), generator=draws)
        named = step % 7 != 0
        assert totals.add(loss, logits if step % 5 else None, y if named else None) == loss.item()
        labelled = sum(label >= 0 for label in y.tolist()) if named else 1
        truth[0] += loss.item() * labelled
        truth[2] += labelled
        if named and step % 5:
            rows = enumerate(logits.tolist())
            truth[1] += sum(max(range(4), key=row.__getitem__) == y[i].item() for i, row in rows)
        if size == 3:
            y, logits = torch.empty(4, dtype=torch.int64), torch.empty(4, HELD // 100)
    assert totals.read() == truth
    totals.add(torch.tensor(1.0), logits, y)
    totals.write([0.0, 0.0, 0.0])
    assert totals.read() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("everywhere", [False, True])
def test_hooks_on_an_optimizer_run(everywhere):
    """The step goes past the profiler's mark around it, which is also where PyTorch runs hooks."""
    trained, seen = learner(blocks=2), []
    hooks = [register_optimizer_step_pre_hook(lambda *_: seen.append("every"))] if everywhere else []
    for block in trained.blocks:
        optimizer = block.optimizers["main"]
        if optimizer is not None and not everywhere:
            hooks.append(optimizer.register_step_post_hook(lambda *_: seen.append("own")))
    trained.learn(X, Y)
    for hook in hooks:
        hook.remove()
    trained.learn(X, Y)
    assert seen == ["every" if everywhere else "own"] * 2


@pytest.mark.parametrize(
    "optim", [SGD(lr=0.1, weight_decay=0.01), Adam(lr=0.01), AdamW(lr=0.01)], ids=lambda o: type(o).__name__
)
def test_fused_kernels_compute_what_the_plain_ones_do(optim):
    torch.manual_seed(0)
    model = mlp((12,), 3, width=5, depth=4).double()
    trained = assemble(model, Backprop(), optim, model.cut(3), Setup(precision="fp64"))
    other = copy.deepcopy(model).train()
    (group,) = optim.groups(list(other.parameters()), [])
    plain = type(optim.build([group]))([{k: v for k, v in group.items() if k != "base_lr"}], **plain_options(optim))
    for _ in range(5):
        trained.learn(X.double(), Y)
        plain.zero_grad()
        F.cross_entropy(other(X.double()), Y).backward()
        plain.step()
    for name, p in other.named_parameters():
        torch.testing.assert_close(dict(model.named_parameters())[name], p, rtol=1e-12, atol=1e-14)


def plain_options(optim):
    """How PyTorch's own loop over tensors is asked for."""
    more = {"momentum": optim.momentum} if isinstance(optim, SGD) else {"betas": (optim.beta1, optim.beta2)}
    return {"fused": False, "foreach": False, **more}


def test_other_numbers_than_floats_are_not_fused():
    parameters = [torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))]
    optimizer = SGD(lr=0.1).build(SGD(lr=0.1).groups(parameters, []))
    (parameters[0] * parameters[0].conj()).real.sum().backward()
    optimizer.step()
    assert torch.allclose(parameters[0].detach(), torch.full((3,), 0.8, dtype=torch.complex64))


@pytest.mark.parametrize("optim", [SGD(lr=0.1), Adam(lr=0.01)], ids=lambda o: type(o).__name__)
def test_another_memory_layout_after_the_first_step_changes_no_number(optim):
    """Fused kernels read weight, gradient and state in the order of memory, whatever their strides say."""
    trained = []
    for layouts in ([torch.contiguous_format] * 4, [torch.channels_last, torch.contiguous_format] * 2):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(4, 3, 2, 2))
        optimizer = optim.build(optim.groups([weight], []))
        for step, layout in enumerate(layouts):
            weight.data = weight.data.contiguous(memory_format=layout)
            weight.grad = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(step)).requires_grad_(False)
            take_step(optimizer)
        trained.append(weight.detach())
    torch.testing.assert_close(*trained, rtol=1e-6, atol=1e-7)


def test_parameters_with_gaps_in_memory_are_not_fused():
    optimizer = SGD(lr=0.1).build(SGD(lr=0.1).groups([torch.nn.Parameter(torch.ones(4, 6)[:, ::2])], []))
    assert not optimizer.param_groups[0]["fused"]
