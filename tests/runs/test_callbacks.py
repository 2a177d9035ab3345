"""What happens inside a run: records between epochs, evaluations by steps, callbacks; each against a loop written by
hand over the same batches."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from helpers.marks import slow
from helpers.runs import assert_same_run
from locallearn.callbacks import Callback
from locallearn.cli import main as cli
from locallearn.config.compose import compose
from locallearn.config.experiment import experiment
from locallearn.engine import Learner
from locallearn.errors import UserError
from locallearn.names import divided
from locallearn.runs import console
from locallearn.runs.read import read_run
from locallearn.studies.repeat import COST
from locallearn.training.evaluate import evaluate_splits
from locallearn.training.prepare import prepare
from locallearn.training.run import resume, start

SETTINGS = ["model=mlp", "model.width=16", "model.depth=3", "model.dropout=0.2", "blocks=3", "data.fraction=0.5"]
SETTINGS += ["batch_size=16", "epochs=2", "optim.lr=0.01", "threads=1", "device=cpu"]
SETTINGS += ["checkpoint.every=never"]  # 40 steps an epoch
INSIDE = ["log_every=7", "evaluate_every=9it"]
CALLBACKS = ["callback=[best,early_stopping,ema,norms]", "callback.ema.decay=0.8"]
PATIENCE = ["evaluate_every=5it", "callback.early_stopping.patience=2"]


def settled(*more: str, **callbacks: Callback):
    words = [*SETTINGS, *more]
    exp = experiment(*compose(words), words)
    return dataclasses.replace(exp, callbacks=callbacks) if callbacks else exp


def run(out: Path, *more: str, **callbacks: Callback) -> Path:
    return start(settled(*more, f"out={out}", **callbacks), quiet=True).run_dir


def records(folder: Path, inside: bool) -> list[dict]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record for record in lines if isinstance(record["epoch"], float) is inside]


def by_hand(*more: str) -> Iterator[tuple[Learner, object, dict[str, float]]]:
    """The same training in a loop of one's own: the learner, the data and the numbers of each step."""
    learner, data = prepare(settled(*more))
    yield learner, data, {}
    for epoch in range(2):
        for inputs, labels in data.batches(epoch, 16):
            yield learner, data, learner.step(inputs, labels)


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in learner.model_state().items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(t, other[name]) for name, t in one.items())


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("plain"), "log_every=0")


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory) -> Path:
    """The same with all that may be recorded inside, and with callbacks that do not act."""
    out = tmp_path_factory.mktemp("looked")
    return run(out, *INSIDE, *CALLBACKS, "callback.early_stopping.patience=99", "record=tensorboard")


@pytest.mark.slow
def test_what_looks_inside_an_epoch_changes_no_bit(plain, looked_at):
    assert_equal(load_file(plain / "model.safetensors"), load_file(looked_at / "model.safetensors"))
    for one, other in zip(records(plain, False), records(looked_at, False), strict=True):
        trained = [name for name in one if not name.startswith(("validation", "test")) and name not in COST]
        assert {name: one[name] for name in trained if "validation_" not in name and "test_" not in name} == {
            name: other[name] for name in trained if "validation_" not in name and "test_" not in name
        }
    assert not records(plain, True)


@pytest.mark.slow
def test_records_inside_an_epoch_are_what_a_loop_by_hand_measures(looked_at):
    steps = {r["step"]: r for r in records(looked_at, True) if "step/loss" in r}
    evaluations = {r["step"]: r for r in records(looked_at, True) if "test/loss" in r}
    window: list[dict[str, float]] = []
    for learner, data, numbers in by_hand():
        step = learner.step_count
        window = [] if step % 40 in (0, 1) else window
        window += [numbers] if numbers else []
        if step in steps:
            assert len(window) == 7
            for name in ("loss", "accuracy", "block/00/loss", "block/01/accuracy"):
                place, _, metric = name.rpartition("/")
                key = f"{place}/step_{metric}" if place else f"step/{metric}"
                assert steps[step][key] == pytest.approx(sum(n[name] for n in window) / 7, rel=1e-5), key
            assert steps[step]["epoch"] == step / 40
            window = []
        if step in evaluations:
            there = evaluate_splits(learner, data)
            assert {name: evaluations[step][name] for name in there} == there
    assert [*steps] == [epoch * 40 + k * 7 for epoch in range(2) for k in range(1, 6)]
    assert [*evaluations] == list(range(9, 80, 9))


def test_a_report_and_tensorboard_take_them_for_what_they_are(looked_at):
    seen = read_run(looked_at)
    assert [record["epoch"] for record in seen.history] == [1, 2]
    assert len(seen.inside) == 10 + 8
    assert seen.summary["epoch"] == 2
    assert not seen.problems
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = events.EventAccumulator(str(looked_at / "tensorboard"))
    board.Reload()
    shown = {event.step: event.value for event in board.Scalars("step/loss")}
    assert shown == {r["step"]: pytest.approx(r["step/loss"]) for r in records(looked_at, True) if "step/loss" in r}


@pytest.mark.slow
def test_the_average_of_the_weights_is_that_of_a_loop_by_hand(looked_at):
    average: dict[str, torch.Tensor] = {}
    for learner, data, numbers in by_hand():  # noqa: B007
        if numbers:
            now = {name: p.detach() for name, p in learner.model.named_parameters()}
            average = {n: 0.8 * average[n] + (1 - 0.8) * p if average else p.clone() for n, p in now.items()}
    saved = load_file(looked_at / "model-ema.safetensors")
    assert saved.keys() == learner.model.state_dict().keys()
    for name, tensor in average.items():
        torch.testing.assert_close(saved[name], tensor, rtol=1e-5, atol=1e-6)
    learner.model.load_state_dict(saved)
    last = records(looked_at, False)[-1]
    for name, value in evaluate_splits(learner, data).items():
        split, _, metric = name.partition("/")
        if split != "block":
            assert last[f"{split}/ema_{metric}"] == value
    assert last["test/ema_loss"] != last["test/loss"]


@pytest.mark.slow
def test_the_best_checkpoint_is_that_of_the_best_evaluation(looked_at):
    history = sorted((r for inside in (True, False) for r in records(looked_at, inside)), key=lambda r: r["step"])
    best = max((r for r in history if "validation/accuracy" in r), key=lambda r: r["validation/accuracy"])
    summary = json.loads((looked_at / "summary.json").read_text())
    found = {name: summary[f"best/{name.replace('/', '_')}"] for name in ("step", "epoch", "test/accuracy")}
    assert found == {name: best[name] for name in found}
    assert [path.name for path in (looked_at / "best").iterdir()] == [f"step-{best['step']:08d}"]
    for learner, _, _ in by_hand():
        if learner.step_count == best["step"]:
            assert_equal(load_file(looked_at / "model-best.safetensors"), weights(learner))
            return


@pytest.mark.slow
def test_early_stopping_follows_its_rule(tmp_path):
    rate = "optim.lr=0.3"  # at which the accuracy soon falls again, whatever the processor's rounding
    folder = run(tmp_path, *INSIDE, *CALLBACKS, *PATIENCE, rate)
    both = [*records(folder, True), *records(folder, False)]
    at = {r["step"]: r["validation/accuracy"] for r in both if "validation/accuracy" in r}
    values = [at[step] for step in sorted(at)]
    best, since, stops = -1.0, 0, 0
    for k, value in enumerate(values, 1):
        best, since = (value, 0) if value > best else (best, since + 1)
        stops = stops or k * (since == 2)
    assert stops == len(values) > 0, "it did not stop, or at another evaluation"
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "done"
    assert f"validation/accuracy has not risen in the last 2 evaluations since it was {best:.4f}" in status["reason"]
    assert status["step"] == 5 * stops == records(folder, False)[-1]["step"] < 80
    for learner, _, _ in by_hand(rate):
        if learner.step_count == status["step"]:
            assert_equal(load_file(folder / "model.safetensors"), weights(learner))
            break
    assert resume(folder, [], quiet=True).history[-1]["step"] == status["step"]
    longer = resume(folder, [], quiet=True, epochs=4)
    assert longer.history[-1]["step"] > status["step"], "who makes it longer wants it to go on"


class Killed(BaseException):
    """Nothing catches it, as nothing catches kill -9."""


def test_killed_and_resumed_it_is_the_run_that_was_not(tmp_path, monkeypatch):
    """Killed between a checkpoint every 10 steps, records every 7 and evaluations every 9; what callbacks know and have
    kept survives."""
    words = [*INSIDE, *CALLBACKS, "checkpoint.every=10it", "callback.best.monitor=validation/ema_loss"]
    whole = run(tmp_path / "whole", *words)
    learn = Learner.learn

    def until(self, *batch):
        if self.step_count == 58:
            raise Killed
        learn(self, *batch)

    monkeypatch.setattr(Learner, "learn", until)
    with pytest.raises(Killed):
        run(tmp_path / "killed", *words)
    monkeypatch.undo()
    killed = next((tmp_path / "killed").iterdir())
    assert records(killed, True)
    resume(killed, [], quiet=True)
    assert_same_run(whole, killed)
    for name in ("model-best", "model-ema"):
        assert_equal(load_file(whole / f"{name}.safetensors"), load_file(killed / f"{name}.safetensors"))
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, killed)]
    assert summaries[0].keys() == summaries[1].keys()
    assert all(
        summaries[1][name] == value for name, value in summaries[0].items() if name.rpartition("/")[2] not in COST
    )


@pytest.mark.slow
def test_norms_are_those_of_autograd(tmp_path):
    """Of one block under backpropagation, without batch norm and dropout."""
    own = ["strategy=backprop", "blocks=1", "model.batch_norm=false", "model.dropout=0", "optim=sgd", "log_every=10"]
    folder = run(tmp_path, *own, "callback=norms")
    steps = {r["step"]: r for inside in (True, False) for r in records(folder, inside)}
    learner, data = prepare(settled(*own))
    for epoch in range(2):
        for inputs, labels in data.batches(epoch, 16):
            before = copy.deepcopy(learner.model)
            learner.step(inputs, labels)
            if (record := steps.get(learner.step_count)) is None:
                continue
            h = torch.nn.Sequential(*before.units)(inputs)
            F.cross_entropy(before.head(h), labels).backward()
            gradient = torch.cat([p.grad.flatten() for p in before.units.parameters()]).norm()
            assert record["block/00/gradient_norm"] == pytest.approx(gradient.item(), rel=1e-4)
            assert record["block/00/activation_norm"] == pytest.approx(h.norm(dim=1).mean().item(), rel=1e-4)
    assert len(steps) == 8


class Counting(Callback):
    """Writes down what is called, and stops after a step."""

    def __init__(self, last: int | None = None) -> None:
        self.last, self.calls = last, []

    def start(self, run) -> None:
        self.calls.append(("start", run.step, run.epoch))

    def step(self, run) -> None:
        if run.step % 20 == 0:
            self.calls.append(("step", run.step, run.epoch))
            run.log({"seen": run.step})
        if run.step == self.last:
            run.stop("enough")

    def evaluation(self, run) -> None:
        self.calls.append(("evaluation", run.step, run.epoch))
        assert "test/accuracy" in run.record

    def epoch(self, run) -> None:
        self.calls.append(("epoch", run.step, run.epoch))
        run.log({"epochs": run.epoch})
        assert "train/loss" in run.record

    def end(self, run) -> None:
        self.calls.append(("end", run.step, run.epoch))
        run.record["counted"] = len(self.calls)
        (run.folder / "calls.txt").write_text(str(len(self.calls)))


@pytest.mark.slow
def test_a_callback_of_ones_own_is_called_in_order_and_stops_the_run(tmp_path):
    counting = Counting(last=60)
    folder = run(tmp_path, "log_every=30", "evaluate_every=2", counting=counting)
    assert counting.calls == [
        ("start", 0, 0.0),
        ("step", 20, 0.5),
        ("step", 40, 1.0),
        ("epoch", 40, 1.0),
        ("step", 60, 1.5),
        ("evaluation", 60, 1.5),
        ("epoch", 60, 1.5),
        ("end", 60, 2.0),
    ]
    assert json.loads((folder / "status.json").read_text())["reason"] == "enough"
    assert json.loads((folder / "summary.json").read_text())["counted"] == int((folder / "calls.txt").read_text()) == 8
    assert [(r["epoch"], r["epochs"]) for r in records(folder, False)] == [(1, 1.0), (2, 1.5)]
    assert [r["seen"] for inside in (True, False) for r in records(folder, inside) if "seen" in r] == [20, 40, 60]
    assert resume(folder, [], quiet=True).history[-1]["step"] == 60


@pytest.mark.slow
def test_a_run_stopped_at_the_end_of_an_epoch_has_been_evaluated(tmp_path):
    counting = Counting(last=40)
    folder = run(tmp_path, "evaluate_every=never", counting=counting)
    assert [call[0] for call in counting.calls[-4:]] == ["step", "epoch", "evaluation", "end"]
    assert "test/accuracy" in json.loads((folder / "summary.json").read_text())
    assert "test/accuracy" in records(folder, False)[-1]


MISTAKES = {
    "callback=best callback.best.monitor=test/accuracy": "nothing may be chosen by a number of the test split",
    "callback=early_stopping callback.early_stopping.monitor=block/00/test_loss": "by a number of the test split",
    "callback=best callback.best.monitor=train/loss": "is not a number that evaluations record; give one of",
    "callback=best callback.best.monitor=validation/beauty": "it is not known whether higher or lower is better",
    "callback=best callback.best.monitor=validation/ema_loss": "records no such number; give one of validation/loss",
    "callback=early_stopping data.validation=0": "there is no validation split: set data.validation",
    "callback=early_stopping callback.early_stopping.patience=0": "must be a whole number of at least 1",
    "callback=early_stopping evaluate_every=never": "is read only with evaluate_every=1",
    "callback=ema callback.ema.decay=1": "callback.ema.decay=1: must be",
    "callback=[best,bets]": "did you mean 'best'",
    "callback.best.monitor=validation/loss": "callback.best.monitor",
    "callback=norms compile=true": "leave one out",
    "evaluate_every=0": "must be like 1ep (epochs), 100it (steps), or never",
    "evaluate_every=3steps": "must be like 1ep (epochs), 100it (steps), or never",
    "evaluate_every=9it strategy=backprop runtime.staleness=1": "give epochs, such as 1ep",
    "log_every=-1": "log_every=-1: must be a whole number of at least 0",
}


@pytest.mark.parametrize("words", [*[*MISTAKES][::4], *map(slow, (m for k, m in enumerate(MISTAKES) if k % 4))])
def test_a_mistake_is_one_sentence(words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["locallearn"])
    assert cli.main([*SETTINGS, *words.split(), f"out={tmp_path / 'runs'}"]) == 2
    error = capsys.readouterr().err.strip()
    assert MISTAKES[words] in error
    assert "\n" not in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_state_that_json_cannot_hold_is_named(tmp_path):
    class Odd(Counting):
        def state_dict(self):
            return {"odd": {1, 2}}

    with pytest.raises(UserError, match="callback counting: state_dict gives what JSON cannot hold"):
        run(tmp_path, "epochs=1", counting=Odd())


OWN = """
from locallearn.callbacks import Callback

class Stopper(Callback):
    def __init__(self, last: int = 33):
        self.last = last

    def step(self, run):
        if run.step == self.last and run.rank == 0:
            run.stop("enough of it")

    def end(self, run):
        first = {f"half-{block.spec.index}": next(block.layers.parameters()) for block in run.learner.blocks}
        run.save("halves", {name: p.detach() / 2 for name, p in first.items()})
"""


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True])
def test_a_pipeline_does_the_same(own, tmp_path):
    """Two processes record, keep, average and stop as one; also where a callback of rank 0 stops inside an epoch."""
    (tmp_path / "my_conf" / "callback").mkdir(parents=True)
    (tmp_path / "stopping_mine.py").write_text(OWN)
    (tmp_path / "my_conf" / "callback" / "mine.yaml").write_text("_target_: stopping_mine.Stopper\nlast: 33\n")
    words = [*INSIDE, *CALLBACKS, *PATIENCE, "callback.early_stopping.patience=1"]
    if own:
        words = ["log_every=10", "callback=mine", "--config-dir", "my_conf", "--allow", "stopping_mine"]
    ends = []
    for runtime in ("serial", "pipeline runtime.stages=2"):
        words_of_run = [*SETTINGS, *words, *f"runtime={runtime}".split(), f"out=runs/{runtime[:6]}"]
        command = [sys.executable, "-m", "locallearn", *words_of_run]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
        ends.append(next((tmp_path / "runs" / runtime[:6]).iterdir()))
    for name in ("model", "halves") if own else ("model", "model-best", "model-ema"):
        assert_equal(*(load_file(folder / f"{name}.safetensors") for folder in ends))
    one, other = (json.loads((folder / "status.json").read_text()) for folder in ends)
    assert one["reason"] == other["reason"]
    assert one["step"] == other["step"] < 80
    for inside in (True, False):
        for one, other in zip(*(records(folder, inside) for folder in ends), strict=True):
            same = one.keys() - {name for name in one if divided(name)[1] in COST}
            assert {name: one[name] for name in same} == {name: other[name] for name in same}


@pytest.mark.slow
def test_without_a_terminal_a_line_says_how_the_last_steps_went(tmp_path, monkeypatch, capsys):
    words = [f"out={tmp_path}", "max_steps=12", "log_every=5"]
    start(settled(*words), quiet=False)
    assert "step" not in capsys.readouterr().out.partition("result")[0], "a line a minute at most"
    monkeypatch.setattr(console, "REPORT_SECONDS", 0.0)
    folder = start(settled(*words), quiet=False).run_dir
    shown = re.findall(r"epoch (0\.\d+)/2  step ([\d.]+) / ([\d.]+)", capsys.readouterr().out)
    found = [(r["epoch"], r["step/loss"], r["step/accuracy"]) for r in records(folder, True)]
    assert shown == [(f"{epoch:.2f}", f"{loss:.3f}", f"{accuracy:.3f}") for epoch, loss, accuracy in found]
    assert len(shown) == 2
