"""The pages that `locallearn leaderboard` writes are those of today's results, and its short table flatters nobody."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from helpers.commands import one_sentence, run
from locallearn.studies import leaderboard

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "locallearn leaderboard --readme README.md"


def test_the_pages_are_those_of_the_results(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    shutil.copy("README.md", tmp_path)
    to = tmp_path / "docs"
    code, out, err = run("leaderboard", "--to", str(to), "--readme", str(tmp_path / "README.md"), capsys=capsys)
    assert code == 0, err
    assert str(tmp_path / "README.md") in out
    assert (tmp_path / "README.md").read_text() == Path("README.md").read_text(), f"run: {COMMAND}"
    for name in ("leaderboard.md", "leaderboard.html"):
        assert (to / name).read_text() == Path("docs", name).read_text(), f"run: {COMMAND}"


def result(part: str, row: str, mean: float, published: float, word: str) -> dict[str, Any]:
    """What a table reads of a result."""
    return {
        **{"study": "mine", "part": part, "row": row, "metric": "test/accuracy", "unit": "percent"},
        **{"mean": mean, "deviation": 0.5, "runs": [{}] * 3, "more_is_better": True},
        "published": {"mean": published, "deviation": None, "runs": None},
        "verdict": {"difference": mean - published, "low": None, "high": None, "word": word},
    }


def short(results: dict[Path, dict[str, Any]], folder: Path) -> str:
    page = folder / "README.md"
    page.write_text("# Mine\n\nabove\n")
    for _ in range(2):  # the second time it replaces the first
        leaderboard.write_short(results, page, COMMAND, folder / "docs" / "leaderboard.md")
    assert page.read_text().count("<!-- begin") == 1
    return page.read_text()


def test_many_results_are_shown_by_the_worst_of_each_part(tmp_path):
    rows = [result("B", f"b{k}", 70 + k, 70, "beaten") | {"study": "other"} for k in range(3)]
    rows += [result("A", f"a{k}", 90 + 0.1 * k, 90, "reproduced") for k in range(8)]
    rows += [result("A", "worst", 88, 90, "differs"), result("A", "best", 91.5, 90, "beaten")]
    text = short({Path(f"{own['row']}.json"): own for own in rows}, tmp_path)
    table = [line.split(" | ") for line in text.splitlines() if line.startswith(("| A", "| B"))]
    assert [(cells[0], cells[1], cells[4]) for cells in table] == [
        ("| A, test accuracy in percent", "worst", "**differs**"),
        ("| B, test accuracy in percent", "b2", "beaten"),
    ]
    assert table[0][2:4] == ["90.00", "88.00 ± 0.50 (n=3)"]
    assert table[0][5] == "`locallearn repeat --result worst.json` |"
    assert "study `mine` 8 reproduced, 1 beaten, 1 differs; study `other` 3 beaten ([all](docs/leaderboard.md))" in text
    assert "farthest" in text


def test_few_results_are_all_shown_and_none_says_so(tmp_path):
    few = [result("A", f"a{k}", 90 + k, 90, "beaten") for k in range(leaderboard.SHORT)]
    text = short({Path(f"{own['row']}.json"): own for own in few}, tmp_path)
    assert text.count("locallearn repeat") == leaderboard.SHORT
    assert "farthest" not in text
    assert "none yet" in short({}, tmp_path)


def test_a_readme_that_is_not_there_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    code, _, err = run("leaderboard", "--to", str(tmp_path / "docs"), "--readme", "nowhere.md", capsys=capsys)
    assert code == 2
    assert "--readme nowhere.md: there is no such file" in one_sentence(err)
    assert not (tmp_path / "docs").exists()
