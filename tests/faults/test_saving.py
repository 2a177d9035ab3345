"""Checkpoints that are written beside training: what they hold, who waits for them, and what is never committed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import locallearn
from helpers.runs import STAGE
from locallearn import stored
from locallearn.engine.block import TrainedBlock
from locallearn.errors import RunError
from locallearn.runs import checkpoint
from locallearn.runs.snapshot import TYPES, Snapshot, Written, write
from locallearn.runtime.world import World
from locallearn.training import writer
from locallearn.training.writer import Save, Writer

STATE = {"epoch": 0, "offset": 0, "seconds": 0.0, "blocks": []}


def asked(folder: Path, step: int, needed: bool = False) -> Save:
    return Save(folder, 9, step, {}, lambda reports: STATE, needed)


@pytest.mark.fault("R3")
def test_a_file_of_a_snapshot_is_one_of_safetensors(tmp_path):
    """Of every type, of no dimension and of no number, in another layout, and in memory that two share."""
    g = torch.Generator().manual_seed(0)
    tensors = {str(kind): (100 * torch.randn(3, 5, generator=g)).to(kind) for kind in TYPES}
    maps = torch.randn(2, 3, 4, 5, generator=g)
    tensors |= {"scalar": torch.tensor(3.0), "none": torch.empty(0, 7), "byte": torch.ones(1, dtype=torch.uint8)}
    tensors |= {"last": maps.to(memory_format=torch.channels_last), "turned": maps.mT, "part": maps[1], "maps": maps}
    tensors |= {"gaps": maps[:, ::2, :, 1:3], "same": maps[:1].expand(3, 3, 4, 5)}
    snapshot = Snapshot()
    for number in range(2):
        snapshot.take(tensors)
        found = write(tmp_path / f"{number}.safetensors", snapshot.head, snapshot.tensors)
        loaded = load_file(tmp_path / f"{number}.safetensors")
        assert found.bytes == (tmp_path / f"{number}.safetensors").stat().st_size
        assert loaded.keys() == tensors.keys()
        for name, t in tensors.items():
            assert loaded[name].dtype == t.dtype
            assert torch.equal(loaded[name], t), name
        tensors |= {"scalar": torch.tensor(4.0), "more": torch.ones(2)}
    assert set(TYPES.values()) == set(stored.TYPES), "whatever is written can be read"
    with pytest.raises(
        RunError, match=r"^a is torch\.complex128, which no checkpoint holds: choose another precision$"
    ):
        snapshot.take({"a": torch.ones(1, dtype=torch.complex128)})


@pytest.mark.fault("F3", "R3")
def test_a_bit_in_any_file_of_two_stages_is_noticed(tmp_path, record_property):
    """Of tensors, state and manifest; also a file that is gone."""
    parts = [{"model.units.0.weight": torch.arange(9.0)}, {"model.head.weight": torch.ones(3)}]

    def fill(place: Path) -> tuple[dict[str, Written], Any]:
        written = {}
        for stage, tensors in enumerate(parts):
            snapshot, name = Snapshot(), checkpoint.of_stage(stage, 2)
            snapshot.take(tensors)
            written[name] = write(place / name, snapshot.head, snapshot.tensors)
        return written, STATE

    for step in (1, 2):
        checkpoint.commit(tmp_path, step, fill, keep=2)
    found = checkpoint.newest(tmp_path, pytest.fail)
    assert found is not None
    assert found.state["step"] == 2
    assert {name: t.tolist() for name, t in found.tensors.items()} == {
        name: t.tolist() for tensors in parts for name, t in tensors.items()
    }
    files = sorted(found.path.iterdir())
    assert len(files) == 4
    injected = 0
    for file in files:
        sound = file.read_bytes()
        for place in range(0, len(sound), max(1, len(sound) // 40)):
            changed = bytearray(sound)
            changed[place] ^= 1 << place % 8
            file.write_bytes(changed)
            assert used(tmp_path) == 1, f"{file.name}, byte {place}"
            injected += 1
        file.unlink()
        assert used(tmp_path) == 1
        file.write_bytes(sound)
        assert used(tmp_path) == 2
    record_property("injected", injected + len(files))


def used(folder: Path) -> int:
    """The step of the newest checkpoint that is sound."""
    found = checkpoint.newest(folder, lambda _: None)
    assert found is not None
    return found.state["step"]


@pytest.mark.fault("R2")
def test_training_waits_for_the_copy_alone_and_the_next_save_for_the_one_before(tmp_path, monkeypatch):
    goes_on, began = threading.Event(), threading.Semaphore(0)

    def held_up(*arguments: Any) -> Any:
        began.release()
        assert goes_on.wait(30)
        return write(*arguments)

    monkeypatch.setattr(writer, "write", held_up)
    saves, weight = Writer(World()), torch.zeros(1000)
    saves.start(asked(tmp_path, 1), {"weight": weight})
    assert began.acquire(timeout=30)
    weight.fill_(2.0)  # training goes on
    second = threading.Thread(target=saves.start, args=(asked(tmp_path, 2), {"weight": weight}))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    assert not list(tmp_path.glob("step-*"))
    goes_on.set()
    second.join(30)
    saves.wait()
    for step, value in ((1, 0.0), (2, 2.0)):
        saved = load_file(tmp_path / f"step-{step:08d}" / STAGE)["weight"]
        assert torch.equal(saved, torch.full((1000,), value))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.fault("F16", "R10")
def test_a_number_that_is_not_finite_is_never_committed(kind, tmp_path):
    """The largest numbers there are, whose norm is not finite any more, are."""
    largest = torch.full((70_000,), torch.finfo(kind).max, dtype=kind)
    saves = Writer(World())
    saves.start(asked(tmp_path, 1, needed=True), {"momentum": largest})
    saves.wait()
    for step, value in enumerate((float("nan"), float("inf"), float("-inf")), start=2):
        broken = largest.clone()
        broken[-1] = value
        saves.start(asked(tmp_path, step), {"weight": torch.ones(2), "momentum": broken})
        with pytest.raises(RunError, match=f"^momentum is not finite after step {step}; lower optim.lr$"):
            saves.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    found = checkpoint.newest(tmp_path, pytest.fail)
    assert found is not None
    assert torch.equal(found.tensors["momentum"], largest)


@pytest.mark.slow
@pytest.mark.fault("F16", "R10")
def test_a_state_of_an_optimizer_that_is_not_finite_ends_the_run(tmp_path, monkeypatch):
    """No weight shows it yet when it is saved."""
    update = TrainedBlock.update

    def poisoned(block: TrainedBlock, part: str = "main") -> None:
        update(block, part)
        optimizer = block.optimizers[part]
        if block.step == 20 and block.last and optimizer is not None:
            for state in optimizer.state.values():
                state["momentum_buffer"].fill_(float("inf"))

    monkeypatch.setattr(TrainedBlock, "update", poisoned)
    words: dict[str, Any] = {"model": "mlp", "auxiliary": "linear", "optim": "sgd", "batch_size": 64, "epochs": 2}
    with pytest.raises(RunError, match=r"not finite|is nan|is inf"):
        locallearn.train(strategy="dgl", **words, threads=1, quiet=True, out=str(tmp_path), checkpoint={"every": "7it"})
    assert sorted(path.name for path in tmp_path.glob("*/checkpoints/*")) == ["step-00000007", "step-00000014"]
