"""Where a run writes: its folder, its records and the terminal; and the status that it leaves, however it ends."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from locallearn.config.experiment import Experiment
from locallearn.config.registry import flat
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.errors import RunError, UserError, described, memory_ran_out
from locallearn.runs.console import Console, warn
from locallearn.runs.folder import RunFolder
from locallearn.runs.recorder import open_recorder
from locallearn.runtime.world import World
from locallearn.training.stopping import Interrupted


class Output:
    """Folder, recorder and console of a run. Of several processes only rank 0 records and prints: elsewhere `recorder`
    is None, and the console silent."""

    def __init__(self, exp: Experiment, folder: RunFolder, quiet: bool, world: World) -> None:
        self.folder = folder
        self.console = Console(quiet=quiet or world.rank != 0)
        self.recorder = None
        if world.rank == 0:
            # a name of its own, such as model.name=resnet18 of torchvision, stays
            config = {f"{group}.name": name for group, name in exp.names.items()} | flat(exp.config)
            about = {"name": exp.title, "job_type": exp.names["strategy"]}
            self.recorder = open_recorder(folder, exp.record, config=config, **about)

    def mend(self) -> None:
        """Make the folder again if somebody has deleted it: the training state in memory is worth keeping."""
        if self.recorder is not None and self.folder.made_again():
            self.recorder.write_again()
            lost = "its earlier checkpoints and pictures are lost, its records are not"
            warn(f"{self.folder.path} was deleted while the run wrote it, and was made again; {lost}")

    @contextmanager
    def ending(self, world: World) -> Iterator[None]:
        """Leave the true status behind, however the run ends. When one process of several fails, the one that knows the
        cause writes the status."""
        single = world.size == 1

        def ended(state: str, reason: str) -> None:
            if self.recorder is not None:
                if single or state == "interrupted":
                    with suppress(RunError):  # the disk is full, or the folder gone; what ended the run is worth more
                        self.folder.status(state, reason=reason)
                self.recorder.close(state, {})

        if self.recorder is not None:
            self.folder.status("running")
            self.folder.remember()
        try:
            yield
        except (Interrupted, KeyboardInterrupt) as error:
            ended("interrupted", str(error) or "stopped at once")
            if isinstance(error, Interrupted):
                error.run = str(self.folder.path)
            raise
        except (RunError, UserError) as error:  # the latter for a file of the data that cannot be read, say
            ended("failed", str(error))
            if not single:
                raise
            raise type(error)(f"{error} (run folder: {self.folder.path})") from error
        except Exception as error:
            reason = memory_ran_out(error) or described(error)
            log = "log.txt" if single else f"log-{world.rank}.txt"
            with suppress(RunError):  # a full disk, or another machine; the reason itself is worth more
                self.folder.write_text(log, traceback.format_exc())
            ended("failed", reason)
            raise RunError(f"the run failed with {reason}; the traceback is in {self.folder.path / log}") from error
        finally:
            self.console.stop()


def title(exp: Experiment, learner: Learner, data: Data, world: World) -> str:
    """What is trained, on what and where: the first line on the terminal."""
    counts = {"stages": world.stages, "replicas": world.replicas}
    several = "".join(f"{count} {name}, " for name, count in counts.items() if count > 1)
    splits = f"{len(data.pool)} train, {len(data.validation)} validation, {len(data.test)} test"
    text = f"{exp.names['strategy']} on {exp.names['model']} ({len(learner.cut)} blocks), {exp.names['data']} "
    more = filter(None, (data.left_out, *(taken.text for taken in learner.model.taken)))
    return "\n".join((f"{text}({splits}), {several}{learner.device}", *more))
