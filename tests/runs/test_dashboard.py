"""What is built for W&B's web pages, as far as that goes without an account, and the sweep that its agent runs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from locallearn.cli import main as cli
from locallearn.config.compose import compose
from locallearn.config.experiment import experiment

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "dashboard.py"


def load():
    spec = importlib.util.spec_from_file_location("dashboard", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def metrics(panels) -> set[str]:
    """Every metric that panels name, out of what would be sent."""
    configs = [json.loads(panel._to_model().model_dump_json(by_alias=True)).get("config") or {} for panel in panels]
    return {name for config in configs for name in config.get("metrics") or [] if isinstance(name, str)}


@pytest.mark.slow
def test_workspace_and_report_name_what_a_run_records(tmp_path, capsys, monkeypatch):
    small = ["strategy=dgl", "model=mlp", "model.width=8", "model.depth=2", "auxiliary=linear", "epochs=1", "threads=1"]
    monkeypatch.setattr(sys, "argv", ["locallearn"])
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert cli.main([*small, "batch_size=256", f"out={tmp_path}"]) == 0
    (file,) = tmp_path.glob("*/metrics.jsonl")
    recorded = json.loads(file.read_text().splitlines()[-1]).keys()
    dashboard = load()
    workspace, report = dashboard.workspace("me", "mine", 2), dashboard.report("me", "mine", 2)
    shown = metrics(panel for section in workspace.sections for panel in section.panels)
    assert {"train/loss", "validation/accuracy", "block/00/loss", "block/01/test_accuracy", "seconds"} <= shown
    assert shown <= recorded, "a panel of what is never logged"
    assert metrics(panel for part in report.blocks for panel in getattr(part, "panels", [])) == shown
    assert [section.name for section in workspace.sections][:4] == ["Results", "Training", "Block 00", "Block 01"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["nowhere"], "ENTITY/PROJECT"), (["a/b", "--blocks", "0"], "between 1 and 100")],
)
def test_bad_input(arguments, sentence, capsys):
    assert load().main(arguments) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_check_needs_no_account_and_saving_says_that_it_does(tmp_path):
    free = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    env = {**free, "HOME": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9"}
    call = [sys.executable, SCRIPT, "me/locallearn"]
    done = subprocess.run([*call, "--check"], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "a workspace of 8 sections and a report of 12 parts; nothing sent\n"
    done = subprocess.run(call, env=env, capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert "log in with `wandb login`" in done.stderr
    assert "Traceback" not in done.stderr


def agent_command(values: dict) -> list[str]:
    """The command line that W&B's agent makes of the yaml, by W&B's own functions."""
    from wandb.sdk.launch.sweeps import utils

    sweep = yaml.safe_load((ROOT / "scripts" / "wandb_sweep.yaml").read_text())
    variables = utils.create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})
    variables |= {"env": ["/usr/bin/env"]}
    command: list[str] = []
    for part in utils.create_sweep_command(sweep["command"]):
        command += variables[part[2:-1]] if part.startswith("${") else [part]
    return command


@pytest.mark.slow
def test_the_sweep_of_wandb_is_a_command_that_works(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["locallearn"])
    sweep = yaml.safe_load((ROOT / "scripts" / "wandb_sweep.yaml").read_text())
    assert sweep["metric"] == {"name": "validation/accuracy", "goal": "maximize"}
    parameters = sweep["parameters"]
    for strategy in parameters["strategy"]["values"]:
        for lr in (parameters["optim.lr"]["min"], parameters["optim.lr"]["max"]):
            values = {"strategy": strategy, "optim.lr": lr, "seed": parameters["seed"]["values"][-1]}
            assert values.keys() == parameters.keys()
            command = agent_command(values)
            assert command[:4] == ["/usr/bin/env", "python", "-m", "locallearn"]
            exp = experiment(*compose(command[4:]))
            assert (exp.names["strategy"], exp.optim.lr, exp.settings.seed) == (strategy, lr, 2)
            assert exp.record.wandb is not None
    assert cli.main([*command[4:], "--dry-run"]) == 0
    assert "inference keeps" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
