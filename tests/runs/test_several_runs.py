"""Commands on run folders: one run or several, with flags and settings in any order; and a command line of nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.commands import SMALL, run
from locallearn.studies import runner
from locallearn.training import run as one_run

SETTINGS = [*SMALL, "auxiliary=linear", "batch_size=256", "max_steps=2", "blocks=2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[str]:
    """Three finished runs that differ in their seeds, below a folder whose name could be a setting."""
    from locallearn import train

    out = tmp_path_factory.mktemp("several") / "out=a b"
    settings = dict(word.split("=") for word in SETTINGS if "." not in word and not word.startswith("auxiliary"))
    numbers = {key: int(value) if value.isdigit() else value for key, value in settings.items()}
    return [
        str(train(quiet=True, seed=seed, out=out, auxiliary="linear", **{"model.width": 8}, **numbers).run_dir)
        for seed in range(3)
    ]


@pytest.mark.slow
def test_evaluate_of_several_runs_is_a_table(runs, capsys, monkeypatch):
    monkeypatch.chdir(Path(runs[0]).parents[1])
    relative = [str(Path(run).relative_to(Path.cwd())) for run in runs]
    code, out, err = run("evaluate", *relative, capsys=capsys)
    assert (code, err) == (0, "")
    head, *rows = out.splitlines()
    assert head.split()[:3] == ["run", "loss", "accuracy"]
    assert head.split()[3:] == ["00/accuracy", "01/accuracy"]
    for folder, row in zip(relative, rows, strict=True):
        assert row.startswith(folder)
        values = dict(zip(head.split()[1:], map(float, row.removeprefix(folder).split()), strict=True))
        summary = json.loads((Path(folder) / "summary.json").read_text())
        assert values["accuracy"] == pytest.approx(summary["test/accuracy"], abs=1e-4)
        assert values["00/accuracy"] == pytest.approx(summary["block/00/test_accuracy"], abs=1e-4)


@pytest.mark.slow
def test_one_that_cannot_be_evaluated_does_not_hide_the_others(runs, capsys, tmp_path):
    code, out, err = run("evaluate", runs[0], str(tmp_path), runs[1], capsys=capsys)
    assert code == 2
    assert str(tmp_path) in err
    assert err.count("\n") == 1
    assert len(out.splitlines()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("order", range(4))
def test_evaluate_takes_flags_and_settings_in_any_order(runs, order, capsys):
    words = [runs[0], "--linear", "data=digits", "--allow", "x", "data.fraction=0.5"]
    turned = words[order:] + words[:order] if order != 3 else [*words[:3], words[5], *words[3:5]]
    code, out, err = run("evaluate", *turned, capsys=capsys)
    assert code == 0, err
    assert "linear" in out


@pytest.mark.slow
def test_resume_takes_flags_and_settings_in_any_order(runs, capsys):
    for words in (
        ["--allow", "x", runs[0]],
        [runs[0], "runtime=pipeline", "--allow", "x", "runtime.stages=2"],
        ["runtime=serial", runs[0]],
    ):
        code, out, err = run("resume", *words, capsys=capsys)
        assert code == 0, err
        assert "is done already" in out
    for words, said in (
        (["runtime=serial"], "resume takes one run folder, such as"),
        (runs[:2], "resume takes one run folder, not 2"),
        ([runs[0], "epochs=3"], "resume makes a run longer, never shorter"),
        ([runs[0], "seed=3"], "takes only"),
    ):
        code, _, err = run("resume", *words, capsys=capsys)
        assert code == 2
        assert said in err
    code, _, err = run("repeat", runs[0], "epochs=3", capsys=capsys)
    assert code == 2
    assert "repeat RUN does what the run did: leave 'epochs=3' out" in err


@pytest.mark.slow
def test_compare_of_three_runs(runs, capsys, tmp_path):
    code, out, err = run("compare", *runs, "--to", str(tmp_path / "to"), capsys=capsys)
    assert (code, err) == (0, "")
    assert [line[:2] for line in out.splitlines()[:3]] == ["1:", "2:", "3:"]
    (seeds,) = [line.split() for line in out.splitlines() if line.split()[:1] == ["seed"]]
    assert seeds == ["seed", "0", "1", "2"]
    (row,) = [line.split() for line in out.splitlines() if line.split()[:1] == ["test/accuracy"]]
    first, *others = [float(text) for text in row[1:4]]
    assert [float(text) for text in row[4:]] == pytest.approx([other - first for other in others], abs=1e-3)
    final = [json.loads((Path(folder) / "summary.json").read_text())["test/accuracy"] for folder in runs]
    assert [first, *others] == pytest.approx(final, abs=1e-5)
    assert (tmp_path / "to" / "learning_curves.svg").is_file()


@pytest.mark.parametrize("words", [[], ["--run"], ["-m"]])
def test_without_arguments_it_is_the_default_run(words, elsewhere, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(one_run, "start", lambda exp, *rest: started.append(exp.title))
    if words == ["-m"]:
        monkeypatch.setattr(runner, "run", lambda exp, path: (started.append(exp.title), ("new", {}))[1])
    code, _, err = run(*words, capsys=capsys)
    assert (code, err) == (0, "")
    assert started == ["dgl-vgg16-digits-s0"]
