"""What was published for a run of `+experiment=NAME`, from the header of its yaml file."""

from __future__ import annotations

from dataclasses import dataclass

from locallearn.config.compose import choices, header
from locallearn.report.grouping import is_where, text
from locallearn.runs.read import Run


@dataclass(frozen=True)
class Score:
    """A number that an experiment's header says was published or reached: for the runs with these settings."""

    settings: dict[str, str]
    value: float


def scores(text: str) -> list[Score]:
    """The numbers of a header's `published:` or `reached:`, such as "strategy=dgl blocks=2 91.3; strategy=dgl blocks=4
    88.5 [R: where from]"; in the unit that `measure:` says."""
    parts = [part.split() for part in text.partition("[")[0].split(";")]
    return [Score(dict(s.split("=", 1) for s in settings), float(value)) for *settings, value in parts]


@dataclass(frozen=True)
class PublishedScore:
    """A published number, as it is shown, and a sentence on where it is from."""

    value: str
    note: str


def published(run: Run) -> PublishedScore | None:
    """The number that was published for the settings of this run; None if it is not of a published setting."""
    overrides = dict(word.lstrip("+").partition("=")[::2] for word in run.overrides)
    name = overrides.pop("experiment", "")
    files = choices("experiment")
    if name not in files:
        return None
    facts = header(files[name])
    every = scores(facts["published"])
    score = next((score for score in every if _is_of(score, run)), None)
    if score is None:
        return None
    measure, _, unit = facts["measure"].rpartition(" in ")
    varied = {key for each in every for key in each.settings} | {"optim.lr", "data.root"}  # the rate is searched for
    changed = [f"{key}={value}" for key, value in overrides.items() if key not in varied and not is_where(key)]
    note = f"published: {measure} in {unit} of +experiment={name}, {facts['paper']}"
    if changed:
        note += f"; not with {' '.join(changed)}, as here"
    return PublishedScore(f"{score.value:.2f}" + ("" if unit == "percent" else f" {unit}"), note)


def _is_of(score: Score, run: Run) -> bool:
    return all(text(run.names.get(key, run.config.get(key))) == value for key, value in score.settings.items())
