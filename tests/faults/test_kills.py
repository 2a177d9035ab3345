"""kill -9 at a hundred random moments of runs, of one process and of a pipeline: nothing is ever lost.

Half of the moments are drawn from the clock, half are aimed: in the middle of a step, of a checkpoint, of a line.
"""

from __future__ import annotations

import json
import multiprocessing.connection
import random
import signal
import socket
import time
from collections import Counter, deque
from pathlib import Path

import pytest

from helpers import killed
from helpers.runs import assert_same_run
from locallearn.errors import UserError
from locallearn.runs import checkpoint
from locallearn.runs.folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("kills"), pytest.mark.timeout(1500)]
KILLS = 50
"""In one process, and again in a pipeline; half of them by the clock, and each moment at least once."""
EVERY = 7
SETTINGS = ["model=mlp", "model.width=24", "model.depth=4", "model.dropout=0.2", "blocks=4"]
SETTINGS += ["epochs=4", "batch_size=32", f"checkpoint.every={EVERY}it", "threads=1", "data.crop=2", "device=cpu"]
CLOCK = "by the clock"


class Tortured:
    """Runs that are killed and resumed until each has ended."""

    def __init__(self, folder: Path, seed: str, stages: int = 1) -> None:
        self.out, self.log = folder / "runs", folder / "log.txt"
        self.random = random.Random(seed)
        self.moments = killed.MOMENTS | (killed.TOGETHER if stages > 1 else {})
        self.aims = deque(self.random.sample(list(self.moments), len(self.moments)))
        self.stages = stages
        self.kills: Counter[str] = Counter()
        self.starts = 0

    def one(self, words: list[str], reference: Path, kills: int) -> None:
        """A run, killed so often while it goes on; it must end with the bits of the reference."""
        run = self.clean_start(words)
        while self.kills.total() < kills and not self.done(run):
            self.hit(["resume", str(run)])
            self.look_at(run)
        assert self.live(["resume", str(run)]) == 0, self.log.read_text()[-2000:]
        assert not [path for path in run.rglob("*") if ".tmp-" in path.name]
        steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert steps == sorted(set(steps))
        assert_same_run(reference, run)

    def clean_start(self, words: list[str]) -> Path:
        """Start until there is a run to go on with: who is killed before that has lost nothing but the start."""
        while True:
            self.starts += 1
            out = self.out / str(self.starts)
            self.hit([*SETTINGS, *words, f"out={out}"])
            for path in out.glob("*") if out.is_dir() else ():
                try:
                    RunFolder.open(path)
                except UserError:  # killed before it had begun
                    continue
                self.look_at(path)
                return path

    def done(self, run: Path) -> bool:
        return RunFolder(run).read_json("status.json")["state"] == "done"

    def look_at(self, run: Path) -> None:
        """What a kill has left can be read, and is whole."""
        damaged: list[str] = []
        checkpoint.newest(run / "checkpoints", damaged.append)
        assert not damaged
        RunFolder(run).read_metrics()
        assert RunFolder(run).read_json("status.json")["state"] in ("running", "done", "failed")

    def hit(self, words: list[str]) -> None:
        """Run a command line, and kill one of its processes."""
        name = CLOCK if 2 * self.kills[CLOCK] < self.kills.total() else self.aims[0]
        victim = self.random.randrange(self.stages) if name == CLOCK or self.moments[name].everywhere else 0
        if name == CLOCK:
            processes = self.begin(words)
            time.sleep(self.random.uniform(0, 3.0))
            processes[victim].kill()
        else:
            count = self.random.randrange(1, self.moments[name].most)
            processes = self.begin(words, name, count, victim)
        if self.end(processes)[victim] == -signal.SIGKILL:
            self.kills[name] += 1
            self.aims.rotate(-1 if name == self.aims[0] else 0)

    def live(self, words: list[str]) -> int:
        return max(self.end(self.begin(words)))

    def begin(self, words: list[str], name: str | None = None, count: int = 1, victim: int = 0) -> list:
        """The processes of a command line; those of a pipeline as torchrun starts them."""
        if self.stages == 1:
            return [killed.begin(words, self.log, name, count)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        meet = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "WORLD_SIZE": str(self.stages),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        return [
            killed.begin(words, self.log, name if rank == victim else None, count, RANK=str(rank), **meet)
            for rank in range(self.stages)
        ]

    def end(self, processes: list) -> list[int]:
        """Wait for all; once one was killed the others get a moment, and are then ended as torchrun does."""
        while any(process.exitcode is None for process in processes):
            multiprocessing.connection.wait([p.sentinel for p in processes if p.exitcode is None], 90)
            if any(process.exitcode for process in processes):
                for process in processes:
                    process.join(5)
                    process.kill()
                    process.join()
        return [process.exitcode for process in processes]


@pytest.fixture(scope="module")
def references(tmp_path_factory) -> dict[str, Path]:
    """The undisturbed run of each strategy."""
    found = {}
    for strategy in ("dgl", "backprop", "cdni", "man strategy.every=5 strategy.lag=3"):  # between two versions, too
        folder = tmp_path_factory.mktemp(strategy.split()[0])
        process = killed.begin([*SETTINGS, *f"strategy={strategy}".split(), f"out={folder}"], folder / "log.txt")
        process.join()
        assert process.exitcode == 0
        found[strategy] = next(folder.glob("*/summary.json")).parent
    return found


@pytest.mark.fault("F1", "F2", "R1", "R2")
@pytest.mark.parametrize("stages", [1, 2])
def test_kills_lose_nothing(stages, references, tmp_path, record_property):
    tortured = Tortured(tmp_path, f"{stages} stages", stages)
    runs = 0
    words = [] if stages == 1 else ["runtime=pipeline", f"runtime.stages={stages}"]
    while tortured.kills.total() < KILLS:
        strategy = list(references)[runs % len(references)]
        tortured.one([*f"strategy={strategy}".split(), *words], references[strategy], KILLS)
        runs += 1
    assert tortured.kills.keys() == {CLOCK, *tortured.moments}
    record_property("injected", tortured.kills.total())
    record_property("lost", f"no bit of {runs} runs, which save after every {EVERY}th step")
