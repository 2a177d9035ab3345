"""The search space that all strategies share, and the statistics of their comparison, against printed tables."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from locallearn.errors import UserError
from locallearn.studies.definition import Part, Row
from locallearn.studies.experiments.fair import friedman, profile
from locallearn.studies.space import Range, evenly


def test_each_setting_alone_takes_all_its_values_in_equal_steps():
    space = {"a": Range(1e-4, 1.0, log=True), "b": Range(0.0, 8.0), "c": ["x", "y", "z", "w"]}
    points = evenly(space, 8)
    assert sorted(point["b"] for point in points) == pytest.approx([0.5 + k for k in range(8)])
    assert sorted(math.log10(point["a"]) for point in points) == pytest.approx([-4 + (2 * k + 1) / 4 for k in range(8)])
    assert sorted(point["c"] for point in points) == sorted("xyzw" * 2)
    quarters = {(point["a"] > 1e-2, point["b"] > 4) for point in evenly(space, 4)}
    assert len(quarters) == 4


def test_one_point_lies_in_the_middle():
    assert evenly({"a": Range(1e-4, 1e-2, log=True), "n": Range(1, 9)}, 1) == [{"a": pytest.approx(1e-3), "n": 5}]


def test_a_range_finds_its_way_back():
    for given in (Range(2.0, 5.0), Range(1e-5, 10.0, log=True)):
        assert [given.share(given.at(share)) for share in (0.0, 0.3, 1.0)] == pytest.approx([0.0, 0.3, 1.0])


def test_all_rows_try_the_same_points_with_the_first_seeds():
    part = Part(
        {"a": Row("x=1"), "b": Row("x=2"), "fixed": Row("x=3", choose={})},
        seeds=[0, 1, 2],
        choose_seeds=1,
        search={"lr": {"low": 1e-3, "high": 1e-1, "log": True}},
        trials=2,
    )
    assert list(part.candidates("a")) == [["x=1", "lr=0.00316"], ["x=1", "lr=0.0316"]]
    assert [words[1:] for words in part.candidates("b")] == [words[1:] for words in part.candidates("a")]
    assert list(part.candidates("fixed")) == [["x=3"]]
    assert (part.tried("a"), part.tried("fixed")) == ([0], [0, 1, 2])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"search": {"lr": [1, 2]}}, "search and trials need each other"),
        ({"trials": 3}, "search and trials need each other"),
        ({"search": {"lr": [1, 2]}, "trials": 2, "choose": {"x": [1]}}, "exclude choose"),
        ({"search": {"lr": {"low": 2, "high": 1}}, "trials": 2}, "low=2 must be less than high=1"),
        ({"search": {"lr": 3}, "trials": 2}, "search: lr: must be"),
    ],
)
def test_a_search_that_cannot_be(given, told):
    with pytest.raises(UserError, match=told):
        Part({"a": Row()}, **given)


@pytest.mark.parametrize(("methods", "q"), [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)])
def test_critical_differences_are_those_of_demsar(methods, q):
    """Table 5a of Demšar 2006."""
    _, _, critical = friedman([list(range(methods))] * 6)
    assert critical == pytest.approx(q * math.sqrt(methods * (methods + 1) / 36), abs=2e-3)


def test_friedman_with_ties_against_scipy():
    scores = [[3.0, 1.0, 2.0, 2.0], [4.0, 1.0, 1.0, 3.0], [9.0, 5.0, 6.0, 6.0], [1.0, 2.0, 0.0, 3.0]]
    ranks, p, _ = friedman(scores)
    assert p == pytest.approx(stats.friedmanchisquare(*zip(*scores, strict=True)).pvalue)
    assert ranks == [1.5, 3.375, 3.125, 2.0]
    assert friedman([[1.0, 1.0]])[1] == 1.0


def test_the_profile_of_dolan_and_more():
    found = profile({"a": [1.0, 4.0, None, None], "b": [2.0, 2.0, 5.0, None]})
    assert found == {"a": [1.0, 2.0, math.inf], "b": [1.0, 1.0, 2.0]}
