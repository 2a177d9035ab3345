"""Few labels and a teacher: which samples keep a label, what a student learns, and where the teacher is."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import locallearn
from helpers.commands import SMALL, one_sentence, run
from helpers.nets import assert_same, tiny_batches, tiny_learner, tiny_model
from helpers.objectives import Teacher as Answers
from helpers.runs import STAGE, assert_same_run
from locallearn.auxiliary import Linear
from locallearn.config.compose import compose
from locallearn.config.experiment import experiment
from locallearn.contract import Packet
from locallearn.data import Data
from locallearn.errors import UserError
from locallearn.objectives import Distil
from locallearn.strategies.deep_supervision import DeepSupervision
from locallearn.strategies.greedy import DGL
from locallearn.training.prepare import prepare

pytestmark = pytest.mark.usefixtures("elsewhere")


def loaded(*overrides: str) -> Data:
    return experiment(*compose(overrides), overrides).source.load(3, torch.device("cpu"))


@pytest.mark.slow
def test_labels_are_kept_class_by_class():
    whole = loaded("data=digits")
    kept = {count: loaded("data=digits", f"data.labelled={count}") for count in (10, 25, 100, len(whole.train))}
    for count, data in kept.items():
        per_class = torch.bincount(data.train.labels, minlength=10)
        assert len(data.train) == count
        assert per_class.max() - per_class.min() <= (1 if count <= 100 else 20)
        assert data.normaliser.normalisation == whole.normaliser.normalisation, "images need no labels"
        assert torch.equal(torch.cat([data.train.index, data.unlabelled.index]).sort().values, whole.train.index)
        by_index = dict(zip(whole.train.index.tolist(), whole.train.labels.tolist(), strict=True))
        assert [by_index[i] for i in data.train.index.tolist()] == data.train.labels.tolist()
        assert (data.unlabelled.labels == -1).all()
        assert data.steps(10) == count // 10, "without a loss for the others they are left out"
    assert set(kept[10].train.index.tolist()) < set(kept[25].train.index.tolist()) < set(kept[100].train.index.tolist())
    for count in (9, 1295):
        with pytest.raises(UserError, match=f"data.labelled={count}: must be from 10, one of each class, to 1294"):
            loaded("data=digits", f"data.labelled={count}")
    kept[25].use_unlabelled()
    labels = torch.cat([y for _, y in kept[25].batches(0, 1)])
    assert len(labels) == 1294
    assert (labels >= 0).sum() == 25


@pytest.mark.parametrize(("objective", "trained"), [("simclr", 1294), ("cross_entropy", 30)])
def test_an_objective_that_needs_no_labels_sees_all_images(objective, trained):
    words = ["model=lenet", "strategy=dgl", "data.labelled=30", f"objective={objective}", "threads=1"]
    _, data = prepare(experiment(*compose(words), words))
    assert len(data.pool) == trained
    assert len(data.train) == 30, "what probes and read-outs see"
    assert ("left out" if trained == 30 else "learns from the others, too") in data.left_out


def by_hand(student: torch.Tensor, teacher: torch.Tensor, y: list[int], temperature: float, alpha: float) -> float:
    """Image by image and class by class."""
    soft, hard = [], []
    for z, t, label in zip(student.tolist(), teacher.tolist(), y, strict=True):
        p, q = ([math.exp(v / temperature) for v in row] for row in (t, z))
        soft.append(-sum(a / sum(p) * math.log(b / sum(q)) for a, b in zip(p, q, strict=True)))
        if label >= 0:
            hard.append(-math.log(math.exp(z[label]) / sum(map(math.exp, z))))
    return alpha * sum(soft) / len(soft) + ((1 - alpha) * sum(hard) / len(hard) if hard else 0)


@pytest.mark.parametrize("y", [[0, 2, -1, 1], [-1] * 4], ids=str)
@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 1.0), (2.0, 0.3), (0.1, 0.0)])
def test_the_loss_image_by_image(temperature, alpha, y):
    g = torch.Generator().manual_seed(0)
    student, x = (torch.randn(4, 3, generator=g, dtype=torch.float64) for _ in range(2))
    objective = Distil(temperature, alpha, teacher=Answers())
    loss = objective.blend(student, objective.begin(Packet(x, torch.tensor(y))))
    assert loss.item() == pytest.approx(by_hand(student, x, y, temperature, alpha), rel=1e-12)


@pytest.mark.parametrize("blocks", [1, 2])
def test_training_is_a_loop_over_blocks_with_the_teachers_answers(blocks):
    """Every block by its own classifier, and the head too: torch's cross-entropy with soft targets."""
    model, batches = tiny_model(), [(x, torch.where(y == 1, -1, y)) for x, y in tiny_batches(4)]
    ours = tiny_learner(DGL(objective=Distil(2.0, 0.5, teacher=Answers()), auxiliary=Linear()), model, blocks)
    bare = copy.deepcopy(model).double().train()
    parts = [bare.units] if blocks == 1 else [bare.units[units.start : units.stop] for units in ours.cut]
    heads = [*(copy.deepcopy(block.auxiliary["classifier"]) for block in ours.blocks[:-1]), bare.head]
    optimizers = [
        torch.optim.SGD([*part.parameters(), *head.parameters()], lr=0.1, momentum=0.9, weight_decay=1e-3, fused=True)
        for part, head in zip(parts, heads, strict=True)
    ]
    for x, y in batches:
        ours.learn(x, y)
        targets, h = (Answers()(x) / 2).softmax(1), x
        for part, head, optimizer in zip(parts, heads, optimizers, strict=True):
            for unit in part:
                h = unit(h)
            z = head(h)
            loss = F.cross_entropy(z / 2, targets) / 2 + F.cross_entropy(z, y, ignore_index=-1) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            h = h.detach()
    for p, q in zip(ours.model.parameters(), bare.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-10, atol=1e-13)


def test_a_frozen_head_does_not_hear_the_teacher():
    """Only block 0 learns, from its own classifier and through the chain."""
    strategy = DeepSupervision(objective=Distil(teacher=Answers()), auxiliary=Linear())
    learner = tiny_learner(strategy, train_blocks=frozenset([0]), total_steps=2)
    before = copy.deepcopy(learner.model)
    for x, y in tiny_batches(2):
        learner.learn(x, torch.full_like(y, -1))
    assert_same(learner.model.head, before.head)
    assert not torch.equal(learner.model.units[0][0].weight, before.units[0][0].weight)


WORDS = [*SMALL, "model.depth=3", "strategy=dgl", "batch_size=64", "data.validation=0.5", "max_steps=9", "epochs=2"]
STUDENT = [*WORDS, "objective=distil", "data.labelled=40"]


@pytest.fixture
def teacher(capsys: pytest.CaptureFixture[str]) -> Path:
    assert run(*WORDS, "model.width=16", "data.normalise=symmetric", "out=teacher", capsys=capsys)[0] == 0
    (path,) = Path("teacher").iterdir()
    return path


@pytest.mark.slow
def test_a_student_learns_from_a_run(teacher, capsys):
    kept = (teacher / "model.safetensors").read_bytes()
    words = [*STUDENT, f"init.teacher={teacher}"]
    code, out, err = run(*words, "out=student", capsys=capsys)
    assert code == 0, err
    assert f"learns from init.teacher={teacher.resolve()}, of " in out
    assert "40 of the training samples have labels; the objective learns from the others, too" in out
    (path,) = Path("student").iterdir()
    saved = load_file(next(path.glob(f"checkpoints/step-*9/{STAGE}")))
    assert all(t.shape[-1:] != (16,) for t in (*saved.values(), *load_file(path / "model.safetensors").values()))
    assert (teacher / "model.safetensors").read_bytes() == kept
    summary = json.loads((path / "summary.json").read_text())
    assert summary["block/02/distil_loss"] > 0

    learner, data = prepare(experiment(*compose(words), words))
    x, y = next(data.batches(0, 64))
    raw = next(data.pool.store.take(data.pool.index[:64], 64))
    own = loaded(*WORDS, "data.normalise=symmetric")
    with torch.no_grad():
        expected = locallearn.load(teacher)(own._normalise(raw)).softmax(1)
    packet = learner.strategy.begin(Packet(data._normalise(raw), y))
    assert torch.allclose(packet.side[0], expected, atol=1e-5), "it is asked as it was taught"
    assert not torch.allclose(x, own._normalise(raw), atol=0.1)

    for more, said in {
        ("init.teacher=null",): "objective=distil learns from a teacher: give init.teacher=RUN",
        ("init.teacher=nowhere",): "there is no run folder",
        ("data=synthetic", "data.labelled=null"): "which are not those of data=synthetic",
        ("objective=cross_entropy",): "init.teacher=" + str(teacher) + " is read only with objective=distil",
        ("strategy=backprop", "init.teacher=null"): "objective=distil is read only with strategy=",
    }.items():
        code, _, err = run(*words, *more, "out=refused", capsys=capsys)
        assert (code, said in one_sentence(err)) == (2, True), err
    (teacher / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes())
    code, _, err = run(*words, "blocks=1", "out=refused", capsys=capsys)
    assert (code, "does not fit its config.yaml" in one_sentence(err)) == (2, True)
    assert not Path("refused").exists()
    (teacher / "model.safetensors").unlink()
    assert run("evaluate", str(path), capsys=capsys)[0] == 0, "nobody teaches there"


@pytest.mark.slow
def test_in_a_pipeline_the_answers_travel(teacher, capsys):
    words = [*STUDENT, f"init.teacher={teacher}", "blocks=3", "objective.alpha=0.5"]
    assert run(*words, "out=serial", capsys=capsys)[0] == 0
    code, _, err = run(*words, "out=pipeline", "runtime=pipeline", "runtime.split=[1,2]", capsys=capsys)
    assert code == 0, err
    assert_same_run(next(Path("serial").iterdir()), next(Path("pipeline").iterdir()))
