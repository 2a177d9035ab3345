"""scripts/reproduce.py and `evaluate --linear` on runs of a few steps."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import locallearn
from locallearn.cli import main as cli
from locallearn.config.compose import choices
from locallearn.config.experiment import experiment
from locallearn.runs.folder import RunFolder
from locallearn.training.prepare import prepare
from locallearn.training.readout import linear_readout
from locallearn.training.saved import saved_experiment

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def reproduce():
    spec = importlib.util.spec_from_file_location("reproduce", ROOT / "scripts" / "reproduce.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["reproduce"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_every_command_of_the_study_is_a_run(reproduce):
    """Each row composes to a checked experiment, and every strategy is in it."""
    from locallearn.config.compose import compose

    seen = set()
    for part in itertools.chain(*reproduce.STUDIES.values()):
        for row in part.rows:
            overrides = [*part.common.split(), *row.settings.split(), "seed=1"]
            exp = experiment(*compose(overrides), overrides)
            seen.add(exp.names["strategy"])
    assert seen == choices("strategy").keys() - {"checkpoint"}


@pytest.mark.slow
def test_runs_are_done_once_and_the_table_is_their_mean(reproduce, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "SEEDS", (0, 1))
    rows = (reproduce.Row("one", "strategy=dgl auxiliary=linear", 91.5), reproduce.Row("not run yet", "strategy=fa"))
    part = reproduce.Part("Title", "Text.", "model=lenet epochs=1 max_steps=3 probe=alignment", rows, linear=True)
    options = argparse.Namespace(out=tmp_path, data=None)
    for seed in (0, 1):
        assert f"one, seed {seed}" in reproduce.run(part, rows[0], seed, options)
    before = {p: p.stat().st_mtime for p in tmp_path.glob("*/*/result.json")}
    assert len(before) == 2
    reproduce.run(part, rows[0], 0, options)
    assert before == {p: p.stat().st_mtime for p in tmp_path.glob("*/*/result.json")}
    table = reproduce.tabulate(part, tmp_path)
    accuracies = [100 * json.loads(p.read_text())["test/accuracy"] for p in sorted(before)]
    assert [row["accuracy"] for row in table["rows"]] == [accuracies]
    text = reproduce.render("study", [table])
    assert f"{sum(accuracies) / 2:.2f} ± " in text
    assert "91.50" in text
    assert "linear read-out" in text


def test_a_linear_readout_is_a_classifier_on_pooled_features(tmp_path, capsys):
    run = locallearn.train(
        model="lenet",
        strategy="dgl",
        auxiliary="linear",
        max_steps=5,
        epochs=1,
        blocks=2,
        out=str(tmp_path),
        quiet=True,
    )
    assert cli.main(["evaluate", str(run.run_dir), "--linear"]) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    exp, known = saved_experiment(RunFolder.open(run.run_dir), [])
    learner, data = prepare(exp, [range(*pair) for pair in known["cut"]])
    learner.model.load_state_dict(run.model.state_dict())
    found = linear_readout(learner, data)
    assert float(printed["linear_accuracy"]) == pytest.approx(found["linear_accuracy"], abs=1e-4)
    with torch.no_grad():
        model = run.model.eval()
        x, y = zip(*data.evaluation(data.train, 256), strict=True)
        test, truth = zip(*data.evaluation(data.test, 256), strict=True)
        cut = known["cut"][0][1]
        features = [torch.cat([_up(model, b, cut) for b in part]) for part in (x, test)]
    scale = StandardScaler().fit(features[0])
    classifier = LogisticRegression(max_iter=200, tol=1e-3).fit(scale.transform(features[0]), torch.cat(y))
    expected = classifier.score(scale.transform(features[1]), torch.cat(truth))
    assert found["block/00/linear_accuracy"] == pytest.approx(expected, abs=0.01)


def _up(model, inputs, units):
    h = inputs
    for unit in list(model.units)[:units]:
        h = unit(h)
    return h.mean(dim=(2, 3)) if h.dim() == 4 else h


def test_differences_are_taken_seed_by_seed(reproduce, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "SEEDS", (0, 1, 2))
    control, other = reproduce.Row("control", "runtime=serial"), reproduce.Row("other", "runtime=replay")
    part = reproduce.Part("Title", "Text.", "model=lenet", (control, other), control="control")
    accuracies = {control: (0.80, 0.90, 0.70), other: (0.81, 0.93)}
    for row, values in accuracies.items():
        for seed, accuracy in enumerate(values):
            place = reproduce.folder(tmp_path, part, row, seed)
            place.mkdir(parents=True)
            found = {"test/accuracy": accuracy, "seconds": 1.0, "auxiliary_parameters": 0}
            found |= {"block/01/staleness": 1.0 + seed, "block/02/staleness": 4.0} if row is other else {}
            (place / "result.json").write_text(json.dumps(found))
    table = reproduce.tabulate(part, tmp_path)
    assert table["rows"][0]["difference"] == []
    assert table["rows"][1]["difference"] == pytest.approx([1.0, 3.0])
    assert table["rows"][1]["staleness"] == [1.5, 4.0]
    text = reproduce.render("study", [table])
    assert "less 'control'" in text
    assert "| 2.00 ± 1.41 (n=2) | 1.5, 4.0 |" in text
