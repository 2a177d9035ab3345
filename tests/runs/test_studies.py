"""Studies: those of conf/study and their pages, studies from outside, and what a second start repeats."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import locallearn
from helpers import ROOT
from helpers.commands import one_sentence, run
from locallearn.cli import main as cli
from locallearn.config.compose import choices, compose
from locallearn.config.experiment import experiment
from locallearn.errors import UserError
from locallearn.runs.folder import RunFolder
from locallearn.studies import page
from locallearn.studies.analysis import Analysis, Runs, averaged, mean_std, verdicts
from locallearn.studies.definition import load
from locallearn.studies.study import _analysis
from locallearn.training.evaluate import linear_readout
from locallearn.training.prepare import prepare
from locallearn.training.saved import saved_experiment

DOCS = ROOT / "docs"
STUDIES = choices("study")
EXPERIMENTS = [name for name in STUDIES if load(name).page == "experiments"]
OTHERS = ["language", "vit", "dfa_beyond_images", "fair"]
"""Studies with a page, or a section of a page, elsewhere."""
WRITTEN = [
    name for name in ("families", "replay", *EXPERIMENTS, *OTHERS)
    if (DOCS / load(name).page / f"{name}.json").is_file()
]  # fmt: skip
"""Those that have been run in full."""
NEED_FILES = {"critical_periods", "twelve_bits", "plane_overfitting", "mnist_planes", "sequences_graphs"}
"""Studies whose quick form, too, reads files of a data set."""
TINY = "data=digits model=mlp model.width=8 model.depth=2 data.fraction=0.1 epochs=3 batch_size=32"
MINE = f"""
_target_: my_analysis.Mine
title: Mine
text: What I ask.
common: {TINY}
seeds: [0, 1]
control: bp
rows:
  bp: {{settings: strategy=backprop, published: 50, source: Nobody 1999, differs: all}}
  dgl: strategy=dgl auxiliary=linear
  again: strategy=dgl auxiliary=linear
"""
ANALYSIS = """
from locallearn.figures import panels
from locallearn.studies.analysis import Analysis, verdicts


class Mine(Analysis):
    def measure(self, runs):
        return {row: runs.accuracy(row) for row in runs.by_row} | {"published": dict(runs.published)}

    def draw(self, numbers):
        figure, (axis,) = panels()
        axis.plot(numbers["bp"])
        return {"": figure}

    def tell(self, numbers):
        yield from verdicts((numbers["dgl"] == numbers["again"], "equal settings are equal"))
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's with a study and the module that it names; the current folder is beside it."""
    conf = tmp_path / "my_conf"
    (conf / "study").mkdir(parents=True)
    (conf / "study" / "mine.yaml").write_text(MINE)
    (conf / "my_analysis.py").write_text(ANALYSIS)
    monkeypatch.chdir(tmp_path)
    yield conf
    sys.modules.pop("my_analysis", None)
    if str(conf) in sys.path:
        sys.path.remove(str(conf))


def times(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("[!.]*/status.json")}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(STUDIES))
def test_every_row_of_a_study_is_a_run(name):
    for whole in (load(name), load(name, quick=True)):
        for part in whole.parts:
            for row in part.rows:
                words = [*next(part.candidates(row)), *whole.quick.split()]
                merged = {word.lstrip("+").partition("=")[0]: word for word in words}
                experiment(*compose([*merged.values(), "seed=1"]), [*merged.values(), "seed=1"])


def test_the_families_have_every_strategy():
    rows = [word for part in load("families").parts for row in part.rows for word in next(part.candidates(row))]
    named = {word.removeprefix("strategy=") for word in rows if word.startswith("strategy=")}
    assert named == choices("strategy").keys() - {"checkpoint", "petra"}
    for part in load("fair").parts:
        assert set(part.rows) == named - {"infomax"}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_study_in_its_quick_form(name, tmp_path, request, capsys):
    flags = ["--quick", "--out", str(tmp_path / "runs"), "--to", str(tmp_path)]
    if name in NEED_FILES:
        flags += ["--data", str(request.getfixturevalue("real_root"))]
    code, out, err = run("study", name, *flags, capsys=capsys)
    assert code == 0, err
    assert out.startswith("[1/")
    record = json.loads((tmp_path / "experiments" / f"{name}.json").read_text())
    assert record["quick"]
    pictures = {p.stem for p in (tmp_path / "experiments").glob("*.svg")}
    assert pictures
    assert all(picture.startswith(name) for picture in pictures)
    assert {p.stem for p in (tmp_path / "experiments").glob("*.png")} == pictures
    text = (tmp_path / "experiments.md").read_text()
    assert f"## {load(name).title}" in text
    assert page.QUICK in text
    assert "- agrees: " in text or "- **differs**: " in text
    assert all(f"(experiments/{picture}.svg)" in text for picture in pictures)
    before = times(tmp_path / "runs")
    code, out, _ = run("study", name, *flags, capsys=capsys)
    assert code == 0
    assert "[1/" not in out, "from the runs that are there"
    assert times(tmp_path / "runs") == before
    assert (tmp_path / "experiments.md").read_text() == text


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [*OTHERS, "families", "truth", "beyond", "pgi_detection"])
def test_another_study_in_its_quick_form(name, tmp_path, real_root, capsys):
    only = {"truth": "Cora", "families": "Local losses"}.get(name, "")  # all rows compose, as the test of rows says
    flags = ["--quick", "--out", str(tmp_path / "runs"), "--to", str(tmp_path), "--data", str(real_root)]
    code, _, err = run("study", name, *flags, *(["--only", only] if only else []), capsys=capsys)
    assert code == 0, err
    text = (tmp_path / f"{load(name).page or name}.md").read_text()
    assert f"# {load(name).title}" in text
    assert page.QUICK in text
    record = json.loads((tmp_path / load(name).page / f"{name}.json").read_text())
    rows = [row for part in record["parts"] if only in part["title"] for row in part["rows"]]
    assert all(row["values"] for row in rows)
    assert len(rows) == sum(len(part.rows) for part in load(name).parts if only in part.title)


def test_every_committed_result_is_small_and_no_quick_try():
    for file in (file for folder in ("experiments", "transformers") for file in (DOCS / folder).glob("*")):
        assert file.stat().st_size < 300_000 or file.suffix == ".png", file  # which are not committed
        if file.suffix == ".json":
            assert not json.loads(file.read_text())["quick"], file


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITTEN)
def test_the_pages_are_what_the_results_say(name, tmp_path, capsys):
    """Nothing in them was changed by hand: they and their pictures can be written from the JSON files alone."""
    folder = load(name).page
    home, source, target = tmp_path / folder, DOCS / folder, f"{folder or name}.md"
    home.mkdir(exist_ok=True)
    (home / f"{name}.json").write_bytes((source / f"{name}.json").read_bytes())
    if folder:
        (tmp_path / target).write_bytes((DOCS / target).read_bytes())
    assert run("study", name, "--report", "--to", str(tmp_path), capsys=capsys)[0] == 0
    assert (tmp_path / target).read_text() == (DOCS / target).read_text()
    assert (home / f"{name}.json").read_text() == (source / f"{name}.json").read_text()
    for picture in home.glob("*.svg"):
        assert picture.read_text() == (source / picture.name).read_text(), picture


@pytest.mark.slow
def test_a_study_from_outside(mine, capsys):
    command = ["study", "mine", "--config-dir", str(mine), "--jobs", "2", "--data", str(mine)]
    code, out, err = run(*command, capsys=capsys)
    assert code == 0, err
    assert [line[:5] for line in out.splitlines()[:4]] == [f"[{k}/4]" for k in (1, 2, 3, 4)], "equal settings: one run"
    assert len(times(Path("runs/mine"))) == 4
    record = json.loads(Path("runs/mine/mine.json").read_text())
    bp, dgl, again = record["parts"][0]["rows"]
    assert dgl["values"] == again["values"]
    assert dgl["difference"] == pytest.approx([a - b for a, b in zip(dgl["values"], bp["values"], strict=True)])
    assert (bp["difference"], bp["published"]) == ([], 50)
    assert record["results"]["published"] == {"bp": "50 Nobody 1999"}
    direct = dict(word.split("=") for word in f"{TINY} strategy=dgl auxiliary=linear seed=1 threads=1".split())
    numbers = {k: float(v) if "." in v else int(v) if v.isdigit() else v for k, v in direct.items()}
    metrics = locallearn.train(**numbers, quiet=True, out="direct").metrics
    assert dgl["values"][1] == 100 * metrics["test/accuracy"], "the numbers of the command, bit for bit"
    text = Path("runs/mine/mine.md").read_text()
    assert f"| bp | {mean_std(bp['values'])} | 50.00 |" in text
    assert "difference to 'bp'" in text
    assert "- bp: Nobody 1999; unlike the original: all" in text
    assert "- agrees: equal settings are equal" in text
    assert "![Mine](mine.svg)" in text
    before = times(Path("runs/mine"))
    code, out, _ = run(*command, capsys=capsys)
    assert (code, "[1/" in out) == (0, False)
    assert times(Path("runs/mine")) == before
    Path("runs/mine/mine.md").unlink()
    assert run(*command[:4], "--report", "--to", "runs/mine", capsys=capsys)[0] == 0
    assert Path("runs/mine/mine.md").read_text() == text


@pytest.mark.slow
@pytest.mark.fault("F29")
def test_a_killed_study_goes_on_from_the_checkpoint(mine, capsys):
    (mine / "study" / "mine.yaml").write_text(MINE.replace("epochs=3", "epochs=2000 max_steps=600 evaluate_every=99"))
    command = ["study", "mine", "--config-dir", str(mine)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(
        [sys.executable, "-m", "locallearn", *command], env=environment, start_new_session=True, text=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    until = time.monotonic() + 200
    while not list(Path("runs/mine").glob("*seed-1*/checkpoints/step-*")) and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(process.pid, 9)
    process.wait()
    (begun,) = [p for p in Path("runs/mine").glob("*seed-1*") if not (p / "summary.json").exists()]
    code, out, err = run(*command, capsys=capsys)
    assert code == 0, err
    assert "[1/3] bp, seed 1: resumed" in out
    epochs = [json.loads(line)["epoch"] for line in (begun / "metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, len(epochs) + 1))
    assert json.loads((begun / "summary.json").read_text())["step"] == 600


@pytest.mark.slow
def test_a_failing_row_is_named_and_the_others_go_on(mine, capsys):
    text = MINE.replace("_target_: my_analysis.Mine", "quick: max_steps=2")
    (mine / "study" / "mine.yaml").write_text(
        text.replace("dgl: strategy=dgl", "diverges: strategy=dgl optim.lr=1e30 optim.schedule=constant")
    )
    code, out, err = run("study", "mine", "--config-dir", str(mine), capsys=capsys)
    assert code == 1
    assert "locallearn: 2 runs failed:" in err
    assert "diverges, seed 0: block 0" in err
    assert "  python -m locallearn data=digits" in err
    assert "optim.lr=1e30" in err
    rows = json.loads(Path("runs/mine/mine.json").read_text())["parts"][0]["rows"]
    assert [row["name"] for row in rows] == ["bp", "again"]
    code, out, _ = run("study", "mine", "--config-dir", str(mine), capsys=capsys)
    assert code == 1
    assert "[1/2] diverges, seed 0: failed: " in out, "only what failed is done again"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("title: Mine", "titel: Mine"), "unknown key titel: did you mean 'title'?"),
        (("title: Mine", "title: [1]"), "title=[1]: must be a text"),
        (("title: Mine", "title: {"), "mine.yaml, line"),
        (("rows:", "seats:"), "unknown key seats"),
        (("strategy=backprop, published: 50", "strategy=backprop, published: fifty"), "rows.bp.published=fifty"),
        (("seeds: [0, 1]", "seeds: []"), "give at least one row and one seed"),
        (("control: bp", "control: pb"), "unknown control 'pb': choose one of again, bp, dgl"),
        (("control: bp", "metric: test/accuracy in feet"), "unknown unit of metric 'feet'"),
        (("dgl: strategy=dgl", "dgl: strategy=dgll"), "study mine, row 'dgl': unknown strategy 'dgll'"),
        (("dgl: strategy=dgl", "dgl: strategy=dgl optim.lrr=1"), "study mine, row 'dgl': unknown key optim.lrr"),
        (("my_analysis.Mine", "my_analysis.Nobody"), "my_analysis has no Nobody"),
        (("my_analysis.Mine", "my_analysis.verdicts"), "must be a complete class derived from locallearn.studies"),
    ],
)  # fmt: skip
def test_a_bad_yaml_is_one_sentence(mine, change, said, capsys):
    assert change[0] in MINE
    (mine / "study" / "mine.yaml").write_text(MINE.replace(*change))
    code, _, err = run("study", "mine", "--config-dir", str(mine), capsys=capsys)
    assert code == 2
    assert said in one_sentence(err)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["alinment"], "unknown study 'alinment': did you mean 'alignment'?"),
        (["alignment", "--jobs", "0"], "--jobs 0: must be a whole number, at least 1"),
        (["alignment", "--data", "nowhere"], "--data nowhere: there is no such folder"),
        (["alignment", "--only", "zebra"], "unknown part or row 'zebra': choose one of Alignment, Labels, "),
        (["alignment", "--report", "--out", "none"], "no run of alignment is done in none"),
        (["alignment", "--report"], "there is no runs/alignment/experiments/alignment.json: do the study first"),
    ],
)
def test_a_mistake_is_one_sentence(words, said, capsys, elsewhere):
    code, _, err = run("study", *words, capsys=capsys)
    assert code == 2
    assert said in one_sentence(err)


def test_a_target_outside_is_refused_without_leave():
    study = load("alignment")
    with pytest.raises(UserError, match="lies outside locallearn"):
        _analysis(type(study)(**{**vars(study), "target": "my_analysis.Mine"}), [])


@pytest.mark.slow
def test_a_learning_rate_is_chosen_on_validation(mine, capsys):
    text = f"title: Mine\ncommon: {TINY}\nchoose:\n  optim.lr: [1.0e-6, 0.01]\nrows:\n  bp: strategy=backprop\n"
    (mine / "study" / "mine.yaml").write_text(text.replace("data.fraction=0.1 ", ""))
    assert run("study", "mine", "--config-dir", str(mine), capsys=capsys)[0] == 0
    (row,) = json.loads(Path("runs/mine/mine.json").read_text())["parts"][0]["rows"]
    assert row["chosen"] == {"optim.lr": 0.01}
    assert len(times(Path("runs/mine"))) == 2
    assert "| bp | optim.lr=0.01 | " in Path("runs/mine/mine.md").read_text()


def test_a_published_experiment_is_a_study():
    (part,) = load("resnet32_dgl").parts
    assert list(part.rows) == [f"blocks={k}" for k in (2, 4, 8, 16)]
    (part,) = load("resnet32_dgl", quick=True).parts
    assert list(next(part.candidates("blocks=8"))) == ["+short=resnet32_dgl", "blocks=8"]
    (part,) = load("local_loss_vgg8b").parts
    assert "strategy=backprop objective=cross_entropy" in " ".join(part.rows)
    assert "strategy.last=local" in next(row for row in part.rows if "predsim" in row)
    (part,) = load("vgg16").parts
    assert list(part.rows) == ["strategy=backprop", "strategy=dgl"]
    assert len(list(part.candidates("strategy=dgl"))) == 2
    (part,) = load("memory_resnet110").parts
    assert (part.number, part.unit) == ("peak_memory_bytes", "GB")
    (part,) = load("memory_resnet110", quick=True).parts
    assert part.unit == "GiB"


def test_list_shows_the_studies(capsys):
    for words in (["study"], ["list", "studies"]):
        code, out, _ = run(*words, capsys=capsys)
        assert code == 0
        assert out.startswith("locallearn study\n")
        assert all(f"  {name} " in out for name in STUDIES)
    code, out, _ = run("list", "study", "alignment", capsys=capsys)
    assert "strategy=loco auxiliary=linear" in out


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_readout_is_fitted_once_and_stands_in_the_table(mine, capsys):
    (mine / "study" / "mine.yaml").write_text(
        f"title: Mine\ncommon: {TINY} max_steps=2\nreadout: true\nrows:\n  bp: strategy=backprop\n"
    )
    assert run("study", "mine", "--config-dir", str(mine), capsys=capsys)[0] == 0
    (file,) = Path("runs/mine").glob("*/linear_readout.json")
    before = file.stat().st_mtime_ns
    assert run("study", "mine", "--config-dir", str(mine), capsys=capsys)[0] == 0
    assert file.stat().st_mtime_ns == before
    (row,) = json.loads(Path("runs/mine/mine.json").read_text())["parts"][0]["rows"]
    assert row["linear"] == [100 * json.loads(file.read_text())["linear_accuracy"]]
    assert "linear read-out" in Path("runs/mine/mine.md").read_text()


def test_words():
    assert mean_std([1.0]) == "1.00"
    assert mean_std([1.0, 3.0], 1) == "2.0 ± 1.4"
    assert list(verdicts((True, "a"), (False, "b"))) == ["", "- agrees: a", "- **differs**: b"]
    rows = [[{"epoch": 0, "layer": 0, "name": "fc", "x": x, "n": 3}] for x in (1.0, 2.0)]
    assert averaged(rows) == [{"epoch": 0, "layer": 0, "name": "fc", "x": 1.5, "n": 3}]
    assert Runs({}, {}).quick is False
    with pytest.raises(TypeError):
        Analysis()  # it has no numbers


def test_missing_seeds_are_said():
    assert page._spread([1.0, 3.0], 3) == "2.00 ± 1.41 (n=2)"
    assert page._spread([], 3) == ""
