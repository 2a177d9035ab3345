"""The rule by which a published number is reproduced, differs or is beaten, against numbers from a table of Student's t
and against SciPy's Welch test."""

from __future__ import annotations

from math import sqrt

import pytest
from scipy import stats

from locallearn.errors import UserError
from locallearn.studies import page
from locallearn.studies.definition import Part, Row
from locallearn.studies.verdict import BEATEN, DIFFERS, OPEN, REPRODUCED, Reference, resolution_of_share, verdict

T2 = 4.302653
"""Student's t, 2 degrees of freedom, 97.5 %."""


def test_welch_where_both_deviations_are_known():
    ours, theirs = [98.05, 98.2, 98.41], [98.31, 98.18, 98.02, 98.2, 98.24]
    low, high = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    for published in (Reference.of(theirs, None, None), Reference(98.19, stats.tstd(theirs), 5)):
        found = verdict(ours, published, 0.5)
        assert (found.low, found.high) == pytest.approx((low, high))
        assert found.difference == pytest.approx(98.22 - 98.19)
        assert found.word == REPRODUCED


@pytest.mark.parametrize(("runs", "factor"), [(None, 4 / 3), (1, 4 / 3), (3, 2 / 3)])
def test_our_deviation_stands_for_an_unknown_one(runs, factor):
    """90, 91, 92 have the deviation 1; one more run lies within t sqrt(1/3 + 1) of their mean."""
    found = verdict([90.0, 91.0, 92.0], Reference(90.5, None, runs), 10)
    half = T2 * sqrt(factor)
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-5)


def test_the_four_words():
    """2.0, 2.1, 2.2 against one run: +-0.4968 around the difference."""
    ours = [2.0, 2.1, 2.2]
    assert verdict(ours, Reference(2.0), 0.5).word == REPRODUCED
    assert verdict(ours, Reference(2.0), 0.49).word == OPEN
    assert verdict(ours, Reference(2.59), 0.5).word == REPRODUCED
    assert verdict(ours, Reference(2.61), 0.5).word == DIFFERS
    assert verdict(ours, Reference(1.59), 0.5).word == BEATEN
    assert verdict(ours, Reference(1.59), 0.5, more_is_better=False).word == DIFFERS
    assert verdict(ours, Reference(2.61), 0.5, more_is_better=False).word == BEATEN
    assert verdict([2.1], Reference(2.1), 0.5) == (found := verdict([2.1], Reference(2.1, 0.1, 5), 0.5))
    assert (found.low, found.high, found.word) == (None, None, OPEN)


def test_equal_runs_have_an_interval_without_width():
    assert verdict([5.0, 5.0], Reference(5.0, 0.0, 3), 0.1).word == REPRODUCED
    found = verdict([5.0, 5.0], Reference(4.0, 0.0, 3), 0.1)
    assert (found.low, found.high, found.word) == (1.0, 1.0, BEATEN)


def test_the_rule_holds_its_level():
    """Of exact repetitions, 5 % are called other than they are, whichever of its two forms the rule takes."""
    import numpy as np

    draws = np.random.default_rng(0).normal(98, 0.1, (2000, 8)).tolist()
    for published in (lambda run: Reference.of(run[3:], None, None), lambda run: Reference(run[3])):
        wrong = sum(verdict(run[:3], published(run), 10).word != REPRODUCED for run in draws)
        assert wrong / len(draws) == pytest.approx(0.05, abs=0.02)


def test_what_a_test_set_resolves():
    assert resolution_of_share(98.0, 10_000) == pytest.approx(0.2744, abs=1e-4)
    assert resolution_of_share(100.0, 10_000) == 0


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"published": 98.0, "deviation": 0.1}, "a published deviation comes from at least 2 runs: say how many"),
        ({"published": [98.0]}, "a list gives the numbers of at least 2 runs"),
        ({"published": [98.0, 98.1], "runs": 2}, "from which deviation and runs follow"),
    ],
)
def test_what_is_published_must_fit_together(fields, problem):
    with pytest.raises(UserError, match=problem):
        Row(**fields)


def test_a_verdict_on_no_share_needs_a_margin():
    with pytest.raises(UserError, match="a verdict on validation/loss needs a margin"):
        Part({"a": Row()}, metric="validation/loss", verdict=True)
    assert Part({"a": Row()}, metric="validation/loss", verdict=True, margin=0.05).margin == 0.05


def test_a_row_chooses_with_the_first_seeds():
    part = Part(
        {"a": Row("x=1"), "b": Row("x=2", choose={})},
        common="y=1",
        seeds=[3, 4, 5],
        choose={"lr": [1, 2]},
        choose_seeds=1,
    )
    assert list(part.candidates("a")) == [["y=1", "x=1", "lr=1"], ["y=1", "x=1", "lr=2"]]
    assert (part.tried("a"), part.tried("b")) == ([3], [3, 4, 5])
    assert list(part.candidates("b")) == [["y=1", "x=2"]]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"values": [1.0, 2.0, 3.0]}, "our runs scatter by 1.00, and by how much theirs do is not known"),
        ({"values": [1.0, 2.0, 3.0], "deviation": 0.5}, "our runs scatter by 1.00"),
        ({"values": [1.0, 2.0, 3.0], "deviation": 2.5}, "the published runs scatter by 2.50"),
        ({"values": [1.0]}, ""),
        ({"values": [1.0, 2.0, 3.0], "verdict": {"word": "reproduced"}}, ""),
    ],
)
def test_an_open_row_says_why_its_interval_is_wide(row, why):
    assert page.why_open({"verdict": {"word": "open"}} | row) == (f"open: {why}" if why else "")
