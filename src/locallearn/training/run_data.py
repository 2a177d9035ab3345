"""What belongs to a run and is found in its data: the shape of an input, the classes, the normalisation and the
fingerprint of the set. It is kept in `manifest.json`, and whatever comes back to the run goes by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from locallearn.data import Data, DataSource
from locallearn.data.fingerprint import Fingerprint, fingerprint
from locallearn.data.normalise import Normalisation
from locallearn.errors import UserError
from locallearn.options import convert
from locallearn.runs.console import warn

CLASSES_NAMED = 10


def facts_of(data: Data) -> dict[str, Any]:
    """For the manifest."""
    return {
        "image": list(data.image),
        "classes": list(data.classes),
        "normalisation": asdict(data.normaliser.normalisation) if data.normaliser else None,
        "data": asdict(fingerprint(data)),
    }


def as_known(source: DataSource, seed: int, device: torch.device, known: Mapping[str, Any]) -> Data:
    """Load a set as the inputs of the model of the run whose manifest is `known`; a new run has none. Raises UserError
    for a set of other inputs or other classes."""
    numbers = known.get("normalisation")
    data = source.load(seed, device, Normalisation(**numbers)) if numbers else source.load(seed, device)
    if not known:
        return data
    classes = known["classes"]
    if tuple(known["image"]) != data.image or len(classes) != len(data.classes):
        raise UserError(
            f"the run was trained on {tuple(known['image'])} inputs and {len(classes)} classes; this set "
            f"has {data.image} and {len(data.classes)}"
        )
    for label, (name, other) in enumerate(zip(classes, data.classes, strict=True)):
        if name != other:
            named = ", ".join(classes[:CLASSES_NAMED]) + (", ..." if len(classes) > CLASSES_NAMED else "")
            raise UserError(
                f"label {label} is {name!r} in the run and {other!r} in data={data.name}: choose a set with the "
                f"classes of the run, in their order ({named})"
            )
    if "normalisation" in known and (numbers is None) != (data.normaliser is None):
        kinds = ("float32 samples, used as they are", "pixels, normalised")
        raise UserError(
            f"the run was trained on {kinds[numbers is not None]}, and data={data.name} has {kinds[numbers is None]}: "
            "choose a set of the same kind"
        )
    return data


def noted(known: Mapping[str, Any]) -> Fingerprint | None:
    """The set that a run was trained on; None for an older run, which has not noted it."""
    given = known.get("data")
    return None if given is None else convert(given, Fingerprint, "manifest.json: data")


def check_data(data: Data, known: Mapping[str, Any], train: bool = False) -> None:
    """Say on stderr that the data are not those of the run any more, or that nobody can know. To `train` on with other
    splits is refused: what was trained on may be in the test set now. Raises UserError."""
    before = noted(known)
    if before is None:
        warn("the run is of an older version, which did not note its data: whether they have changed is not known")
        return
    now = fingerprint(data)
    if change := before.change(now):
        said = f"the data are not those that the run was trained on: {change}"
        if train and not before.same_parts(now):
            raise UserError(
                f"{said}, so the splits are others, and what was trained on may be tested on; put the set back as it "
                "was, or start a new run"
            )
        warn(said)
