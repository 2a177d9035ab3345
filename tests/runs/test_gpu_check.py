"""scripts/gpu_check.py: its order, limits and page; and in full on a CPU, with small sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import gpu_check  # noqa: E402
from gpu_checks import CHECKS, facts_of, published  # noqa: E402

BY_LETTER = {check.letter: check for check in CHECKS}


def test_the_page_has_a_line_for_every_check():
    text = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    saved = ROOT / "docs" / "gpu.json"
    results = json.loads(saved.read_text(encoding="utf-8")) if saved.is_file() else {}
    lines = gpu_check.table(results)
    assert "\n".join(lines) in text
    assert [line[2] for line in lines if line.startswith("| ") and line[2].isalpha()] == [c.letter for c in CHECKS]
    if not results:
        assert text.count("**not yet run**") == len(CHECKS)


def test_a_check_that_cannot_be_is_left_out_and_says_why(tmp_path):
    failed = {"B": {"state": "failed"}}
    assert gpu_check.checked(BY_LETTER["I"], "cpu", 999, failed, tmp_path) == {"state": "left out", "said": "B failed"}
    assert gpu_check.checked(BY_LETTER["D"], "shadow", 999, {}, tmp_path)["said"] == "not on shadow"
    assert gpu_check.checked(BY_LETTER["C"], "cpu", 20, {}, tmp_path)["said"] == "20 seconds were left of the budget"


def test_a_check_is_ended_at_its_limit(tmp_path):
    short = BY_LETTER["C"]._replace(seconds=0.1)
    result = gpu_check.checked(short, "cpu", 999, {}, tmp_path)
    assert (result["state"], result["said"]) == ("failed", "not done after its limit of 0 seconds")
    assert result["seconds"] < 5


def test_it_goes_on_where_it_stopped(tmp_path, monkeypatch):
    done: list[str] = []

    def checked(check, *_):
        done.append(check.letter)
        return {"state": "failed" if check.letter == "C" and len(done) < 4 else "passed", "said": "", "numbers": {}}

    monkeypatch.setattr(gpu_check, "checked", checked)
    gpu_check.run(tmp_path, "cpu", 480, {"A", "B", "C"})
    assert done == ["A", "B", "C"]
    gpu_check.run(tmp_path, "cpu", 480, {"A", "B", "C"})
    assert done == ["A", "B", "C", "C"], "what has passed is left out, what has failed is not"
    other = facts_of("cpu")._replace(commit="another")
    monkeypatch.setattr(gpu_check, "facts_of", lambda device: other)
    gpu_check.run(tmp_path, "cpu", 480, {"A"})
    assert done[4:] == ["A"], "the results of another commit say nothing"


@pytest.mark.slow
def test_a_published_run_goes_on_until_it_is_done(tmp_path, monkeypatch):
    monkeypatch.setenv("GPU_CHECK_KEPT", str(tmp_path))
    monkeypatch.setattr(published, "SMALL", [*published.SMALL, "epochs=25", "checkpoint.every=1ep", "evaluate_every=1"])
    monkeypatch.setattr(published, "train", lambda words, seconds, train=published.train: train(words, 8))
    said = ""
    for _ in range(20):
        before, (said, numbers) = said, published.published(torch.device("cpu"), small=True)
        if "not done yet" not in said:
            break
    assert "not done yet" in before, "a run that has not been stopped shows nothing"
    assert numbers["epochs"] == 25
    assert list(numbers["curve"]) == [*range(1, 26)]
    assert said == f"{numbers['error']:g} %"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("device", ["cpu", "shadow"])
def test_it_runs_without_a_card(device, tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), "--device", device, "--out", str(tmp_path)]
    ran = subprocess.run([*command, "--budget", "1500"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    checks = json.loads((tmp_path / "gpu.json").read_text())["checks"]
    assert checks.keys() == {check.letter for check in CHECKS}
    passed = {letter for letter, result in checks.items() if result["state"] == "passed"}
    assert passed == {check.letter for check in CHECKS if device in check.devices}
