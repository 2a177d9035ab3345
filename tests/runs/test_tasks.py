"""`locallearn tasks`: sets as tasks of one trained net."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

import locallearn
from helpers.commands import one_sentence
from helpers.commands import run as command
from locallearn.analysis.task2vec import embedding, task_distance
from locallearn.data.digits import Digits
from locallearn.data.split import balanced
from locallearn.seeds import generator

SETTINGS = {"strategy": "backprop", "model": "lenet", "data": "digits", "epochs": 2, "threads": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return locallearn.train(**SETTINGS, out=str(tmp_path_factory.mktemp("trained")), quiet=True).run_dir


@pytest.mark.slow
def test_tasks_of_one_net(trained, tmp_path, capsys):
    words = ["data=digits", "data.deficit=null,flip,noise", "samples=120", "--to", str(tmp_path / "to")]
    code, out, err = command("tasks", str(trained), *words, capsys=capsys)
    assert code == 0, err
    assert "120 samples of each task" in out
    with open(tmp_path / "to/tasks.csv", encoding="utf-8") as file:
        rows = {(row["from"], row["to"]): row for row in csv.DictReader(file)}
    names = ["deficit=null", "deficit=flip", "deficit=noise"]
    assert [*rows] == [(a, b) for a in names for b in names]
    apart = {pair: float(row["symmetric"]) for pair, row in rows.items()}
    lost = {a: {b: apart[a, b] - float(rows[a, b]["asymmetric"]) for b in names if b != a} for a in names}
    for a, own in lost.items():
        first, second = own.values()
        assert first == pytest.approx(second, abs=2e-6), "what is subtracted is of the first task alone"
        assert apart[a, a] == 0
    assert apart["deficit=null", "deficit=noise"] > apart["deficit=null", "deficit=flip"] > 0.05
    assert (tmp_path / "to/tasks.svg").is_file()

    by_hand = []  # with nothing of the command
    body = torch.nn.Sequential(*locallearn.load(trained).units)
    for deficit in (None, "flip"):
        data = Digits(deficit=deficit).load(0, torch.device("cpu"))
        places = balanced(data.train.labels, 120, generator(0, "tasks"))
        kept = places[balanced(data.train.labels[places], 120, generator(0, "tasks", "equal"))]
        x, y = next(data.evaluation(data.train.at(kept), 200))
        by_hand.append(embedding(body, x if deficit is None else x.flip(2), y, generator(0, "task2vec")))
    assert apart["deficit=null", "deficit=flip"] == pytest.approx(task_distance(*by_hand), rel=1e-4)


@pytest.mark.slow
def test_the_chosen_expert_is_the_one_of_the_task(trained, tmp_path, capsys):
    """A net that saw digits upside down is the expert for these, and the other one for the others."""
    flipped = locallearn.train(**SETTINGS, **{"data.deficit": "flip"}, out=str(tmp_path), quiet=True).run_dir
    words = ["data=digits", "data.deficit=null,flip", "--expert", str(trained), "--expert", str(flipped)]
    code, out, err = command("tasks", str(trained), *words, "samples=200", "labels=60", capsys=capsys)
    assert code == 0, err
    upright, upside_down = (line for line in out.splitlines() if line.startswith("experts for"))
    assert f"experts for deficit=null: chosen {trained}" in upright
    assert f"experts for deficit=flip: chosen {flipped}" in upside_down
    assert f"best {trained}" in upright
    assert "error 0 % above the best" in upright


@pytest.mark.slow
def test_distances_by_definition_on_a_small_net(trained, capsys):
    words = ["data=digits", "data.label_noise=0,1", "--information", "samples=40", "steps=3"]
    code, out, err = command("tasks", str(trained), *words, capsys=capsys)
    assert code == 0, err
    assert "I(D1 D2; w) - I(D1; w) in bits" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data=digits"], "tasks compares at least two sets, but one was given"),
        ([], "tasks needs the names of the sets"),
        (["data=digits,cora"], "cora is not such a set"),
        (["data=digits,names"], "names has inputs of"),
        (["data=digits,digit_ink"], "digit_ink is not such a set"),
        (["data=digits,diabetes"], "diabetes is not such a set"),
        (["data=digits", "data.crop=0,1"], "says how to train on a set"),
        (["data=digits,synthetic", "beta=1"], "beta is read only with --information"),
        (["data=digits,synthetic", "labels=9"], "labels is read only with --expert RUN"),
        (["data=digits,synthetic", "samples=1"], "samples=1: must be a whole number of at least 2"),
        (["data=digits,synthetic", "model=lenet"], "takes only settings of data"),
    ],
)
def test_what_is_no_comparison_is_one_sentence(words, said, trained, real_root, monkeypatch, capsys):
    monkeypatch.setenv("LOCALLEARN_DATA", str(real_root))
    code, out, err = command("tasks", str(trained), *words, capsys=capsys)
    assert (code, out) == (2, "")
    assert said in one_sentence(err)


@pytest.mark.slow
def test_no_run(tmp_path, capsys):
    for run in (tmp_path, tmp_path / "nowhere"):
        code, _, err = command("tasks", str(run), "data=digits,synthetic", capsys=capsys)
        assert code == 2
        assert "run folder" in one_sentence(err)
