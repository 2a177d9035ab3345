"""A run that is made longer, against one that was as long from the beginning."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import locallearn
from helpers.commands import SMALL, one_sentence, run
from helpers.marks import slow
from helpers.runs import assert_same_run
from locallearn.errors import RunError
from locallearn.training.loop import Training
from locallearn.training.run import resume

pytestmark = pytest.mark.usefixtures("elsewhere")
WORDS = [*SMALL, "strategy=dgl", "batch_size=256", "model.dropout=0.2", "data.crop=2"]
STEPS = 5  # 1294 training samples


def made(out: str, capsys: pytest.CaptureFixture[str], *words: str) -> Path:
    code, _, err = run(*WORDS, f"out={out}", *words, capsys=capsys)
    assert code == 0, err
    (path,) = Path(out).iterdir()
    return path


def rates(path: Path) -> list[float]:
    return [json.loads(line)["learning_rate"] for line in (path / "metrics.jsonl").read_text().splitlines()]


HALF = ["optim.schedule=step", "optim.decay=0.1", "optim.milestones=[0.5]"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "short", "long"),
    [
        ("stretched", ["optim.schedule=constant"], ["optim.schedule=constant"]),
        # The tenth that the rate fell to in the middle of two epochs, a quarter of four, is held
        slow("held", HALF, [*HALF[:2], "optim.milestones=[0.25]"]),
        pytest.param("held", [*HALF, "runtime=pipeline"], [*HALF[:2], "optim.milestones=[0.25]"],
                     marks=pytest.mark.slow, id="a pipeline"),
    ],
)  # fmt: skip
def test_a_longer_run_has_the_bits_of_one_that_was_as_long(schedule, short, long, capsys, monkeypatch):
    """It was done; made longer it is killed, and goes on as what it has become."""
    whole, path = made("whole", capsys, "epochs=4", *long), made("part", capsys, "epochs=2", *short)
    if "runtime=pipeline" not in short:
        with monkeypatch.context() as patch:
            patch.setattr(Training, "finish_epoch", lambda *_, **__: 1 / 0)
            with pytest.raises(RunError, match="ZeroDivision"):
                resume(path, [], quiet=True, epochs=4, schedule=schedule)
        assert not (path / "summary.json").exists()
        assert not (path / "model.safetensors").exists()
        assert run("resume", str(path), capsys=capsys)[0] == 0
    else:
        code, _, err = run("resume", str(path), "epochs=4", f"schedule={schedule}", capsys=capsys)
        assert code == 0, err
    assert_same_run(whole, path)
    (change,) = json.loads((path / "manifest.json").read_text())["longer"]
    assert change == {"before": 2, "epochs": 4, "schedule": schedule, "step": 2 * STEPS}
    assert locallearn.load(path)


@pytest.mark.slow
def test_a_schedule_is_stretched_unless_it_is_held(capsys):
    path = made("runs", capsys, "epochs=2", "optim.lr=0.01", "optim.schedule=cosine")
    code, out, err = run("resume", str(path), "epochs=4", capsys=capsys)
    assert code == 0, err
    assert "goes on to epoch 4, not 2, and its schedule (cosine) is stretched over all of them" in out
    assert "here the learning rate is 0.005, and was 0" in out
    last = [(STEPS * epochs - 1) / (4 * STEPS) for epochs in (3, 4)]  # progress in the last step of an epoch
    assert rates(path)[2:] == pytest.approx([0.005 * (1 + math.cos(math.pi * p)) for p in last])
    assert run("repeat", str(path), capsys=capsys)[0] == 2
    said = one_sentence(run("resume", str(path), "epochs=6", "schedule=held", capsys=capsys)[2])
    assert "optim.schedule=cosine ends at a learning rate of 0" in said
    before = (path / "manifest.json").read_bytes(), (path / "summary.json").read_bytes()
    for words, sentence in {
        ("epochs=3",): "epochs=3 is less than the 4 that the run has",
        ("epochs=x",): "epochs=x: must be a whole number",
        ("epochs=0",): "epochs=0: must be a whole number of at least 1",
        ("schedule=held",): "schedule=held is read only with epochs=N",
        ("epochs=9", "schedule=hold"): "unknown schedule 'hold': did you mean 'held'?",
        ("batch_size=3",): "takes only settings of epochs and of a runtime",
    }.items():
        code, _, err = run("resume", str(path), *words, capsys=capsys)
        assert (code, sentence in one_sentence(err)) == (2, True), err
    assert before == ((path / "manifest.json").read_bytes(), (path / "summary.json").read_bytes())
    assert "done already" in run("resume", str(path), "epochs=4", capsys=capsys)[1]


@pytest.mark.slow
def test_a_run_that_was_to_end_early_is_not_made_longer(capsys):
    path = made("runs", capsys, "max_steps=2")
    code, _, err = run("resume", str(path), "epochs=9", capsys=capsys)
    assert (code, "the run ends after max_steps=2, however many epochs" in one_sentence(err)) == (2, True)
