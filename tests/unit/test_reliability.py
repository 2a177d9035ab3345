"""scripts/reliability.py: what it makes of a JUnit file, and that every fault of its lists has a test."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import reliability  # noqa: E402

from locallearn.studies.page import marks  # noqa: E402

BEGIN, END = marks(reliability.COMMAND)

JUNIT = """<?xml version="1.0"?><testsuites><testsuite>
<testcase name="a"><properties><property name="faults" value="F1 R1"/><property name="injected" value="50"/>
<property name="lost" value="no bit"/></properties></testcase>
<testcase name="b"><properties><property name="faults" value="F1"/></properties><failure message="x"/></testcase>
<testcase name="c"><properties><property name="faults" value="F2"/></properties><skipped message="no"/></testcase>
<testcase name="d"><properties><property name="faults" value="load"/>
<property name="load" value="many runs|works|3|700"/></properties></testcase>
</testsuite></testsuites>"""


def test_the_tables_say_what_the_tests_put_down(tmp_path, monkeypatch, capsys):
    junit, page = tmp_path / "junit.xml", tmp_path / "page.md"
    junit.write_text(JUNIT)
    page.write_text(f"before\n{BEGIN}\nwhat stood there\n{END}\nafter\n")
    monkeypatch.setattr(sys, "argv", ["reliability.py", str(junit), "--page", str(page)])
    reliability.main()
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "stood there" not in text
    lines = text.splitlines()
    assert f"| F1 | {reliability.FAULTS['F1']} | 2 | 51 | 1 | not known: a test failed |" in lines
    assert f"| R1 | {reliability.GOALS['R1']} | 1 | 50 | 0 | no bit |" in lines
    assert f"| F2 | {reliability.FAULTS['F2']} | 0 | 0 | 0 | not tried on this machine |" in lines
    assert f"| F3 | {reliability.FAULTS['F3']} | 0 | 0 | 0 | no test |" in lines
    assert "| many runs | works | 3 | 700 |" in lines
    assert "3 tests, 51 faults injected, 1 failed" in capsys.readouterr().out


def test_every_fault_and_goal_has_a_test_and_no_other_is_named():
    named: set[str] = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        for named_marks in re.findall(r"mark\.fault\(([^)]*)\)", file.read_text(encoding="utf-8")):
            named |= set(re.findall(r'"(\w+)"', named_marks))
    assert named == {"load", *reliability.FAULTS, *reliability.GOALS}


def test_the_page_has_a_place_for_the_tables():
    text = reliability.PAGE.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    assert text.index(BEGIN) < text.index(END)


@pytest.mark.fault("load")
def test_a_mark_is_a_property_of_the_report(request):
    """What `make test-faults` relies on."""
    assert ("faults", "load") in request.node.user_properties
