"""The names of a run's numbers in records, summaries, pages and trackers: they are made and taken apart only here.

    loss                        of the model, in one step or one evaluation
    train/loss, test/accuracy   of the model on a split
    step/loss, block/00/step_loss   on the training batches since the last record inside an epoch
    block/00/accuracy           of a block on the training batches
    block/00/test_accuracy      of a block on another split
    layer/03/snr                of a layer, seen by a probe
    stage/00/waiting            of one process of a pipeline
    probe/linear/seconds        of a probe itself

The metric is a value everywhere, so that a task may bring its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

LOSS, ACCURACY = "loss", "accuracy"
TRAIN, VALIDATION, TEST = "train", "validation", "test"
STEP = "step"
BLOCK, LAYER, STAGE, PROBE = "block", "layer", "stage", "probe"
PATTERNS = tuple(f"{place}/*" for place in (TRAIN, STEP, VALIDATION, TEST, BLOCK, LAYER, PROBE))
"""Every number that is a curve over steps."""
_AT_BLOCK = re.compile(rf"{BLOCK}/(\d{{1,4}})/(.+)")
Value = TypeVar("Value")


def at(place: str, index: int, metric: str) -> str:
    """at("block", 0, "loss") -> `block/00/loss`"""
    return f"{place}/{index:02d}/{metric}"


def on(split: str, name: str) -> str:
    """on("test", "loss") -> `test/loss`; on("test", "block/00/loss") -> `block/00/test_loss`"""
    place, metric = divided(name)
    return f"{place}/{_on_block(split, metric)}" if place else f"{split}/{metric}"


def _on_block(split: str, metric: str) -> str:
    return f"{split}_{metric}"


def split_of(name: str) -> str:
    """The split that a number is about: `test` for test/loss and block/00/test_loss; empty where it is about none."""
    place, metric = divided(name)
    if place in (TRAIN, VALIDATION, TEST):
        return place
    return next((split for split in (VALIDATION, TEST) if place and metric.startswith(_on_block(split, ""))), "")


def of_blocks(blocks: Mapping[int, Mapping[str, Value]]) -> dict[str, Value]:
    """of_blocks({0: {"loss": 0.5}}) -> {"block/00/loss": 0.5}"""
    return {at(BLOCK, index, metric): value for index, own in blocks.items() for metric, value in own.items()}


def of_probe(probe: str, what: str) -> str:
    """of_probe("linear", "seconds") -> `probe/linear/seconds`"""
    return f"{PROBE}/{probe}/{what}"


def divided(name: str) -> tuple[str, str]:
    """The place and the metric: `block/00/loss` -> ("block/00", "loss"); `loss` -> ("", "loss")."""
    place, _, metric = name.rpartition("/")
    return place, metric


def by_block(numbers: Mapping[str, Value], metric: str, split: str = "") -> dict[int, Value]:
    """The values of a metric, on the training batches or on another split, by the index of the block."""
    wanted = _on_block(split, metric) if split else metric
    matches = {name: match for name in numbers if (match := _AT_BLOCK.fullmatch(name)) and match[2] == wanted}
    return dict(sorted((int(match[1]), numbers[name]) for name, match in matches.items()))


def in_words(name: str) -> str:
    """`test/top_accuracy` -> `test top accuracy`"""
    return name.replace("/", " ").replace("_", " ")


def metric_of(name: str) -> str:
    """The metric without its place and its split: `block/00/test_accuracy` -> `accuracy`"""
    metric = divided(name)[1]
    return next((metric.removeprefix(f"{s}_") for s in (VALIDATION, TEST) if metric.startswith(f"{s}_")), metric)


def higher_is_better(name: str, metrics: Mapping[str, str] = MappingProxyType({})) -> bool | None:
    """Whether a higher number is better; None where that is not known. `metrics` are those of a task by name, "up" or
    "down", as the manifest of a run has them."""
    metric = metric_of(name)
    if metric in metrics:
        return metrics[metric] == "up"
    if metric.endswith((ACCURACY, "images_per_second")) or metric in _MORE:
        return True
    if metric.endswith((LOSS, "seconds", "bytes", "flops", "idle")) or metric in _LESS:
        return False
    return None


_MORE, _LESS = {"f1", "map", "miou", "r2"}, {"bits_per_character", "perplexity", "rmse", "mae"}
TEST_ACCURACY = on(TEST, ACCURACY)
