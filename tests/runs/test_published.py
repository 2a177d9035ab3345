"""conf/experiment and conf/short: published settings compose to runs, say what was published, and have a short form."""

from __future__ import annotations

import itertools
import json
import shlex
import statistics
from functools import cache
from pathlib import Path

import pytest

from locallearn.cli import commands
from locallearn.cli import main as cli
from locallearn.config.compose import choices, compose, header
from locallearn.config.experiment import experiment
from locallearn.config.settings import GROUPS
from locallearn.data import Data
from locallearn.errors import UserError
from locallearn.report.published import scores
from locallearn.runs.folder import RunFolder
from locallearn.training.run import dry_run, start

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS, SHORTS = choices("experiment"), choices("short")


@cache
def swept(kind: str, name: str) -> list[list[str]]:
    """The overrides of every job of an experiment's sweep."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from locallearn.config.compose import conf_dir

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = hydra_compose("config", [f"+{kind}={name}"], return_hydra_config=True)
    params = config.hydra.sweeper.params or {}
    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    values = [
        [f"{o.key_or_group}={v}" for v in o.sweep_string_iterator()] if o.is_sweep_override() else [o.input_line]
        for o in parsed
    ]
    return [[f"+{kind}={name}", *job] for job in itertools.product(*values)]


def test_the_settings_that_were_asked_for_are_there():
    asked = "dni_comparison vgg16 greedy_by_depth auxiliary_networks resnet32_backprop resnet32_greedy resnet32_dgl "
    asked += "resnet32_infopro local_loss_vgg8b feedback_lenet feedback_resnet20 pgi_ablation random_labels "
    asked += "critical_periods memory_resnet110"
    assert set(asked.split()) <= set(EXPERIMENTS)
    assert set(EXPERIMENTS) == set(SHORTS)
    assert [job[1] for job in swept("experiment", "resnet32_dgl")] == [f"blocks={k}" for k in (2, 4, 8, 16)]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_header_says_where_a_setting_comes_from(name):
    facts = header(EXPERIMENTS[name])
    assert {"summary", "paper", "command", "time", "measure", "published"} <= set(facts)
    assert "estimated, not measured" in facts["time"] or "measured" in facts["time"].split("estimated")[0]
    assert facts["published"].endswith("]"), "published numbers carry their provenance"
    assert f"+experiment={name}" in facts["command"]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_published_number_belongs_to_a_run(name):
    """The commands of the header give runs with the settings of each published number."""
    facts = header(EXPERIMENTS[name])
    jobs = []
    for line in facts["command"].split("&&"):
        words = [w for w in shlex.split(line) if "=" in w and not w.startswith(("+experiment", "auxiliary=$"))]
        fixed = dict(w.split("=", 1) for w in words)
        for job in swept("experiment", name):
            given = {**dict(w.split("=", 1) for w in job[1:]), **fixed}
            jobs.append([f"+experiment={name}", *(f"{k}={v}" for k, v in given.items())])
    runs = [compose(job) for job in jobs]
    assert all(experiment(*run) for run in runs)
    for score in scores(facts["published"]):
        assert any(
            all((names[k] if k in GROUPS else str(_at(config, k))) == v for k, v in score.settings.items())
            for config, names in runs
        ), f"{score.settings} is no run of {name}"
        assert 0 < score.value <= 100


def _at(config: dict, key: str) -> object:
    for part in key.split("."):
        config = config[part]
    return config


def test_scores():
    found = scores("strategy=dgl blocks=2 91.3; 4 [R: a; b]")
    assert [(s.settings, s.value) for s in found] == [({"strategy": "dgl", "blocks": "2"}, 91.3), ({}, 4.0)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORTS)
def test_a_short_form_says_what_it_keeps_and_what_it_reached(name):
    facts = header(SHORTS[name])
    assert {"summary", "keeps", "measure", "reached"} <= set(facts)
    assert "CPU" in facts["reached"].partition("[")[2], "with the machine beside it"
    runs = [compose(job) for job in swept("short", name)]
    for score in scores(facts["reached"]):
        wanted = {k: v for k, v in score.settings.items() if k not in ("strategy", "epochs")}
        assert any(
            all((names[k] if k in GROUPS else str(_at(config, k))) == v for k, v in wanted.items())
            for config, names in runs
        ), f"{score.settings} is no run of {name}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["experiment", "short"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_first_and_last_job_compose(kind, name):
    jobs = swept(kind, name)
    for job in (jobs[0], jobs[-1]):
        experiment(*compose(job))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["feedback_lenet", "local_loss_vgg8b"])
def test_what_a_short_form_reached_is_what_the_families_reached(name):
    """The same setting, and the mean of its seeds."""
    rows = [r for part in json.loads((ROOT / "docs" / "families.json").read_text())["parts"] for r in part["rows"]]
    for score in scores(header(SHORTS[name])["reached"]):
        (row,) = [r for r in rows if all(f"{k}={v}" in _words(r) for k, v in score.settings.items()) and _of(name, r)]
        assert statistics.mean(row["values"]) == pytest.approx(score.value, abs=0.0051)
        fixed = [w for w in swept("short", name)[0][1:] if w.partition("=")[0] not in score.settings]
        ours, _ = compose([f"+short={name}", *fixed, *(f"{k}={v}" for k, v in score.settings.items())])
        theirs, _ = compose([w for w in _words(row) if not w.startswith(("seed=", "threads=", "probe="))])
        for key in ("model", "data", "epochs", "batch_size", "blocks"):
            assert ours[key] == theirs[key], f"{name}: {key}"
        unused = {"milestones", "decay"}  # with a cosine
        assert {k: v for k, v in ours["optim"].items() if k not in unused} == {
            k: v for k, v in theirs["optim"].items() if k not in unused
        }


def _words(row: dict) -> list[str]:
    return [word for word in row["command"].split() if "=" in word]


def _of(name: str, row: dict) -> bool:
    part = {"feedback_lenet": {"data=fashion_mnist", "model=lenet"}, "local_loss_vgg8b": {"data=mnist", "data.crop=2"}}
    return part[name] <= set(_words(row))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_full_form_can_be_built(name, real_root):
    """What --dry-run does, on the real data, with the first and the last run of the sweep."""
    jobs = swept("experiment", name)
    for job in (jobs[0], jobs[-1]):
        exp = experiment(*compose([*job, f"data.root={real_root}", "dry_run=true"]))
        assert "inference" in dry_run(exp)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORTS)
@pytest.mark.parametrize("which", [0, -1], ids=["first", "last"])
def test_every_short_form_runs(name, which, request, tmp_path, monkeypatch):
    """Two steps, and an evaluation that looks at two batches of each part."""
    whole = Data.evaluation
    monkeypatch.setattr(Data, "evaluation", lambda *which: itertools.islice(whole(*which), 2))
    job = swept("short", name)[which]
    needs_files = compose(job)[1]["data"] not in ("digits", "synthetic")
    root = [f"data.root={request.getfixturevalue('real_root')}"] if needs_files else []
    short = ["max_steps=2", "evaluate_every=99", "threads=1", f"out={tmp_path}", *root]
    config, names = compose([*job, *short])
    config["data"]["fraction"] = min(config["data"]["fraction"], 0.05) if needs_files else config["data"]["fraction"]
    result = start(experiment(config, names, job), quiet=True)
    assert result.metrics["step"] >= 2


@pytest.mark.slow
def test_an_experiment_sweeps_over_what_its_yaml_says(tmp_path, capsys):
    words = ["-m", "+short=resnet32_dgl", "max_steps=1", "threads=1", f"out={tmp_path}"]
    assert cli.main(words) == 0
    assert {p.name.rpartition("_")[0] for p in tmp_path.glob("blocks*")} == {"blocks-2", "blocks-8"}
    assert "2 runs: 2 new" in capsys.readouterr().out
    assert cli.main([*words, "blocks=2"]) == 0, "the command line wins over the yaml"
    assert "1 run: 1 done before" in capsys.readouterr().out
    folder = RunFolder.open(next(tmp_path.glob("blocks-2*")))
    assert "+short=resnet32_dgl" in folder.path.joinpath("overrides.yaml").read_text()


def test_list_shows_them_with_their_state(capsys):
    assert commands.run("list", ["experiments"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "+experiment="
    assert len(lines) == 1 + len(EXPERIMENTS)
    for line, file in zip(lines[1:], EXPERIMENTS.values(), strict=True):
        assert ("not yet run" in line) == ("reached" not in header(file))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("+experiment=vgg61", "unknown experiment 'vgg61': did you mean 'vgg16'?"),
        ("+short=nothing", "unknown short 'nothing': choose one of"),
        ("experiment=vgg16", "write +experiment=vgg16"),
    ],
)
def test_a_wrong_name_is_one_sentence(word, said):
    with pytest.raises(UserError, match=said.replace("?", r"\?").replace("+", r"\+")):
        compose([word])
