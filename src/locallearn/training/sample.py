"""Text that a trained language model writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from locallearn.data.text import TextData
from locallearn.errors import UserError
from locallearn.runs import again, checkpoint
from locallearn.runs.console import warn
from locallearn.runs.folder import RunFolder
from locallearn.task import TOKENS
from locallearn.training.environment import process_settings
from locallearn.training.later import NOT_ASKED
from locallearn.training.prepare import prepare
from locallearn.training.saved import ranges, saved_experiment, task_of


def sample(
    path: str | Path,
    allow: list[str],
    prompt: str | None,
    *,
    tokens: int,
    temperature: float,
    top_k: int,
    seed: int,
    block: int | None,
) -> str:
    """`prompt` (a new line if it is None) and what a run's language model writes after it; see
    `cli.sample.SampleOptions`. Reads the run's text for its characters. Raises UserError."""
    folder = RunFolder.open(Path(path))
    exp, manifest = saved_experiment(folder, allow, changes=NOT_ASKED)
    if task_of(manifest).kind != TOKENS:
        raise UserError(f"sample writes text, but {path} was trained for {task_of(manifest).wanted}: give another run")
    with process_settings(exp.settings):
        saved = checkpoint.newest(folder.checkpoints, warn)
        if saved is None:
            raise UserError(f"{folder.path} has no checkpoint to sample from; `{again.resume(folder.path)}` goes on")
        learner, data = prepare(exp, ranges(manifest["cut"]), manifest=manifest, fresh=False, learns=False)
        if not isinstance(data, TextData):
            raise UserError(
                f"sample writes the characters of data=text or data=shakespeare, but {path} was trained on other data: "
                "give another run"
            )
        learner.load_state(saved.tensors)
        prompt = data.spelling.start if prompt is None else prompt
        if not prompt:
            raise UserError("the prompt is empty: give at least one character, --prompt TEXT")
        written, context = data.spelling.encode(prompt).tolist(), data.image[0]
        answers = [k for k, z in enumerate(learner.predict(learner.model.blank(1))) if z is not None]
        if block is not None and block not in answers:
            raise UserError(f"block={block}: no head of this run answers there; choose of {answers}")
        which = answers[-1] if block is None else block

        def logits(window: Tensor) -> Tensor:
            z = learner.predict(window.to(learner.device))[which]
            assert z is not None
            return z.float().cpu()

        written += islice(drawn(logits, written, context, temperature, top_k, seed), tokens)
        return data.spelling.decode(written)


def drawn(
    logits: Callable[[Tensor], Tensor], written: list[int], context: int, temperature: float, top_k: int, seed: int
) -> Iterator[int]:
    """One token after the other, from `logits`, [1, context] -> [1, context, V]: the last `context` tokens are read,
    the answer at the last one is divided by the temperature, all but the `top_k` largest are left out, and one is drawn
    by their softmax. Windows that are not full end with zeros, which no earlier position reads."""
    draws = torch.Generator().manual_seed(seed)
    seen = written[-context:]
    while True:
        window = torch.zeros(1, context, dtype=torch.int64)
        window[0, : len(seen)] = torch.tensor(seen)
        z = logits(window)[0, len(seen) - 1] / temperature
        least = z.topk(min(top_k, len(z))).values[-1]
        chances = z.masked_fill(z < least, -torch.inf).softmax(0)
        token = int(torch.multinomial(chances, 1, generator=draws))
        yield token
        seen = [*seen, token][-context:]
