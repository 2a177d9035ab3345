"""What may be set stands in annotations: each kind of range is refused in one sentence and described in the same words,
and holds for every option of every class, however that is built."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Interval, Len, Lt, MinLen, MultipleOf
from omegaconf import OmegaConf

from helpers.commands import run
from locallearn.auxiliary import MLP, Linear
from locallearn.config.registry import choices
from locallearn.config.targets import KINDS, resolve
from locallearn.engine.optim import SGD, Adam
from locallearn.errors import UserError
from locallearn.models.plain import mlp
from locallearn.objectives import CrossEntropy
from locallearn.options import OneOf, Options, checked, convert, described, fields_of, with_rules, within_ranges
from locallearn.probes.features import Features
from locallearn.runtime import Pipeline
from locallearn.strategies.dni import DNI

Count = Annotated[int, Ge(1)]


@pytest.mark.parametrize(
    ("hint", "words", "right", "wrong"),
    [
        (Count, "a whole number of at least 1", [1, 7], [0, -1, 1.0, True, "1", None]),
        (Annotated[int, "of others", Ge(1)], "a whole number of at least 1", [1], [0]),
        (Annotated[bool, "of others"], "true or false", [True], [1, "true"]),
        (Annotated[float, Gt(0)], "a number above 0", [1, 0.5], [0, -1.0, math.inf, math.nan, False]),
        (Annotated[float, Lt(1)], "a number below 1", [0, -5.0], [1, 2.0]),
        (Annotated[float, Interval(ge=0, le=1)], "a number from 0 to 1", [0, 1.0], [-0.1, 1.1]),
        (Annotated[float, Interval(ge=0, lt=1)], "a number of at least 0 and below 1", [0], [1]),
        (Annotated[int, Ge(2), MultipleOf(2)], "a whole number of at least 2 and divisible by 2", [4], [0, 3]),
        (Annotated[str, OneOf({"a": 1, "bc": 2})], "a or bc", ["a", "bc"], ["b", "", 1, None]),
        (Annotated[int, OneOf([11, 13, 16])], "11, 13 or 16", [11], [12, "11"]),
        (Literal["sum", "mean"] | None, "sum, mean or null", ["sum", None], ["max", 0, True]),
        (Count | Literal["auto"], "a whole number of at least 1, or auto", [3, "auto"], [0, "atuo"]),
        (Annotated[str, MinLen(1)], "a text that is not empty", ["x"], ["", 3]),
        (tuple[Annotated[str, Len(1, 3)], ...], "a list of texts of 1 to 3 characters", [("a", "abc"), ()], ["abc"]),
        (Literal["auto"] | list[Count], "auto, or a list of whole numbers of at least 1", ["auto", [1, 2]], ["x", 3]),
        (dict[int, Count] | None, "a mapping of whole numbers to whole numbers of at least 1, or null", [{2: 1}], [5]),
    ],
)
def test_a_range_refuses_in_the_words_that_describe_it(hint, words, right, wrong):
    assert described(hint) == words
    for value in right:
        assert convert(value, hint, "group.option") == value
    for value in wrong:
        expected = r"must be (a finite number|.*" + words.replace("(", r"\(") + ")$"
        with pytest.raises(UserError, match=rf"^group\.option=.*{expected}"):
            convert(value, hint, "group.option")


@pytest.mark.parametrize(
    ("hint", "value", "sentence"),
    [
        (Literal["auto"] | list[Count], [2, 0], "split[1]=0: must be a whole number of at least 1"),
        (dict[int, Annotated[float, Ge(1)]] | None, {2: 0.5}, "split.2=0.5: must be a number of at least 1"),
        (Annotated[str, OneOf(["cosine", "linear"])], "cosin", "split=cosin: did you mean 'cosine'? must be cosine or"),
    ],
)
def test_the_sentence_says_which_part_is_wrong(hint, value, sentence):
    with pytest.raises(UserError) as caught:
        convert(value, hint, "split")
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: DNI(mix=1.5), "strategy.mix=1.5: must be a number from 0 to 1"),
        (lambda: DNI(mix=math.nan), "strategy.mix=nan: must be a finite number"),
        (lambda: Linear(features=-1), "auxiliary.features=-1: must be a whole number of at least 0"),
        (lambda: replace(MLP(), layers=-1), "auxiliary.layers=-1: must be"),
        (lambda: SGD(milestones=[0.5, 2]), "optim.milestones[1]=2: must be a number from 0 to 1"),
        (lambda: Adam(weight_decay=-1), "optim.weight_decay=-1: must be a number of at least 0"),
        (lambda: Pipeline(message="fp8"), "runtime.message=fp8: must be exact or bf16"),  # type: ignore[arg-type]
        (lambda: Features(every=0), "probe.features.every=0: must be a whole number of at least 1, or log"),
        (lambda: mlp((4,), 2, depth=0), "model.depth=0: must be a whole number of at least 1"),
    ],
)
def test_what_is_built_in_python_is_checked_too(build, sentence):
    with pytest.raises(UserError) as caught:
        build()
    assert str(caught.value).startswith(sentence)


def test_a_class_of_ones_own_adds_a_condition_between_two_options():
    @dataclass(frozen=True)
    class Window(Options):
        low: Annotated[float, Ge(0)] = 0.0
        high: Annotated[float, Ge(0)] = 1.0

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.low >= self.high:
                raise UserError(f"low={self.low}: must be below high={self.high}")

    assert Window(0.5).high == 1.0
    with pytest.raises(UserError, match="low=-1: must be a number of at least 0"):
        Window(-1)
    with pytest.raises(UserError, match=r"low=2: must be below high=1\.0"):
        Window(2)


def test_a_function_keeps_its_signature_and_leaves_positional_arguments_alone():
    @within_ranges("model")
    def builder(image: int, *, width: Count = 3) -> int:
        """What it says."""
        return image * width

    assert builder(2) == 6
    assert (builder.__doc__, list(fields_of(builder))) == ("What it says.", ["image", "width"])
    with pytest.raises(UserError, match=r"model\.width=0"):
        builder(2, width=0)


def least(hint: Any) -> list[int]:
    """A number below the least that an annotation allows, if it has a least."""
    rules = getattr(hint, "__metadata__", ())
    bounds = [getattr(rule, end, None) for rule in rules for end in ("ge", "gt")]
    return [int(bound) - 1 for bound in bounds if bound is not None]


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group in (*KINDS, "model") for name in choices(group) if name != "none"]
)
def test_every_range_of_every_choice_holds_from_its_yaml(group, name):
    """What the yaml gives is within the ranges, and what is below one is refused by its full name, from Python too."""
    options: Any = OmegaConf.to_container(OmegaConf.load(choices(group)[name]))
    target = resolve(options.pop("_target_"), group, [])
    supplied: dict[str, Any] = {"image": (3, 8, 8), "classes": 2} if group == "model" else {}
    if group == "strategy":
        supplied = {"objective": CrossEntropy(), "auxiliary": MLP()}
    supplied = {option: value for option, value in supplied.items() if option in fields_of(target)}
    checked(target, options, group, {*supplied, "graph"} if group == "model" else supplied)
    place = f"{group}.{name}" if group in ("probe", "callback") else group
    for option, hint in with_rules(target).items():
        for value in least(hint):
            with pytest.raises(UserError, match=rf"^{place}\.{option}={value}: must be "):
                target(**supplied, **{**options, option: value})


def test_list_shows_the_range_of_each_option(capsys):
    out = run("list", "optim", "sgd", capsys=capsys)[1]
    assert "momentum: 0.9  # a number of at least 0 and below 1" in out
    (schedule,) = [line for line in out.splitlines() if "schedule: cosine" in line]
    assert schedule.endswith("or a function of yours"), "names that the comment has already are not said again"
    out = " ".join(run("list", "data", "folder", capsys=capsys)[1].split())
    assert "fraction: 1.0 # share of the rest that is trained on; a number above 0 and at most 1" in out
    assert "permutation (of # the labels) or noise;" in out
    assert run("list", "probe", "none", capsys=capsys)[1].endswith("It has no options.\n")
