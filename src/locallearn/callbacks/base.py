"""What happens at moments of a run. A callback looks and never changes: a run with one that does not stop it ends with
the same weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.options import Options


class RunView(Protocol):
    """A run at one moment, as its callbacks see it. In a pipeline every process has its own.

    learner  the model with its blocks (`learner.blocks`: `spec`, `layers`, `head`, `auxiliary`, `read()`); in a
             pipeline those of this process
    data     the set of the run
    folder   of the run; write only at rank 0
    rank     of this process; 0 where there is one
    step     training steps so far
    epoch    epochs so far, with a fraction inside one
    record   in `epoch`, `evaluation` and `end`: the numbers recorded, the same in every process; else empty. At `end`
             of rank 0 it becomes `summary.json`, and takes further numbers.
    records  in `step`: whether the step that follows is one after which the run records
    """

    learner: Learner
    data: Data
    folder: Path
    rank: int
    epoch: float
    record: dict[str, Any]
    records: bool

    @property
    def step(self) -> int: ...

    def stop(self, reason: str) -> None:
        """End the run after this moment, as done: it is evaluated, exported and summarised. `status.json` and the
        console say the reason. In a pipeline rank 0 decides in `step`, every process in `epoch` and `evaluation`."""

    def log(self, numbers: Mapping[str, float | Tensor]) -> None:
        """Add numbers to the next record: that of `log_every` or that of the epoch; in `evaluation` and `epoch` to the
        record of this moment. Tensors [] are read only then."""

    def evaluate(self) -> dict[str, float]:
        """`validation/loss`, `test/accuracy`, ... of the weights as they are now. Every process must call it, in
        `measure`, `evaluation`, `epoch` or `end`; each gets the numbers of its own blocks."""

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors of all stages together as the file `name`.safetensors of the run folder. Every process must
        call it, in any of these methods but `step`, with the tensors of its own blocks. Raises RunError."""

    def keep(self, name: str) -> None:
        """Keep a checkpoint of this moment in the folder `name`, in place of the one there. Every process must call it,
        in `evaluation` or `epoch`. A disk that is full costs a warning."""

    def export(self, name: str) -> None:
        """At `end`, write the model of the checkpoint that `keep` has kept as `model-NAME.safetensors`."""


class Callback(Options):
    """What happens at moments of a run. Write the methods that you need; all of them are called in every process.

    A dataclass whose fields are its options can be chosen in yaml (`callback=NAME`); what changes during the run is not
    an option, and goes into `state_dict`.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._group = f"callback.{cls.__module__.rpartition('.')[2]}"

    def unread(self) -> Mapping[str, str]:
        """Options that nothing reads beside the others, and what would read them; see `Strategy.unread`."""
        return {}

    def check(self, run: RunView, known: Callable[[], Collection[str]]) -> None:
        """Refuse, by a UserError before the run has a folder, what cannot work. `known` gives the names of the numbers
        that an evaluation records. Called once, in a process that has every block."""

    def start(self, run: RunView) -> None:
        """Training begins, or goes on: `load_state_dict` has been called where it does."""

    def step(self, run: RunView) -> None:
        """A training step is done; also the last one of an epoch."""

    def measure(self, run: RunView) -> Mapping[str, float]:
        """Numbers of one's own for the record of an evaluation that is under way."""
        return {}

    def evaluation(self, run: RunView) -> None:
        """The model has been evaluated, at the end of an epoch or inside one (`evaluate_every`)."""

    def epoch(self, run: RunView) -> None:
        """An epoch is done; after `evaluation` where there was one."""

    def end(self, run: RunView) -> None:
        """Training is over: the last epoch is done, or a callback has stopped the run. Not after a signal or a
        failure, from which a run may be resumed."""

    def state_dict(self) -> Mapping[str, Any]:
        """What must survive a resume, by name: tensors, and plain values as JSON can hold them. Values are those of
        rank 0; tensors are gathered from all processes, under names that differ between their blocks."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; every process gets all tensors, on the CPU."""
