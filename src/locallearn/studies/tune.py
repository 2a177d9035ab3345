"""The search for settings: every trial is a run in a folder of its own, judged by its validation accuracy, never by the
test set; optuna decides what to try next, and remembers it in `out`/tune.db, so that a search goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from locallearn.config.compose import choices, compose, explained, swept
from locallearn.config.experiment import Experiment, experiment
from locallearn.config.explicit import Unread
from locallearn.errors import RunError, UserError, unknown
from locallearn.names import higher_is_better, in_words
from locallearn.runs import again
from locallearn.runs.read import read_run
from locallearn.studies import runner
from locallearn.studies.options import TuneOptions
from locallearn.studies.space import Range, Scalar, Space, entry_of, override

STORE = "tune.db"
EDGE = 0.05  # of a range: a best value this near to an end may lie beyond it


def space_of(name: str, names: Mapping[str, str], config_dirs: Sequence[Path] = ()) -> Space:
    """The keys that are searched, and where. In the file stand under `GROUP=NAME` the keys for that choice only.
    Raises UserError."""
    files = choices("tune", config_dirs)
    path = Path(name) if name.endswith((".yaml", ".yml")) else files.get(name)
    if path is None:
        raise unknown("space", name, files)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"space={name} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(content, Mapping):
        raise UserError(
            f"space={name}: must map keys to ranges, such as optim.lr: {{low: 0.001, high: 1.0, log: true}}"
        )
    space: Space = {}
    for key, entry in content.items():
        group, equals, choice = str(key).partition("=")
        if not equals:
            space[str(key)] = entry_of(entry, f"space={name}: {key}")
        elif not isinstance(entry, Mapping):
            raise UserError(f"space={name}: under {key} there must be keys with ranges")
        elif names.get(group) == choice:
            space |= {str(own): entry_of(value, f"space={name}: {own}") for own, value in entry.items()}
    if not space:
        raise UserError(
            f"space={name} has no key for optim={names['optim']}; write a FILE.yaml of your own: space=FILE"
        )
    return space


class Search:
    """One search: optuna proposes what to try, and learns how it went."""

    def __init__(self, settings: Sequence[str], config_dirs: Sequence[Path], options: TuneOptions) -> None:
        """Checks everything before anything is written. Raises UserError."""
        with explained(settings, config_dirs):
            several = swept(settings)
        if several:
            raise UserError(
                f"{several[0]} has several values: tune searches for one at a time, call it for each of them"
            )
        self.settings, self.config_dirs, self.trials = list(settings), config_dirs, options.trials
        base = self.experiment([])
        base.explicit.refuse([Unread("dry_run", "one run or a sweep")])
        self.space = space_of(options.space, base.names, config_dirs)
        for text in settings:
            if text.partition("=")[0] in self.space:
                raise UserError(f"{text}: this is what space={options.space} searches for; leave it out")
        if base.config["data"].get("validation") == 0:
            raise UserError("data.validation=0: a trial is judged by its validation part; hold some samples out")
        for end in (0, -1):
            self.experiment([override(key, _values(entry)[end]) for key, entry in self.space.items()])
        self.out, self.seed = base.settings.out, base.settings.seed
        meant = json.dumps([runner.identity(base.config), {k: str(v) for k, v in self.space.items()}], sort_keys=True)
        self.study = _study(self.out, f"{base.title}_{hashlib.sha256(meant.encode()).hexdigest()[:8]}")

    def experiment(self, texts: Sequence[str]) -> Experiment:
        overrides = [*self.settings, *texts]
        # without texts it is no run yet: what an experiment varies may be what is searched
        return experiment(*compose(overrides, self.config_dirs, bool(texts)), overrides, self.config_dirs)

    def run(self) -> None:
        """Go on until there are enough trials: first those that a killed process has left, then new ones."""
        import optuna

        distributions = {key: _distribution(entry) for key, entry in self.space.items()}
        for trial in self._of("RUNNING"):
            if trial.params.keys() == distributions.keys():
                self._try(trial)
            else:  # killed before it had its values
                self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        while len(list(self._of("COMPLETE", "PRUNED", "RUNNING"))) < self.trials:
            # a seed for each trial: a search that was interrupted asks for the same as one that was not
            self.study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(self.study.trials))
            self._try(self.study.ask(distributions))

    def _of(self, *states: str) -> Iterator[Any]:
        return (trial for trial in self.study.get_trials(deepcopy=False) if trial.state.name in states)

    def _try(self, trial: Any) -> None:
        """The run of one trial; one that diverges is worse than all that do not."""
        from optuna.trial import TrialState

        texts = self.texts(trial)
        exp = self.experiment(texts)
        path = runner.place(self.out, texts, exp.config)
        label = f"trial {trial.number + 1} of {self.trials}: {' '.join(texts)}"
        try:
            how, numbers = runner.run(exp, path, quiet=True)
            run = read_run(path)
            judge = run.selected_by
            if how != "busy" and judge not in numbers:
                raise UserError(f"{path} has no {judge}: tune needs a data set with a validation part and labels")
        except RunError as error:
            self.study.tell(trial.number, state=TrialState.PRUNED)
            print(f"{label}: failed: {error}", flush=True)
        except UserError:
            self.study.tell(trial.number, state=TrialState.FAIL)
            raise
        else:
            if how == "busy":
                print(f"{label}: left to another process", flush=True)
                return
            sign = 1 if higher_is_better(judge, run.metrics) else -1  # optuna looks for the most
            self.study.tell(trial.number, sign * numbers[judge])
            self.study.set_user_attr("judge", [judge, sign])
            before = {"resumed": " (resumed)", "done": " (done before)"}.get(how, "")
            print(f"{label}: {in_words(judge)} {numbers[judge]:.4f}{before}", flush=True)

    def texts(self, trial: Any) -> list[str]:
        return [override(key, trial.params[key]) for key in self.space]

    def report(self) -> int:
        """Print what was best and how to run it; returns the exit code, 1 if no trial ended well."""
        complete, failed = list(self._of("COMPLETE")), list(self._of("PRUNED"))
        print(
            f"{len(complete)} {'trial' if len(complete) == 1 else 'trials'}"
            + (f", {len(failed)} more failed" if failed else "")
            + f", in {self.out}"
        )
        if not complete:
            return 1
        best = self.study.best_trial
        texts = self.texts(best)
        judge, sign = self.study.user_attrs.get("judge", ["validation/accuracy", 1])
        print(f"best: {' '.join(texts)}, {in_words(judge)} {sign * best.value:.4f}")
        for key, entry in self.space.items():
            if isinstance(entry, Range) and not EDGE < entry.share(best.params[key]) < 1 - EDGE:
                print(f"  {key} lies at the end of its range, {entry.low:g} to {entry.high:g}: search a wider one")
        dirs = [f"--config-dir={folder}" for folder in self.config_dirs]
        print(f"run it with: {again.command(*self.settings, *texts, flags=dirs)}")
        return 0


def _values(entry: Range | list[Scalar]) -> list[Scalar]:
    return [entry.low, entry.high] if isinstance(entry, Range) else entry


def _distribution(entry: Range | list[Scalar]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(entry, Range):
        return CategoricalDistribution(entry)
    if isinstance(entry.low, int) and isinstance(entry.high, int):
        return IntDistribution(entry.low, entry.high, log=entry.log)
    return FloatDistribution(entry.low, entry.high, log=entry.log)


def _study(out: str, name: str) -> Any:
    """The study of that name in `out`, perhaps of an earlier start. Raises UserError."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = Path(out).resolve() / STORE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return optuna.create_study(
            study_name=name, storage=f"sqlite:///{path}", direction="maximize", load_if_exists=True
        )
    except OSError as error:
        raise UserError(f"cannot write into {out}: {error.strerror}; choose a folder you can write: out=") from None
    except (optuna.exceptions.OptunaError, SQLAlchemyError, RuntimeError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(
            f"{path} is not the record of a search ({reason}): move it away, or give another out="
        ) from None


def tune(arguments: Sequence[str], config_dirs: Sequence[Path] = ()) -> int:
    """Search, print every trial and the best one; returns the exit code. Raises UserError and Interrupted."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError("tune needs optuna: pip install 'locallearn[tune]'") from None
    options, settings = TuneOptions.parse(arguments)
    search = Search(settings, config_dirs, options)
    search.run()
    return search.report()
