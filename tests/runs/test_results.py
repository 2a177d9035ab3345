"""Published rows from the first run to the leaderboard: verdicts on the page, files to check, and forgeries."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from statistics import fmean, stdev

import pytest

from helpers.commands import one_sentence, run
from locallearn.errors import UserError
from locallearn.studies import results

pytestmark = pytest.mark.slow  # seven runs in processes of their own

STUDY = """
title: Mine
common: data=digits model=mlp model.width=8 model.depth=2 data.fraction=0.2 epochs=1 batch_size=32
seeds: [0, 1, 2]
verdict: true
choose_seeds: 1
parts:
- title: First
  rows:
    bp:
      settings: strategy=backprop
      choose: {optim.lr: [1.0e-6, 0.01]}
      published: 20
      runs: 1
      source: Nobody 1999
      cause: a small net
    dgl: {settings: strategy=dgl auxiliary=linear, published: [99.0, 99.1]}
- title: Second
  rows:
    bp: {settings: strategy=backprop optim.lr=0.02, published: 99}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study, the runs of its first part, page and results. Nobody writes into it but a test that
    says so."""
    home = tmp_path_factory.mktemp("results")
    (home / "conf" / "study").mkdir(parents=True)
    (home / "conf" / "study" / "mine.yaml").write_text(STUDY)
    return home


def words(home: Path, *more: str) -> list[str]:
    flags = ["--config-dir", str(home / "conf"), "--out", str(home / "runs"), "--to", str(home / "docs")]
    return ["study", "mine", *flags, "--results", str(home / "results"), *more]


@pytest.fixture
def files(made: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Path]:
    """The results by row."""
    if not (made / "results").exists():
        code, _, err = run(*words(made, "--only", "first"), capsys=capsys)
        assert code == 0, err
    return {json.loads(f.read_text())["row"]: f for f in sorted((made / "results" / "mine").glob("*.json"))}


def test_only_finished_rows_are_results(made, files):
    assert {name: f.name for name, f in files.items()} == {"bp": "first_bp.json", "dgl": "first_dgl.json"}
    page = (made / "docs" / "mine.md").read_text()
    assert "- not finished: bp (3 runs)" in page
    assert "cause: a small net" in page
    runs = sorted(path.name for path in (made / "runs").iterdir() if path.is_dir())
    assert len(runs) == 4 + 3, "the rate that lost was tried with one seed"


def test_a_result_has_the_numbers_of_its_runs(made, files):
    content = results.read(files["bp"])
    values = []
    for each in content["runs"]:
        folder = made / "runs" / each["folder"]
        summary = json.loads((folder / "summary.json").read_text())
        values.append(100 * summary["test/accuracy"])
        for name, known in each["sha256"].items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == known
        assert f"optim.lr={0.01}" in content["settings"]
    assert [each["value"] for each in content["runs"]] == pytest.approx(values)
    assert (content["mean"], content["deviation"]) == pytest.approx((fmean(values), stdev(values)))
    half = 4.302653 * stdev(values) * math.sqrt(1 / 3 + 1)  # Student's t, 2 degrees of freedom; one published run
    found = content["verdict"]
    assert (found["low"], found["high"]) == pytest.approx((fmean(values) - 20 - half, fmean(values) - 20 + half))
    assert found["word"] == ("beaten" if found["low"] > 0 else "open")
    assert content["config"]["optim.lr"] == 0.01
    assert not {"seed", "out", "data.root"} & content["config"].keys()


def test_the_leaderboard(made, files, capsys):
    to = made / "board"
    flags = ["--results", str(made / "results"), "--to", str(to), "--runs", str(made / "runs")]
    code, out, err = run("leaderboard", *flags, capsys=capsys)
    assert code == 0, err
    assert "2 results are consistent, and 6 of 6 runs agree with them" in out
    page = (to / "leaderboard.md").read_text()
    means = {name: results.read(file)["mean"] for name, file in files.items()}
    order = sorted(means, key=means.__getitem__, reverse=True)
    assert [line.split(" | ")[0] for line in page.splitlines() if line.startswith(("| bp", "| dgl"))] == [
        f"| {name}" for name in order
    ]
    html = (to / "leaderboard.html").read_text()
    assert all(f'<th scope="row">{name}</th>' in html for name in means)
    assert "<script" not in html


def forged(content: dict, how: str) -> dict:
    """A result with something changed; from the second on with a digest that fits."""
    run = content["runs"][0]
    if how == "a number":
        content["mean"] += 1
        return content
    if how == "the mean":
        content["mean"] += 1
    elif how == "a value":
        run["value"] += 1
    elif how == "a summary":
        run["summary"]["test/accuracy"] = 1.0
        run["value"] = 100.0
    elif how == "a verdict":
        content["verdict"]["word"] = "reproduced"
    elif how == "a seed twice":
        content["runs"].append(run)
    elif how == "a key":
        content["by"] = "me"
    elif how == "no runs":
        content["runs"] = []
    return content | {"digest": results.digest(content)}


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("a number", "it was changed after it was written"),
        ("the mean", "mean and deviation are not those of its values"),
        ("a value", "the value of seed 0 is not the test/accuracy of its summary"),
        ("a summary", "the summary of seed 0 does not have the hash that is given for it"),
        ("a verdict", "its verdict is reproduced, but its numbers give differs"),
        ("a seed twice", "its seeds are"),
        ("a key", "it has an unknown field, by"),
        ("no runs", "its seeds are"),
    ],
)
def test_a_forged_file_is_refused(files, how, says, tmp_path, capsys):
    file = tmp_path / "forged.json"
    file.write_text(json.dumps(forged(json.loads(files["dgl"].read_text()), how)))
    code, out, err = run("leaderboard", "--results", str(tmp_path), "--to", str(tmp_path / "to"), capsys=capsys)
    assert (code, out) == (2, "")
    assert says in one_sentence(err)
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', "nothing"])
def test_what_is_no_result_is_refused(text, tmp_path):
    file = tmp_path / "odd.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"odd\.json (cannot be read as a result|is refused|is no result)"):
        results.read(file)


def test_a_folder_of_runs_that_is_none_is_refused(tmp_path, capsys):
    flags = ["--results", str(tmp_path), "--to", str(tmp_path / "to"), "--runs", str(tmp_path / "none")]
    code, _, err = run("leaderboard", *flags, capsys=capsys)
    assert code == 2
    assert "there is no such folder" in one_sentence(err)
    assert not (tmp_path / "to").exists()


def test_runs_that_have_changed_are_found(made, files, tmp_path):
    content = results.read(files["dgl"])
    folder = tmp_path / content["runs"][1]["folder"]
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl is not the file from which it was written"):
        results.against_runs(files["dgl"], content, [tmp_path])
    assert results.against_runs(files["dgl"], content, [tmp_path / "elsewhere"]) == 0


def test_a_published_number_is_that_of_the_study(made, files, tmp_path):
    content = json.loads(files["dgl"].read_text())
    results.against_study(files["dgl"], content, [made / "conf"])
    results.against_study(files["dgl"], content | {"published": {"mean": 1.0}})  # of a study that is not known here
    with pytest.raises(UserError, match=r"it says that 1 was published, but study mine says 99\.05"):
        results.against_study(files["dgl"], content | {"published": {"mean": 1.0}}, [made / "conf"])


def test_a_result_is_repeated(made, files, tmp_path, capsys):
    flags = ["--result", str(files["dgl"]), "--out", str(tmp_path / "again")]
    code, out, err = run("repeat", *flags, capsys=capsys)
    assert code == 0, err
    assert out.count("to the last bit") == 3
    content = json.loads(files["dgl"].read_text())
    summary = content["runs"][0]["summary"]
    summary["test/accuracy"] += 0.01
    content["runs"][0]["value"] = 100 * summary["test/accuracy"]
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    content["runs"][0]["sha256"]["summary.json"] = hashlib.sha256(text.encode()).hexdigest()
    content |= results._numbers(content)
    file = tmp_path / "whole.json"
    file.write_text(json.dumps(content | {"digest": results.digest(content)}))
    results.read(file)  # forged in all its parts: only the runs can tell
    code, out, _ = run("repeat", "--result", str(file), "--out", str(tmp_path / "again"), capsys=capsys)
    assert code == 1
    assert "; machine and versions agree" in out
    assert out.rstrip().endswith("the numbers differ")


def test_a_row_that_has_its_result_is_not_run_again(made, files, tmp_path, capsys):
    """On another machine, which has the results and no run folder: one row is left to do, and what the study says of
    the others today is on the page and in their files."""
    shutil.copytree(made / "conf", tmp_path / "conf")
    shutil.copytree(made / "results", tmp_path / "results")
    study = tmp_path / "conf" / "study" / "mine.yaml"
    study.write_text(STUDY.replace("a small net", "a very small net").replace("optim.lr=0.02", "optim.lr=0.03"))
    code, out, err = run(*words(tmp_path, "--only", "first, DGL"), capsys=capsys)
    assert code == 0, err
    assert not (tmp_path / "runs").exists()
    assert "first_dgl.json" in out
    before, now = (json.loads((home / "docs" / "mine.json").read_text())["parts"] for home in (made, tmp_path))
    for old, new in zip(before[0]["rows"], now[0]["rows"], strict=True):
        assert old | {"cause": new["cause"]} == new
    assert now[0]["missing"] == {}
    assert now[1]["missing"] == {"bp": 3}
    again = {name: json.loads((tmp_path / "results" / "mine" / file.name).read_text()) for name, file in files.items()}
    assert again["bp"]["cause"] == "a very small net"
    assert again["dgl"] == json.loads(files["dgl"].read_text())
    assert results.read(tmp_path / "results" / "mine" / "first_bp.json")["runs"] == results.read(files["bp"])["runs"]


def test_a_file_in_the_place_of_the_results_is_refused(made, capsys):
    file = made / "conf" / "study" / "mine.yaml"
    code, _, err = run("study", "mine", "--config-dir", str(made / "conf"), "--results", str(file), capsys=capsys)
    assert code == 2
    assert "is a file; give the folder of the results" in one_sentence(err)


def test_a_result_of_other_settings_or_seeds_does_not_stand_for_a_row(made, files, tmp_path, capsys):
    shutil.copytree(made / "conf", tmp_path / "conf")
    shutil.copytree(made / "results", tmp_path / "results")
    study = tmp_path / "conf" / "study" / "mine.yaml"
    study.write_text(STUDY.replace("auxiliary=linear,", "auxiliary=mlp,").replace("[1.0e-6, 0.01]", "[1.0e-6, 0.02]"))
    code, _, err = run(*words(tmp_path, "--report"), capsys=capsys)
    assert code == 2
    assert "no run of mine is done" in one_sentence(err)
    study.write_text(STUDY.replace("auxiliary=linear,", "auxiliary=mlp,"))
    assert run(*words(tmp_path, "--report"), capsys=capsys)[0] == 0
    assert json.loads((tmp_path / "docs" / "mine.json").read_text())["parts"][0]["missing"] == {"dgl": 3}
    study.write_text(STUDY.replace("seeds: [0, 1, 2]", "seeds: [0, 1]"))
    assert run(*words(tmp_path, "--report"), capsys=capsys)[0] == 2


def test_the_page_is_collected_from_the_runs(made, files, tmp_path, capsys):
    flags = ["--config-dir", str(made / "conf"), "--report", "--out", str(made / "runs"), "--to", str(tmp_path)]
    assert run("study", "mine", *flags, capsys=capsys)[0] == 0
    assert (tmp_path / "mine.md").read_text() == (made / "docs" / "mine.md").read_text()
    code, _, err = run("study", "mine", *flags[:3], "--to", str(tmp_path), "--results", "x", capsys=capsys)
    assert code == 2
    assert "beside --report give --out DIR" in one_sentence(err)
