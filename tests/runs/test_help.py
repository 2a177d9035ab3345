"""What the command line explains: pages, choices, versions, completion; and flags of Hydra, taken or refused."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from helpers.commands import SMALL, run
from helpers.marks import slow
from locallearn import __version__
from locallearn.cli import completion
from locallearn.cli import main as cli
from locallearn.cli.arguments import ELSEWHERE
from locallearn.cli.commands import COMMANDS
from locallearn.config.compose import compose
from locallearn.config.matrix import matrix
from locallearn.config.registry import APPENDED, choices, options
from locallearn.config.settings import GROUPS
from locallearn.figures.text import fitted, table
from locallearn.plan.options import PlanOptions
from locallearn.studies.options import TuneOptions

pytestmark = pytest.mark.usefixtures("elsewhere")
SETTINGS = [*SMALL, "auxiliary=linear", "batch_size=128", "max_steps=1"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command, capsys):
    code, out, err = run(command, "-h", capsys=capsys)
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: locallearn {command}")
    assert f"\n  locallearn {command} " in out, "no example"
    assert "--debug" in out
    assert run(command, "--help", capsys=capsys)[1] == out


def test_pages_answer_without_torch():
    """Seconds, which nobody waits for to read how a command is called."""
    code = (
        "import sys; from locallearn.cli.main import main\n"
        f"for words in {[[command, '-h'] for command in COMMANDS] + [['-h'], ['--version'], ['list', 'strategies']]}:\n"
        "    assert main(words) == 0 and 'torch' not in sys.modules, words"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("command", "options"), [("plan", PlanOptions), ("tune", TuneOptions)])
def test_options_that_are_no_flags_are_explained_too(command, options, capsys):
    out = run(command, "-h", capsys=capsys)[1]
    for field in dataclasses.fields(options):
        (line,) = [line for line in out.splitlines() if line.startswith(f"  {field.name}={field.default}")]
        assert len(line.split()) > 1, f"{field.name} is not explained"


def test_the_page_lists_every_flag_that_is_taken(capsys):
    from locallearn.cli.arguments import of_a_run

    out = run("-h", capsys=capsys)[1]
    assert not [flag for flag in of_a_run().flags() if flag not in out]
    assert run("strategy=dgl", "--help", "-m", capsys=capsys)[1] == out


def test_versions(capsys):
    code, out, _ = run("--version", capsys=capsys)
    assert code == 0
    assert f"locallearn {__version__}, torch {metadata.version('torch')}" in out


@pytest.mark.parametrize("group", [*GROUPS, *APPENDED])
def test_one_choice_is_shown_with_its_options(group, capsys):
    for name, file in choices(group).items():
        code, out, err = run("list", group, name, capsys=capsys)
        assert (code, err) == (0, "")
        assert all(option.rpartition(".")[2] in out for option in options(group, name, file)), name
        assert "\n  _target_:" not in out
        assert "# @package" not in out


def test_one_choice_by_the_plural_and_by_a_wrong_name(capsys):
    out = run("list", "strategy", "pgi", capsys=capsys)[1]
    assert "weight: 0.25         # weight of every level's auxiliary loss" in out
    assert run("list", "strategies", "pgi", capsys=capsys)[1] == out
    code, _, err = run("list", "strategies", "pig", capsys=capsys)
    assert code == 2
    assert "did you mean 'pgi'?" in err


@pytest.mark.parametrize("width", [60, 80, 120])
def test_long_lines_go_on_below_their_column(width):
    flags = """\
  --config-dir DIR, -cd DIR     a folder of your own yaml files, such as DIR/strategy/mine.yaml; may be given again
  --info [defaults|...]         show how Hydra has put the configuration together
Flags, settings and the name of a command may stand in any order."""
    shown = fitted(flags, width)
    assert max(map(len, shown.splitlines())) <= width
    assert shown.split() == flags.split()
    for line, after in zip(shown.splitlines(), shown.splitlines()[1:], strict=False):
        assert len(after) - len(after.lstrip()) in (0, 2, 32) or "-" not in line


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize(
    "words",
    [
        ["-h"],
        *([command, "-h"] for command in COMMANDS),
        ["list"],
        ["list", "strategy", "pgi"],
        ["--dry-run", "model=mlp", "model.width=[1024,512,256,128]", "blocks=max"],
        slow(["plan", "stages=3", "model=mlp", "model.width=16", "threads=1"]),
    ],
    ids=" ".join,
)
def test_what_is_printed_fits_the_terminal(words, width, monkeypatch, capsys):
    code, wide, err = run(*words, capsys=capsys)
    assert code == 0, err
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    shown = run(*words, capsys=capsys)[1]
    assert not [line for line in shown.splitlines() if len(line) > width and len(line.split()) > 1]
    if words[0] != "plan":  # which measures again
        assert set(wide.split()) == set(shown.split()), "a word is lost or broken"


@pytest.mark.slow
def test_the_matrix_fits_the_terminal():
    pairs = matrix(choices("strategy"), choices("model"), compose(["auxiliary=linear"])[0])
    wide = pairs.render()
    for width in (60, 80, 120):
        shown = pairs.render(width)
        assert not [line for line in shown.splitlines() if len(line) > width and len(line.split()) > 1]
        assert set(wide.split()) == set(shown.split()), "a word is lost or broken"


def test_a_table_goes_on_below_behind_its_first_columns():
    rows = [["a", "of", "left", "right", "last"], ["1", "x", "text", "22", "3"]]
    assert table(rows, left=(1, 2)) == "a  of  left  right  last\n1  x   text     22     3"
    assert table(rows, 12, left=(1, 2), again=2) == (
        "a  of  left\n1  x   text\n\na  of  right\n1  x      22\n\na  of  last\n1  x      3"
    )
    assert table(rows, 3) == "a  of\n1   x\n\na  left\n1  text\n\na  right\n1     22\n\na  last\n1     3"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["strategy.temperature=3"], "objective.temperature belongs to objective="),
        (["strategy=pgi", "strategy.beta=3"], "strategy=pgi has the options weight, taps, width, couplings"),
        (["strategy=pgi", "strategy.wieght=3"], "did you mean 'strategy.weight'?"),
        (["strategy.reach=3"], "strategy.reach belongs to strategy=loco: choose that as well"),
        (["optim.momentum=3"], "optim.momentum belongs to optim=sgd: choose that as well; optim=adam has the options"),
        (["optim.lr=interval(1e-4,1e-1)"], "locallearn tune"),
        (["-m", "optim.lr=tag(log, interval(1e-4,1e-1))"], "locallearn tune"),
        (["tune", "optim.lr=interval(1e-4,1e-1)"], "space=FILE"),
        (["~data.root"], "no setting can be taken away"),
        (["~strategy"], "no setting can be taken away"),
        (["doctor", "~data"], "no setting can be taken away"),
        (["checkpoint.every=5"], "5ep (epochs), 5it (steps)"),
        (["compare", "a"], "RUN RUN"),
        (["evaluate", "data=mnist"], "no run was given"),
        (["list", "dgl"], "choice of strategy: `locallearn list strategy dgl`"),
        (["list", "vgg16"], "`locallearn list model vgg16` or `locallearn list experiment vgg16`"),
        (["train", "strategy=dgl"], "a run is settings alone, as in `locallearn strategy=dgl`"),
        (["reprot", "runs"], "did you mean 'report'?"),
        (["--alow", "x"], "did you mean '--allow'?"),
        (["resume", "--dry-run", "x"], "resume: --dry-run is not known here"),
    ],
)
def test_advice_is_right(words, sentence, capsys, tmp_path):
    code, _, err = run(*words, capsys=capsys)
    assert code == 2
    assert err.count("\n") == 1
    assert sentence in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", [*ELSEWHERE, "-cp", "-cn"])
@pytest.mark.parametrize("value", [[], ["x"]])
def test_flags_of_hydra_without_a_place_here_are_refused(flag, value, capsys, tmp_path):
    code, _, err = run("seed=1", flag, *value, capsys=capsys)
    assert code == 2
    assert err.count("\n") == 1
    assert "is not taken: " in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "instead"),
    [
        ("hydra.run.dir=x", "out=DIR"),
        ("hydra.sweep.dir=x", "out=DIR"),
        ("++hydra.sweep.subdir=x", "out=DIR"),
        ("hydra.output_subdir=x", "out=DIR"),
        ("hydra.job.chdir=true", "out=DIR"),
        ("hydra.verbose=true", "--debug"),
        ("hydra/job_logging=default", "--debug"),
        ("hydra.mode=MULTIRUN", "-m"),
        ("hydra.searchpath=[x]", "--config-dir"),
        ("hydra.job.name=x", "hydra/launcher"),
        ("hydra/output=x", "hydra/launcher"),
        ("~hydra.job", "hydra/launcher"),
    ],
)
def test_settings_of_hydra_name_ours(override, instead, capsys, tmp_path):
    for words in ([override], ["-m", "seed=0,1", override], ["plan", override]):
        code, _, err = run(*words, *SETTINGS, capsys=capsys)
        assert code == 2, words
        assert err.count("\n") == 1
        assert instead in err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_questions_that_hydra_answers(capsys):
    code, out, _ = run("-p", "optim", "optim.lr=0.3", "--cfg", "job", capsys=capsys)
    assert code == 0
    assert "lr: 0.3" in out
    assert "strategy" not in out.replace("# @package", "")
    for what in ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"):
        code, out, err = run("--info", what, "strategy=pgi", capsys=capsys)
        assert (code, err) == (0, ""), what
        assert what not in ("defaults", "defaults-tree") or "pgi" in out
    assert run("-c", "all", "--resolve", capsys=capsys)[0] == 0
    for words in (["--resolve"], ["-p", "optim"], ["-m", "--cfg", "job"], ["--cfg", "x"], ["--info", "x"]):
        code, _, err = run(*words, capsys=capsys)
        assert code == 2, words
        assert err.count("\n") == 1, err


ORDERS = [
    ["-m", "strategy=dgl,backprop", "--config-dir", "DIR", "seed=0,1"],
    ["--config-dir=DIR", "seed=0,1", "-m", "strategy=dgl,backprop"],
    ["seed=0,1", "-cd", "DIR", "--multirun", "strategy=dgl,backprop"],
    ["strategy=dgl,backprop", "seed=0,1", "-m", "--config-dir", "DIR"],
]


@pytest.mark.parametrize("words", ORDERS, ids=" ".join)
def test_flags_and_settings_in_any_order(words, monkeypatch, capsys, tmp_path):
    asked = []
    monkeypatch.setattr(cli, "_hydra", lambda options: asked.append(options) or 0)
    assert run(*words, capsys=capsys) == (0, "", "")
    (options,) = asked
    assert options.multirun
    assert options.config_dir == [Path("DIR")]
    assert sorted(options.overrides) == ["seed=0,1", "strategy=dgl,backprop"]


@pytest.mark.slow
def test_the_blocks_of_a_sweep_are_shown_for_each_run(capsys, tmp_path):
    code, out, err = run("strategy=dgl,backprop", "-m", *SETTINGS, "--dry-run", "blocks=2", capsys=capsys)
    assert code == 0, err
    assert out.count("aux share") == 2
    assert not list(tmp_path.iterdir()), "something was written"


def test_a_command_may_follow_settings(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(cli.commands, "run", lambda *given: asked.append(given) or 0)
    for words in (["strategy=dgl", "plan", "stages=2"], ["strategy=dgl", "stages=2", "plan"]):
        assert run(*words, capsys=capsys) == (0, "", "")
    assert asked == [("plan", ["strategy=dgl", "stages=2"])] * 2


def test_a_command_may_follow_flags(capsys, tmp_path):
    (tmp_path / "DIR" / "strategy").mkdir(parents=True)
    (tmp_path / "DIR" / "strategy" / "mine.yaml").write_text("# Mine.\n_target_: locallearn.strategies.greedy.DGL\n")
    for words in (
        ["--config-dir", "DIR", "list", "strategies"],
        ["list", "--config-dir", "DIR", "strategies"],
        ["list", "strategies", "--config-dir=DIR", "--debug"],
    ):
        code, out, err = run(*words, capsys=capsys)
        assert code == 0, err
        assert "mine" in out


@pytest.mark.parametrize("command", ["doctor", "tune", "plan", "list", "resume", "evaluate", "probe", "repeat"])
def test_a_folder_that_is_not_there(command, capsys):
    code, _, err = run(command, "x", "--config-dir", "nowhere", "probe=linear", capsys=capsys)
    assert code == 2
    assert err.count("\n") == 1, err


def test_a_yaml_may_not_hide_one_of_ours(capsys, tmp_path):
    (tmp_path / "DIR" / "strategy").mkdir(parents=True)
    (tmp_path / "DIR" / "strategy" / "dgl.yaml").write_text("_target_: mine.Mine\n")
    for words in (["strategy=dgl"], ["doctor"], ["-m", "seed=0,1"]):
        code, _, err = run(*words, "--config-dir", "DIR", capsys=capsys)
        assert code == 2
        assert "would hide it: give it another name" in err


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("locallearn eva", ["evaluate", "evaluate_every="]),
        ("locallearn resume runs/", ["runs/one"]),
        ("locallearn resume ", ["runs/", "runs/one"]),
        ("locallearn compare runs/one ru", ["runs/", "runs/one"]),
        ("locallearn strategy=dg", ["strategy=dgl"]),
        ("locallearn -m strategy=backprop,dg", ["strategy=backprop,dgl"]),
        ("locallearn probe runs/one probe=[linear,al", ["probe=[linear,alignment"]),
        ("locallearn +short=vg", ["+short=vgg16"]),
        ("locallearn strategy=pgi strategy.t", ["strategy.taps="]),
        ("locallearn max", ["max_steps="]),
        ("locallearn --mul", ["--multirun"]),
        ("locallearn list strategies", []),
        ("locallearn list strategy pgi", ["pgi", "pgi_causal"]),
        ("locallearn tune strategy=dgl blo", ["blocks="]),
        ("locallearn strategy=nothing_like_it optim.l", ["optim.lr="]),
        ("locallearn x=[ ] ' --config-dir nowhere zzz", []),
        ("", None),
    ],
)
def test_what_the_shell_is_told(line, found, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "status.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("COMP_LINE", line)
    code, out, err = run("-sc", "query=bash", capsys=capsys)
    assert (code, err) == (0, "")
    if found is not None:
        assert set(found) <= set(out.split())
        assert len(out.split()) <= len(found) + 1


def test_nothing_is_printed_into_the_prompt(monkeypatch, capsys):
    """Whatever goes wrong while the shell asks."""

    def fails(line):
        raise RuntimeError("no")

    monkeypatch.setattr(completion, "suggestions", fails)
    assert run("-sc", "query=bash", capsys=capsys) == (0, "", "")
    code, _, err = run("-sc", "install=powershell", capsys=capsys)
    assert code == 2
    assert "bash or zsh" in err


@pytest.fixture
def path(tmp_path):
    """The path of the shell, with `locallearn` on it, in a folder with one run."""
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "status.json").write_text("{}")
    program = tmp_path / "locallearn"
    program.write_text(f'#!/bin/bash\nexec {shlex.quote(sys.executable)} -m locallearn "$@"\n')
    program.chmod(0o755)
    return f"{tmp_path}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.slow
def test_bash_completes(path, tmp_path):
    """With the words as bash cuts them, at = and at :."""
    script = """
eval "$(locallearn -sc install=bash)" || exit 1
ask() { COMP_LINE="$1"; COMP_POINT=${#1}; shift; COMP_WORDS=("$@"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _locallearn; echo "${COMPREPLY[@]}"; }
ask "locallearn resu" locallearn resu
ask "locallearn strategy=dg" locallearn strategy = dg
ask "locallearn optim=" locallearn optim =
ask "locallearn resume runs/" locallearn resume runs/
"""
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PATH": path}
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["resume", "dgl", "adam adamw nadamw sgd torch", "runs/one"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_completes(path, tmp_path):
    """In a terminal, with the Tab key."""
    pexpect = pytest.importorskip("pexpect")
    env = {**os.environ, "PATH": path, "TERM": "dumb", "HOME": str(tmp_path)}
    shell = pexpect.spawn("zsh", ["-f", "-i"], cwd=tmp_path, env=env, encoding="utf-8", timeout=60)
    shell.sendline('PS1=; eval "$(locallearn -sc install=zsh)"; echo rea"d"y')
    shell.expect("ready\r")
    for typed, completed in (("resu", "resume "), ("strategy=dg", "strategy=dgl "), ("resume runs/o", "runs/one ")):
        shell.send(f"locallearn {typed}\t")
        shell.expect_exact(completed)
        shell.sendcontrol("u")  # takes the line away
    shell.close(force=True)


@pytest.mark.slow
def test_options_of_a_yaml_of_ones_own(capsys, tmp_path):
    """`data.validation` is an option of every set, and a yaml need not list it."""
    (tmp_path / "DIR" / "data").mkdir(parents=True)
    file = tmp_path / "DIR" / "data" / "mine.yaml"
    file.write_text("# Mine.\n_target_: locallearn.data.digits.Digits\n")
    words = ["--config-dir", "DIR", "data=mine"]
    code, _, err = run(*words, "data.validation=0.2", capsys=capsys)
    assert code == 2
    assert "write `validation: VALUE` into DIR/data/mine.yaml, or give +data.validation=0.2" in err
    assert compose(["data=mine", "+data.validation=0.2"], [tmp_path / "DIR"])[0]["data"]["validation"] == 0.2
    file.write_text(file.read_text() + "validation: 0.1\n")
    assert run(*words, "data.validation=0.2", "--dry-run", *SETTINGS, capsys=capsys)[0] == 0
