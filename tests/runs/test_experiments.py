"""scripts/experiments.py: the quick form of every study; runs are done once and go on when killed."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))

import experiments  # noqa: E402
from studies import studies  # noqa: E402
from studies.common import DONE, SECONDS, Options, folder, runs, spread, verdicts  # noqa: E402

import locallearn  # noqa: E402

STUDIES = studies()
TINY = "data=digits model=mlp model.width=8 model.depth=2 auxiliary=linear data.fraction=0.1 epochs=3"
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}


def test_the_studies_are_those_of_the_folder_in_their_order():
    files = {file.stem for file in (SCRIPTS / "studies").glob("*.py")} - {"__init__", "common"}
    assert STUDIES.keys() == files
    numbers = [module.NUMBER for module in STUDIES.values()]
    assert numbers == sorted(set(numbers))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_in_its_quick_form(name, tmp_path, request):
    module = STUDIES[name]
    options = Options(out=tmp_path / "runs", quick=True)
    if module.NEEDS_DATA:
        options.data = str(request.getfixturevalue("real_root"))
    file = experiments.study(module, options, tmp_path)
    found = json.loads(file.read_text())
    assert found["quick"]
    assert found["results"] == json.loads(json.dumps(found["results"])), "plain JSON"
    assert file.stat().st_size < 300_000
    pictures = [p.stem for p in file.parent.glob("*.svg")]
    assert pictures
    assert all(p.startswith(name) for p in pictures)
    assert {p.stem for p in file.parent.glob("*.png")} == set(pictures)
    page = experiments.render({name: module}, file.parent)
    assert f"## {module.NUMBER}. {module.TITLE}" in page
    assert f"python scripts/experiments.py {name} --data DATA" in page
    assert "these numbers mean nothing" in page
    assert "- agrees: " in page or "- **differs**: " in page
    assert all(f"(experiments/{p}.svg)" in page for p in pictures)
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").glob("*/*/summary.json")}
    again = Options(options.data, out=options.out, quick=True)
    assert module.run(again) == found["results"], "from the runs that are there"
    assert done == {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").glob("*/*/summary.json")}


def test_every_committed_result_is_small_and_no_quick_try():
    for file in (ROOT / "docs" / "experiments").glob("*"):
        assert file.stat().st_size < 300_000, file
        if file.suffix == ".json":
            assert not json.loads(file.read_text())["quick"], file


@pytest.mark.slow
def test_the_page_is_what_the_results_say(tmp_path):
    """docs/experiments.md is written from the files beside it: nothing in it was changed by hand."""
    page = ROOT / "docs" / "experiments.md"
    copy = tmp_path / "experiments"
    copy.mkdir()
    for file in (ROOT / "docs" / "experiments").glob("*.json"):
        (copy / file.name).write_bytes(file.read_bytes())
    assert experiments.render(STUDIES, copy) == page.read_text()


@pytest.mark.slow
def test_runs_are_done_once_and_equal_settings_are_one_run(tmp_path, capsys):
    settings = {
        "a": f"strategy=dgl {TINY} seed=0",
        "b": f"strategy=fa {TINY} seed=0",
        "c": f"strategy=dgl {TINY} seed=0",
    }
    options = Options(out=tmp_path)
    found = runs(settings, options)
    assert found["a"] == found["c"]
    assert found["a"].folder != found["b"].folder
    assert len(list(tmp_path.glob("*/*/summary.json"))) == 2
    assert capsys.readouterr().out.count("test accuracy") == 2
    assert options.seconds > 0
    epochs, accuracies = found["b"].series("test/accuracy")
    assert epochs == [1, 2, 3]
    assert accuracies[-1] == found["b"].summary["test/accuracy"]
    again = Options(out=tmp_path)
    assert runs(settings, again) == found
    assert again.seconds == options.seconds
    assert capsys.readouterr().out == ""
    direct = dict(part.split("=") for part in f"{TINY} seed=0 strategy=fa threads=1".split())
    direct = {k: ast.literal_eval(v) if v.replace(".", "").isdigit() else v for k, v in direct.items()}
    metrics = locallearn.train(**direct, quiet=True, out=str(tmp_path / "direct")).metrics
    for name in ("test/accuracy", "test/loss", "train/loss"):
        assert metrics[name] == found["b"].summary[name], "the numbers of the command, bit for bit"


@pytest.mark.slow
def test_a_killed_study_goes_on_from_the_checkpoint(tmp_path):
    text = f"strategy=dgl {TINY.replace('epochs=3', 'epochs=2000')} seed=0 max_steps=200"
    script = (
        f"import sys; sys.path.insert(0, {str(SCRIPTS)!r})\nfrom pathlib import Path\n"
        "from studies.common import Options, runs\n"
        f"if __name__ == '__main__':\n    runs({{0: {text!r}}}, Options(out=Path({str(tmp_path)!r}), jobs=1))\n"
    )
    (tmp_path / "study.py").write_text(script)
    process = subprocess.Popen([sys.executable, str(tmp_path / "study.py")], env=ENVIRONMENT, start_new_session=True)
    place = folder(text, tmp_path)
    until = time.monotonic() + 200
    while not list(place.glob("*/checkpoints/step-*")) and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(process.pid, 9)
    process.wait()
    assert not (place / DONE).exists(), "killed too late for this test"
    begun = [p.name for p in place.glob("*/status.json")]
    assert len(begun) == 1
    options = Options(out=tmp_path)
    found = runs({0: text}, options)[0]
    assert len(list(place.glob("*/status.json"))) == 1, "the same run went on"
    assert found.summary["step"] == 200
    assert [record["epoch"] for record in found.history] == list(range(1, found.summary["epoch"] + 1))
    assert options.seconds == json.loads((place / SECONDS).read_text())


def test_a_run_that_fails_names_its_command_and_its_reason(tmp_path):
    with pytest.raises(SystemExit) as error:
        runs({0: f"strategy=dgll {TINY}"}, Options(out=tmp_path, jobs=1))
    assert "python -m locallearn strategy=dgll" in str(error.value)
    assert "did you mean 'dgl'" in str(error.value)


def test_an_unknown_study_is_refused():
    command = [sys.executable, str(SCRIPTS / "experiments.py"), "alinment"]
    run = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert run.returncode == 2
    assert "alignment" in run.stderr


def test_words():
    assert spread([1.0]) == "1.00"
    assert spread([1.0, 3.0], 1) == "2.0 ± 1.4"
    assert list(verdicts([(True, "a"), (False, "b")])) == ["", "- agrees: a", "- **differs**: b"]
