"""Reports on folders written by hand: what is read, how it is grouped, and numbers against SciPy and arithmetic."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import time
import xml.etree.ElementTree as ET

import pytest
import yaml

from locallearn.cli.main import main
from locallearn.figures.text import table
from locallearn.report import grouped, read, tables
from locallearn.report.compare import compare, curves, final_numbers
from locallearn.report.html import page
from locallearn.runs.read import one, read_run

ACCURACY = {"backprop": [0.90, 0.92, 0.91, 0.95], "dgl": [0.88, 0.91, 0.90, 0.90]}


def write_run(
    path,
    strategy="dgl",
    seed=0,
    accuracy=0.9,
    state="done",
    reason=None,
    epochs=3,
    config=None,
    summary=None,
    facts=None,
    overrides=(),
):
    """A run folder as training leaves it, without weights."""
    path.mkdir(parents=True)
    whole = {
        "strategy": {"_target_": f"locallearn.{strategy}", **({"warmup": 0.5} if strategy == "dni" else {})},
        "model": {"_target_": "locallearn.mlp", "width": 8},
        "data": {"_target_": "locallearn.digits", "root": None},
        "optim": {"_target_": "locallearn.adam", "lr": 0.1},
        "seed": seed,
        "epochs": epochs,
        "out": str(path.parent),
        "threads": 1,
    }
    for key, value in (config or {}).items():
        group, _, option = key.partition(".")
        whole[group] = {**whole[group], option: value} if option else value
    names = {"strategy": strategy, "model": "mlp", "data": "digits", "optim": "adam"}
    (path / "config.yaml").write_text(yaml.safe_dump(whole))
    (path / "overrides.yaml").write_text(yaml.safe_dump([*overrides, f"strategy={strategy}", f"seed={seed}"]))
    (path / "manifest.json").write_text(json.dumps({"choices": names, "device": "cpu", "threads": 1, **(facts or {})}))
    (path / "status.json").write_text(
        json.dumps({"state": state, "time": "2026-01-01T00:00:00", **({"reason": reason} if reason else {})})
    )
    records = [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "train/loss": 1 / epoch,
            "validation/accuracy": accuracy - 0.01,
            "test/accuracy": accuracy - 0.1 * (epochs - epoch),
            "block/00/test_accuracy": accuracy - 0.2,
            "block/01/test_accuracy": accuracy,
            "seconds": 2.0 * epoch,
            "peak_memory_bytes": 2**20,
        }
        for epoch in range(1, epochs + 1)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if state == "done":
        counts = {"parameters": 200, "auxiliary_parameters": 30}
        (path / "summary.json").write_text(json.dumps(records[-1] | counts | (summary or {})))
    return path


@pytest.fixture
def sweep(tmp_path):
    """Two strategies with four seeds; of dgl one more run failed and one was killed."""
    for strategy, accuracies in ACCURACY.items():
        for seed, accuracy in enumerate(accuracies):
            write_run(tmp_path / "a" / "b" / f"{strategy}-{seed}", strategy, seed, accuracy)
    write_run(tmp_path / "dgl-4", seed=4, state="failed", reason="the loss is nan")
    write_run(tmp_path / "dgl-5", seed=5, state="running")
    write_run(tmp_path / ".dgl-4.failed-1", seed=4, accuracy=0.1)
    return tmp_path


def group(found, label):
    return next(g for g in found.groups if g.label == label)


def test_difference_to_backprop_is_that_of_scipy(sweep):
    from scipy.stats import ttest_rel

    found = grouped(read([sweep]))
    number = group(found, "dgl").numbers["test/accuracy"]
    truth = ttest_rel(ACCURACY["dgl"], ACCURACY["backprop"]).confidence_interval(0.95)
    assert number.difference == pytest.approx(-0.0225)
    assert (number.ci_low, number.ci_high) == pytest.approx((truth.low, truth.high))
    assert number.pairs == 4
    assert number.mean == pytest.approx((0.88 + 0.91 + 0.90 + 0.90) / 4)
    assert number.std == pytest.approx(0.012583057392117917)  # sqrt(0.000475 / 3)
    assert number.best == 0.91
    assert group(found, "dgl").numbers["seconds"].best == 6.0
    assert group(found, "dgl").baseline == "backprop"
    assert group(found, "backprop").numbers["test/accuracy"].difference is None


def test_pairs_are_of_the_same_seed_whatever_the_order(tmp_path):
    for seed, accuracy in ((7, 0.5), (2, 0.9)):
        write_run(tmp_path / f"b{seed}", "backprop", seed, accuracy)
    for seed, accuracy in ((2, 0.8), (3, 0.1), (7, 0.6)):
        write_run(tmp_path / f"d{9 - seed}", "dgl", seed, accuracy)
    number = group(grouped(read([tmp_path])), "dgl").numbers["test/accuracy"]
    assert (number.seeds, number.n, number.pairs) == ((2, 3, 7), 3, 2)
    assert number.difference == pytest.approx((-0.1 + 0.1) / 2, abs=1e-12)
    assert number.ci_high == pytest.approx(12.706204736 * 0.1, rel=1e-6)  # t(0.975, 1) s / sqrt(2), s = 0.1 sqrt(2)


@pytest.mark.fault("F29")
def test_runs_that_are_not_done_are_listed_and_counted(sweep):
    found = grouped(read([sweep]))
    assert [(run.name, run.state, run.reason) for run in found.unfinished] == [
        ("dgl-4", "failed", "the loss is nan"),
        ("dgl-5", "interrupted", "killed after epoch 3"),
    ]
    assert len(found.runs) == 10  # the hidden attempt is left out
    head, *rows = tables.rows_of(found)
    assert [row[head.index("done")] for row in rows] == ["4 of 4", "4 of 6"]


def test_groups_differ_in_what_decides_learning_and_nothing_else(tmp_path):
    write_run(tmp_path / "1", "dgl", 0, config={"threads": 2, "data.root": "/here", "epochs": 3})
    write_run(tmp_path / "2", "dgl", 1, config={"threads": 1, "data.root": "/there", "optim.lr": 0.10})
    write_run(tmp_path / "3", "dgl", 0, config={"optim.lr": 1})
    write_run(tmp_path / "4", "dgl", 1, config={"optim.lr": 1.0})
    write_run(tmp_path / "5", "dni", 0)
    write_run(tmp_path / "6", "dni", 0, config={"strategy.warmup": 0.2})
    found = grouped(read([tmp_path]))
    assert found.differs == ["strategy", "optim.lr", "strategy.warmup"]
    assert [(g.label, len(g.runs)) for g in found.groups] == [
        ("dgl, optim.lr=0.1", 2),
        ("dgl, optim.lr=1", 2),
        ("dni, optim.lr=0.1, strategy.warmup=0.2", 1),
        ("dni, optim.lr=0.1, strategy.warmup=0.5", 1),
    ]
    assert found.common["model.width"] == 8
    assert "optim.lr" not in found.common
    assert not any(g.baseline for g in found.groups)
    assert any("no run with strategy=backprop" in problem for problem in found.problems)


def test_the_baseline_is_of_the_same_task_and_the_closest(tmp_path):
    for width in (8, 16):
        for rate in (0.1, 0.2):
            write_run(tmp_path / f"b{width}{rate}", "backprop", 0, config={"model.width": width, "optim.lr": rate})
            write_run(tmp_path / f"d{width}{rate}", "dgl", 0, config={"model.width": width, "optim.lr": rate})
    write_run(tmp_path / "other", "dgl", 0, config={"model.width": 32, "optim.lr": 0.1})
    groups = [g for g in grouped(read([tmp_path])).groups if g.strategy == "dgl"]
    assert [g.baseline for g in groups] == [
        *(f"backprop, model.width={width}, optim.lr={rate}" for width in (8, 16) for rate in (0.1, 0.2)),
        None,
    ]


def test_one_seed_no_value_and_other_metrics(tmp_path):
    write_run(tmp_path / "b", "backprop", 0, 0.9, summary={"only/here": 3.0})
    write_run(tmp_path / "d", "dgl", 0, 0.8, summary={"validation/accuracy": None, "train/loss": float("nan")})
    write_run(tmp_path / "e", "dgl", 1, 0.7, summary={"test/accuracy": None})
    found = grouped(read([tmp_path]))
    numbers = group(found, "dgl").numbers
    assert numbers["test/accuracy"].values == (0.8,)
    assert (numbers["test/accuracy"].std, numbers["test/accuracy"].ci_low) == (None, None)
    assert numbers["train/loss"].seeds == (1,)
    assert numbers["validation/accuracy"].difference is None  # seed 1 has no partner
    assert "only/here" in group(found, "backprop").numbers
    assert "dgl: 1 of 2 finished runs have no finite test/accuracy" in found.problems
    assert "-10.00 (1 pair)" in tables.terminal(found, 120)


def test_a_seed_counts_once(tmp_path):
    old = write_run(tmp_path / "z", "dgl", 0, 0.1)
    write_run(tmp_path / "a", "dgl", 0, 0.9)
    (old / "status.json").write_text(json.dumps({"state": "done", "time": "2025-01-01T00:00:00"}))
    found = grouped(read([tmp_path]))
    assert found.groups[0].numbers["test/accuracy"].values == (0.9,)
    assert found.problems[0] == "dgl: seed 0 was run more than once; the newest run of a seed counts"


@pytest.mark.fault("F3")
def test_damage_costs_a_sentence_and_no_other_run(tmp_path):
    cut = write_run(tmp_path / "cut", "dgl", 0)
    text = (cut / "metrics.jsonl").read_bytes()
    (cut / "metrics.jsonl").write_bytes(text[:-20])
    torn = write_run(tmp_path / "torn", "dgl", 1)
    (torn / "metrics.jsonl").write_text('{"epoch": 1}\nnonsense\n{"epoch": 3}\n')
    (write_run(tmp_path / "yaml", "dgl", 2) / "config.yaml").write_text("{a: [")
    (write_run(tmp_path / "bare", "dgl", 3) / "summary.json").unlink()
    (write_run(tmp_path / "binary", "dgl", 4) / "manifest.json").write_bytes(b"\xff\xfe{")
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / ".lock").write_text("process 1 on host vm")
    runs = {run.name: run for run in read([tmp_path])}
    assert [record["epoch"] for record in runs["cut"].history] == [1, 2]
    assert runs["cut"].problems == [
        "metrics.jsonl ends in the middle of line 3",
        "metrics.jsonl ends with epoch 2, the run with epoch 3: its curve is cut short",
    ]
    assert [record["epoch"] for record in runs["torn"].history] == [1, 3]
    assert (runs["yaml"].state, runs["yaml"].reason) == ("unreadable", "config.yaml is missing or damaged")
    assert runs["bare"].summary["epoch"] == 3
    assert runs["binary"].names["strategy"] == "dgl"  # from the class
    assert (runs["begun"].state, runs["begun"].reason) == ("unreadable", "killed before it had begun")
    found = grouped(list(runs.values()))
    assert {run.name for run in found.ungrouped} == {"yaml", "begun"}
    assert tables.summary(found) == "6 runs in 1 group: 4 done, 2 unreadable"


def test_a_run_that_is_being_written_is_running(tmp_path):
    from locallearn.runs.folder import RunFolder

    folder = RunFolder(write_run(tmp_path / "run", state="running"))
    folder.lock()
    assert read_run(folder.path).state == "running"
    folder.release()
    assert read_run(folder.path).state == "interrupted"


@pytest.mark.fault("F22")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no folder"),
        ([], "no run was found in"),
        (["notes.txt", "config.yaml"], "no run was found in"),
    ],
)
def test_folders_without_runs(tmp_path, capsys, content, said):
    folder = tmp_path / "folder"
    if content is not None:
        folder.mkdir()
        for name in content:
            (folder / name).write_text("something else\n")
    assert main(["report", str(folder), "--to", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("locallearn: ")
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("width", [60, 80, 120, 400])
@pytest.mark.parametrize("longest", [5, 24, 70])
def test_a_table_is_whole_in_any_width(width, longest):
    """Every cell stands on one line behind the name of its row, if that is possible; every line fits."""
    head = ["run", *(f"column {k}" for k in range(9)), "settings"]
    rows = [[f"{'name ' * 3}{n}", *(f"{n}{k:06}" for k in range(9)), "x" * longest] for n in range(3)]
    lines = table([head, *rows], width, rule=True).splitlines()
    assert max(map(len, lines)) <= width
    for row in rows:
        mine = "".join(line for line in lines if row[0] in line)
        assert all(cell in mine for cell in row[1:-1])
        assert longest > 24 or row[-1] in mine
    assert sum("column 3" in line for line in lines) == 1
    heads = [line for line in lines if line.split()[:1] == ["run"]]
    assert len(heads) == sum("───" in line for line in lines)
    assert len(heads) == 1 or width < 400


@pytest.mark.slow
def test_500_runs_in_seconds(tmp_path):
    first = write_run(tmp_path / "runs" / "0", epochs=30)
    for k in range(1, 500):
        copy = tmp_path / "runs" / str(k)
        shutil.copytree(first, copy)
        text = (first / "config.yaml").read_text()
        (copy / "config.yaml").write_text(text.replace("seed: 0", f"seed: {k % 5}").replace("0.1", f"{k // 5}.1"))
    started = time.process_time()  # of this process: the machine may be busy
    found = grouped(read([tmp_path]))
    text = tables.terminal(found, 120)
    assert time.process_time() - started < 10
    assert "500 runs in 100 groups" in text


def test_the_report_is_written_in_every_form(sweep, tmp_path, capsys):
    to = tmp_path / "to"
    assert main(["report", str(sweep), "--to", str(to)]) == 0
    said = capsys.readouterr().out
    for line in ("10 runs in 2 groups: 8 done, 1 failed, 1 interrupted", "the loss is nan", "-2.25 [-5.26, +0.76]"):
        assert line in said
    names = {path.name for path in to.iterdir()}
    assert {"report.md", "report.csv", "report.tex", "report-table.tex"} < names
    for name in ("learning_curves", "accuracy_by_block", "cost"):
        assert ET.parse(to / f"{name}.svg").getroot().tag.endswith("svg")
        assert f"![{name}.svg]({name}.svg)" in (to / "report.md").read_text()
        assert (to / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    rows = list(csv.DictReader(io.StringIO((to / "report.csv").read_text())))
    row = next(row for row in rows if row["group"] == "dgl" and row["metric"] == "test/accuracy")
    assert (row["n"], row["runs"], row["baseline"], row["seeds"]) == ("4", "6", "backprop", "0 1 2 3")
    assert float(row["difference"]) == pytest.approx(-0.0225)
    assert list(map(float, row["values"].split())) == ACCURACY["dgl"]


def test_costs_stand_in_the_table(tmp_path):
    write_run(tmp_path / "b", "backprop", 0, facts={"flops": 2_000_000, "auxiliary_flops": None})
    write_run(tmp_path / "d", "dgl", 0, facts={"flops": 2_000_000, "auxiliary_flops": 500})
    head, *rows = tables.rows_of(grouped(read([tmp_path])))
    costs = [dict(zip(head, row, strict=True)) for row in rows]
    assert [row["FLOPs"] for row in costs] == ["2 M", "2 M"]
    assert [row["aux FLOPs"] for row in costs] == ["", "500"]
    assert [(row["aux %"], row["memory"], row["time"]) for row in costs] == [("15.00", "1 MiB", "6 s")] * 2


AWKWARD = r"50% & a_b #1 {x} $y^2$ ~ \z <|> [é] 中"


def test_published_stands_beside_reached(tmp_path):
    """conf/experiment/dni_comparison.yaml says: backprop 75.88, dgl 77.88 percent; and nothing of fa."""
    for strategy in ("backprop", "dgl", "fa"):
        write_run(tmp_path / strategy, strategy, overrides=["+experiment=dni_comparison", "epochs=3"])
    found = grouped(read([tmp_path]))
    head, *rows = tables.rows_of(found)
    column = head.index("published")
    assert {row[0]: row[column] for row in rows} == {"backprop": "75.88", "dgl": "77.88", "fa": ""}
    said = tables.terminal(found, 160)
    assert "published: test/accuracy in percent of +experiment=dni_comparison, Belilovsky" in said
    assert "not with epochs=3, as here" in said
    assert ">77.88<" in page(found).replace(" ", "").replace("\n", "")


@pytest.mark.fault("R7")
@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r=", "x\r=", " =", "＝"])
def test_no_cell_of_a_table_is_a_formula(start, tmp_path):
    """In settings, their names and the names of groups and metrics; numbers stay numbers."""
    evil = f"{start}HYPERLINK(1)"
    for k, text in enumerate((evil, -0.5)):
        folder = write_run(tmp_path / str(k), "dgl", 0, config={"optim.lr": text, evil: k})
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps({**summary, evil: -1.5}))
    rows = list(csv.reader(io.StringIO(tables.as_csv(grouped(read([tmp_path]))), newline="")))
    cells = [cell for row in rows for cell in row]
    assert any("HYPERLINK(1)" in cell for cell in cells)
    assert "-0.5" in cells
    assert "-1.5" in cells
    for cell in cells:
        assert not cell.startswith(tables.FORMULA) or float(cell) < 0, cell


@pytest.mark.fault("R7")
def test_markdown_shows_code_letter_by_letter(tmp_path):
    evil = "a``b`<script>alert(1)</script>\n# head"
    write_run(tmp_path / "0", "dgl", 0, config={"optim.lr": evil})
    text = tables.markdown(grouped(read([tmp_path])))
    assert "- `optim.lr`: ``` a``b`<script>alert(1)</script> # head ```" in text
    assert not any(line.startswith("# head") for line in text.splitlines())
    assert text.count("<script>") == text.count("``` a``b`<script>")


@pytest.mark.fault("R7")
def test_the_terminal_obeys_no_run(tmp_path, capsys):
    folder = write_run(tmp_path / "0", "dgl", 0, state="failed")
    (folder / "status.json").write_text(json.dumps({"state": "failed", "reason": "\x1b]0;owned\x07 \x9b2J"}))
    assert main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "?]0;owned? ?2J" in said
    assert not set(said) & {"\x1b", "\x07", "\x9b"}


@pytest.mark.fault("R7")
def test_latex_escapes_what_it_would_read(tmp_path):
    for k, text in enumerate((AWKWARD, "[2,4]")):
        write_run(tmp_path / str(k), "dgl", 0, config={"optim.lr": text})
    written = tables.latex(grouped(read([tmp_path])))
    assert (
        r"optim.lr=50\% \& a\_b \#1 \{x\} \$y\textasciicircum{}2\$ \textasciitilde{} $\backslash$z $<$$|$$>$ [e] ?"
    ) in written
    assert max(map(ord, written)) < 128


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs a TeX")
def test_latex_compiles(tmp_path):
    for k, text in enumerate((AWKWARD, "[2,4]", "*")):
        for strategy in ("backprop", "dgl"):
            for seed in (0, 1):
                path = tmp_path / f"{strategy}{k}{seed}"
                write_run(path, strategy, seed, 0.5 + 0.1 * seed, config={"optim.lr": text})
    to = tmp_path / "to"
    assert main(["report", str(tmp_path), "--to", str(to)]) == 0
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    result = subprocess.run(command, cwd=to, capture_output=True, text=True, errors="replace")
    assert result.returncode == 0, result.stdout[-2000:]
    assert "Overfull \\hbox" not in result.stdout


def test_compare_says_what_differs(tmp_path):
    first = write_run(tmp_path / "one", "backprop", 0, 0.9, facts={"device": "a GPU"})
    second = write_run(tmp_path / "two", "dgl", 0, 0.8, config={"optim.lr": 0.3}, epochs=30)
    found = compare([one(first), one(second)])
    assert found.settings == [["epochs", "3", "30"], ["optim.lr", "0.1", "0.3"], ["strategy", "backprop", "dgl"]]
    assert found.machine == [["device", "a GPU", "cpu"]]
    numbers = {row[0]: row[1:] for row in final_numbers(found)}
    assert numbers["test/accuracy"] == ["0.9", "0.8", "-0.1"]
    head, *rows = curves(found)
    assert [int(row[0]) for row in rows] == [*range(3, 31, 3)]
    row = dict(zip(head, rows[0], strict=True))
    assert (row["test/accuracy 1"], row["train/loss 2"]) == ("0.9000", "0.3333")
    assert rows[-1][1] == "-"  # the first run had ended


@pytest.mark.slow
def test_compare_on_the_command_line(tmp_path, capsys):
    runs = [str(write_run(tmp_path / name / "run", "dgl", seed)) for seed, name in enumerate("ab")]
    assert main(["compare", *runs, "--to", str(tmp_path / "to")]) == 0
    said = capsys.readouterr().out
    assert f"1: {runs[0]} (done, 6 s)" in said
    assert " seed " in said
    assert {path.name for path in (tmp_path / "to").iterdir()} == {
        "compare.txt",
        *(f"{name}.{end}" for name in ("learning_curves", "accuracy_by_block") for end in ("svg", "png")),
    }
    assert main(["compare", runs[0], str(tmp_path)]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err


def test_manifest_of_a_run_has_the_flops_of_its_table(tmp_path):
    """Against a count by hand: two multiplications-and-additions for each weight of a linear layer."""
    import locallearn

    model = {"model": "mlp", "model.width": 16, "model.depth": 2, "model.batch_norm": False, "blocks": 2}
    result = locallearn.train(quiet=True, strategy="dgl", auxiliary="linear", max_steps=2, out=str(tmp_path), **model)
    manifest = read_run(result.run_dir).manifest
    inputs = 32 * 32
    assert manifest["flops"] == 2 * (inputs * 16 + 16 * 16 + 16 * 10)
    assert manifest["auxiliary_flops"] == 2 * 16 * 10
