"""scripts/benchmark.py: every measurement once, with tiny models; and its method on known numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from bench.goals import GOALS, Report  # noqa: E402
from bench.method import LOUD, TRIES, Bench, Sample, Series, between, exact, mark  # noqa: E402
from bench.pipeline import cut_by_time  # noqa: E402
from bench.report import page  # noqa: E402


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_goal_gets_a_number(tmp_path):
    result = tmp_path / "result.json"
    command = [sys.executable, str(SCRIPTS / "benchmark.py"), "--quick", "--json", str(result)]
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS.parent / "src")}
    run = subprocess.run(command, capture_output=True, text=True, timeout=880, cwd=tmp_path, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(result.read_text())
    numbers = {finding["goal"]: finding["value"] for finding in found["findings"]}
    assert numbers.keys() == GOALS.keys()
    assert all(value > 0 for goal, value in numbers.items() if goal != "P2"), numbers
    assert found["quick"]
    assert not found["failed"]
    assert {"dgl", "dni", "backprop 4", "dfa"} <= found["validation"]["vgg16"]["step_s"].keys()


@pytest.mark.slow
def test_a_goal_that_is_not_there_is_refused():
    command = [sys.executable, str(SCRIPTS / "benchmark.py"), "--only", "P99"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode != 0
    assert "no P99" in run.stderr


def test_loud_samples_are_thrown_away_and_repeated_and_too_few_give_no_number():
    bench = Bench(repeats=3, quick=False)
    quiet, loud = iter([Sample(2.0, 0.0)] * 9), iter([Sample(9.0, LOUD * 2), Sample(1.0, 0.0)] * 9)
    found = bench.run({"a": lambda: next(quiet), "b": lambda: next(loud)}, 3, warm=False)
    assert found["b"].dropped == 3
    assert bench.ratio(found["a"], found["b"]) == (2.0, 2.0, 2.0, 3, 3)
    found = bench.run({"a": lambda: Sample(1.0, LOUD * 2)}, 2, warm=False)
    assert found["a"].dropped == 2 * TRIES
    assert bench.single(found["a"]).value is None
    assert bench.single(Series({0: 1.0, 1: 1.0})).value is None  # two rounds are too few


def test_a_ratio_is_the_median_of_the_rounds_in_which_both_are_quiet():
    a, b = Series({0: 2.0, 1: 8.0, 2: 3.0, 3: 100.0}), Series({0: 1.0, 1: 2.0, 2: 1.0})
    assert Bench(3, False).ratio(a, b) == (3.0, 2.0, 4.0, 3, 0)


def test_the_work_of_another_process_is_foreign_and_that_of_ones_own_is_not():
    """Half a second of CPU time of another process, however long the machine takes over it."""
    burn = "import sys, time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        pids = [os.getpid(), other.pid]
        start, mine = mark(pids), mark(pids[:1]).own
        other.stdout.readline()
        end, mine_then = mark(pids), mark(pids[:1]).own
        other.stdin.close()
    known = between(start, end)
    unknown = between(start._replace(own=mine), end._replace(own=mine_then))
    assert 0.4 < (unknown.foreign - known.foreign) * known.seconds < 1.0


def test_the_cut_leaves_the_smallest_slowest_block(monkeypatch):
    """Units of 1, 1, 1, 5 seconds, and a head of 4 seconds on the first block: [2, 2], where units alone say [3, 1]."""
    from bench import pipeline

    seconds = {range(0, 3): 7.0, range(3, 4): 5.0}
    monkeypatch.setattr(pipeline, "blocks_alone", lambda model, strategy, cut, x, y: dict(enumerate(cut)))
    monkeypatch.setattr(pipeline, "_seconds", lambda step: seconds[step])
    assert cut_by_time(None, "dgl", 2, None, None, [1.0, 1.0, 1.0, 5.0]) == [range(0, 2), range(2, 4)]


def test_the_page_says_what_is_reached_missed_and_too_loud():
    report = Report()
    report.add("P3", "net", exact(0.8))
    report.add("P7", "net", exact(1.5), "it waits")
    report.add("P13", "net", Bench(3, False).single(Series({}, 12)))
    about = {"command": "make bench", "seconds": 60, "machine": "m", "system": "s", "torch": "t", "quick": False}
    text = page(report, about)
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| P")}
    assert "0.800" in rows["P3"]
    assert "reached" in rows["P3"]
    assert "missed" in rows["P7"]
    assert "0/12" in rows["P13"]
    assert "too loud" in rows["P13"]
    assert "- P7, net: it waits." in text
