"""What a run does not wait for, where nothing compiles: the import of PyTorch's compiler, as long as PyTorch's own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from helpers.commands import SMALL
from helpers.marks import slow

CODE = """
import json, sys
from locallearn.cli.main import main
code = main(sys.argv[1:])
print(json.dumps([code, sorted({"torch._dynamo", "torch._inductor"} & sys.modules.keys())]))
"""


def imported(*words: str) -> list[str]:
    """Which parts of the compiler are there after a command."""
    done = subprocess.run([sys.executable, "-c", CODE, *words], capture_output=True, text=True, check=True)
    code, found = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["strategy=dgl", "optim=adamw", "blocks=2", "bottleneck=vib", "bottleneck.after=[0]"],
        slow(["strategy=predictive_coding", "optim=sgd"]),
        slow(["strategy=dfa", "runtime=pipeline"]),
    ],
    ids=lambda words: " ".join(words),
)
def test_a_run_does_not_import_the_compiler(words, tmp_path):
    assert imported(*SMALL, "epochs=1", "max_steps=2", *words, f"out={tmp_path}") == []
