"""What tests/equality/test_device.py does in a process with the device of `helpers.shadow`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from helpers import shadow
from helpers.nets import SGD_CONSTANT, tiny_batches, tiny_learner, tiny_model
from helpers.shadow import Shadow, watched
from helpers.strategies import make
from locallearn import accelerator, seeds
from locallearn.accelerator import is_cpu
from locallearn.config.compose import compose
from locallearn.config.experiment import experiment
from locallearn.engine import Adam, Learner
from locallearn.engine.replicas import Replicas
from locallearn.strategies.backprop import Backprop
from locallearn.training.begin import new_run, on_device
from locallearn.training.evaluate import evaluate
from locallearn.training.prepare import prepare
from locallearn.training.run import start

CPU = torch.device("cpu")
OPTIMS = {"sgd": SGD_CONSTANT, "adam": Adam(lr=1e-2, clip=1.0)}


def learner_of(strategy: Any, device: torch.device, **options: Any) -> Learner:
    return tiny_learner(strategy, tiny_model(dropout=0.2), device=device, total_steps=4, **options)


def real(t: Tensor) -> Tensor:
    """A tensor of either device as one of the CPU, looked at by nobody."""
    return t.detach().numbers if isinstance(t.detach(), Shadow) else t.detach()  # type: ignore[return-value]


def same(learner: Learner, truth: Learner, rounding: float = 0.0) -> None:
    state = truth.state()
    assert learner.state().keys() == state.keys()
    for name, tensor in learner.state().items():
        ours = real(tensor)
        assert torch.allclose(ours, state[name], 0, rounding), f"{name}: {(ours - state[name]).abs().max()} apart"


def moved(batches: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return [(x.to("shadow:0"), y.to("shadow:0")) for x, y in batches]


def steps(strategy: Any, current: int = 0, optim: str = "sgd", rounding: float = 0.0, **options: Any) -> None:
    """Two steps end with the bits of the CPU, and the host waits for none of them; for an evaluation it waits once."""
    batches = tiny_batches(2)
    ours, truth = (
        learner_of(strategy, device, optim=OPTIMS[optim], **options) for device in (torch.device("shadow:0"), CPU)
    )
    shadow.backend.set_device(current)
    try:
        own = moved(batches)
        with watched() as waits:
            for x, y in own:
                ours.learn(x, y)
            assert not waits, waits
            numbers = evaluate(ours, own)
            assert len(waits) == 1, waits
    finally:
        shadow.backend.set_device(0)
    for x, y in batches:
        truth.learn(x, y)
    same(ours, truth, rounding)
    assert numbers == pytest.approx(evaluate(truth, batches), rel=rounding, abs=0)


def steps_of(name: str, micro_batches: int, current: int, optim: str = "sgd") -> None:
    # In forward mode PyTorch computes norms in another order where a tensor is of a subclass, as here.
    rounding = 1e-14 if name == "forward_gradient" else 0.0
    steps(make(name), current, optim, rounding, micro_batches=micro_batches)


def half(precision: str) -> int:
    """How often the host waits in a step with 16 bits, which are not rounded here."""
    learner = learner_of(make("dgl"), torch.device("shadow:0"), precision=precision)
    for x, y in moved(tiny_batches(2)):
        with watched() as waits:
            learner.learn(x.float(), y)
    return len(waits)


def summed(there: bool) -> int:
    """How often the host waits in a step of a replica, whose group of one adds on the device or on the CPU."""

    class Done:
        def wait(self) -> None:
            pass

    def copied(out: Tensor, given: Tensor, group: Any, async_op: bool) -> Done:
        assert is_cpu(given.device) != there
        out.copy_(given)
        return Done()

    device = torch.device("shadow:0")
    replicas = Replicas(None, 0, 1, device if there else CPU)  # type: ignore[arg-type]
    ours = learner_of(make("dgl"), device, replicas=replicas)
    truth = learner_of(make("dgl"), CPU)
    batches = tiny_batches(2)
    own = moved(batches)
    with pytest.MonkeyPatch.context() as patch, watched() as waits:
        patch.setattr(dist, "all_to_all_single", copied)
        patch.setattr(dist, "all_gather_into_tensor", copied)
        for x, y in own:
            ours.learn(x, y)
        ours.stage.drain()
    for x, y in batches:
        truth.learn(x, y)
    same(ours, truth)
    return len(waits)


def checked_and_restored() -> None:
    """`check` waits once for each block; a state goes from one device to another."""
    batches = tiny_batches(4)
    ours, truth = (learner_of(make("dgl"), device) for device in (torch.device("shadow:0"), CPU))
    for (x, y), (own_x, own_y) in zip(batches[:2], moved(batches[:2]), strict=True):
        truth.learn(x, y)
        ours.learn(own_x, own_y)
    with watched() as waits:
        ours.check()
        assert len(waits) == len(ours.blocks), waits
    own = moved(batches)
    again = learner_of(make("dgl"), torch.device("shadow:0"))
    for t in again.state().values():
        t.detach().zero_()
    again.load_state_dict({name: t.cpu() for name, t in ours.state_dict().items()})
    for (x, y), (own_x, own_y) in zip(batches[2:], own[2:], strict=True):
        truth.learn(x, y)
        again.learn(own_x, own_y)
    same(again, truth)


def loaded(*overrides: str) -> None:
    """An epoch of batches has the bits of the CPU, and the host waits for none."""
    exp = experiment(*compose(["batch_size=48", *overrides]), [])
    size = exp.settings.batch_size
    ours, truth = (exp.source.load(0, device) for device in (torch.device("shadow:0"), CPU))
    with watched() as waits:
        batches = list(itertools.islice(ours.batches(1, size, start=2), 70))
        assert not waits, waits
    assert len(batches) > 2
    for pair, true in zip(batches, truth.batches(1, size, start=2), strict=False):
        assert all(isinstance(t, Shadow) for t in pair)
        assert all(map(torch.equal, map(real, pair), true))


def trained(*overrides: str) -> None:
    """Batches of a configuration, with the model, the task and the losses that it names: the bits of the CPU, and no
    wait."""
    exp = experiment(*compose([*overrides, "threads=1", "batch_size=8", "blocks=2"]), [])
    learners = []
    for device in (torch.device("shadow:0"), CPU):
        learner, data = prepare(exp, device=device)
        learners.append(learner)
        with watched() as waits, sdpa_kernel(SDPBackend.MATH):  # a CPU has another one, which rounds in another way
            for x, y in itertools.islice(data.batches(0, 8), 2):
                learner.learn(x, y)
            assert is_cpu(device) or not waits, waits
    same(*learners)


def run(folder: str, *overrides: str) -> None:
    """A whole run on the device that `auto` means, and on the CPU: the same records and the same weights."""
    results = []
    for device in ("auto", "cpu"):
        exp = experiment(*compose([*overrides, f"device={device}", f"out={folder}/{device}", "threads=1"]), [])
        result = start(exp, quiet=True)
        assert result is not None
        results.append(result)
    ours, truth = results
    assert [json.loads((each.run_dir / "manifest.json").read_text())["device_type"] for each in results] == [
        "shadow",
        "cpu",
    ]
    for name, tensor in truth.model.state_dict().items():
        assert torch.equal(real(ours.model.state_dict()[name]), tensor), name
    for pair in zip(ours.history, truth.history, strict=True):
        a, b = ({k: v for k, v in r.items() if "second" not in k and "memory" not in k} for r in pair)
        assert a == b


def told(folder: str, *overrides: str) -> dict[str, Any]:
    """The manifest of a pipeline, prepared by a process without an accelerator, that rank 0 with one has completed."""
    exp = experiment(*compose([*overrides, f"out={folder}", "threads=1"]), [])
    ready = new_run(exp, {}, "run")
    assert is_cpu(ready.learner.device)
    manifest = ready.folder.read_json("manifest.json")
    with watched() as waits:
        before = json.loads(json.dumps(manifest))
        on_device(exp, manifest, ready.folder, torch.device("shadow:0"))
        assert any("synchronize" in wait for wait in waits), "the blocks were not measured"
    ready.folder.release()
    return before


class Planted(Backprop):
    """Backprop with a line too many."""

    def step(self, block, packet):  # type: ignore[no-untyped-def]
        PLANTS[self.plant](packet.h.detach())  # type: ignore[attr-defined]
        return (yield from super().step(block, packet))


PLANTS: dict[str, Callable[[Tensor], Any]] = {
    "nothing": lambda h: (h * 2).sum(),
    "item": lambda h: h.sum().item(),
    "truth": lambda h: bool((h == h).all()),
    "list": lambda h: h.flatten()[:2].tolist(),
    "host": lambda h: h.cpu(),
    "numpy": lambda h: h.numpy(),
    "places": lambda h: (h > 0).nonzero(),
    "mask": lambda h: h[h > 0],
    "constant": lambda h: h * torch.tensor([2.0], dtype=h.dtype, device=h.device),
    "copy": lambda h: torch.empty_like(h, device="cpu").copy_(h),
    "operand": lambda h: h + torch.ones(h.shape, dtype=h.dtype),
    "index": lambda h: h + h.to("shadow:1"),
    "generator": lambda h: torch.empty_like(h).normal_(generator=torch.Generator()),
}


def planted(plant: str) -> None:
    strategy = Planted()
    object.__setattr__(strategy, "plant", plant)
    steps(strategy)


@contextmanager
def seeding(generators: Callable[[torch.device], list[torch.Generator]]) -> Iterator[None]:
    """The engine seeds these generators."""
    before, seeds.generators = seeds.generators, generators
    try:
        yield
    finally:
        seeds.generators = before


def unseeded(what: str) -> None:
    """Nobody seeds the generator of the device, or somebody that of the current one."""
    wrong = {
        "none": lambda device: [torch.default_generator],
        "current": lambda device: accelerator.generators(torch.device(device.type)),
    }
    with seeding(wrong[what]):
        steps(make("dgl"), current=1)
