"""Text as tokens, characters or byte pairs: which one comes next?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from locallearn import paths
from locallearn.accelerator import sent, sent_ahead
from locallearn.data.augment import Augment
from locallearn.data.dataset import Data, Split
from locallearn.data.files import ALL_CHECKED, check_files
from locallearn.data.normalise import Normalisation
from locallearn.data.source import Source
from locallearn.data.spelling import BytePairs, Characters, Spelling
from locallearn.data.store import Size
from locallearn.errors import UserError
from locallearn.seeds import generator
from locallearn.tasks import Tokens

BPE = "bpe"
TRAIN = 0.9  # share of a text that is not tested on, as in nanoGPT


class Windows:
    """Windows of a text as a store: sample i is the `context` tokens from place i on. Beyond the end stand zeros."""

    dtype = torch.int64

    def __init__(self, tokens: Tensor, context: int) -> None:
        self.tokens, self.context = tokens, context  # uint8 or int32 [N]
        self._padded = torch.cat([tokens, tokens.new_zeros(context)])

    @property
    def image(self) -> Size:
        return (self.context,)

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device) -> Windows:
        return Windows(self.tokens.to(device), self.context)

    def take(self, order: Tensor, batch_size: int) -> Iterator[Tensor]:
        """See `Store.take`: int64 [B, context]"""
        for starts in sent(order, self.tokens.device).split(batch_size):
            yield self.at(starts)

    def at(self, starts: Tensor) -> Tensor:
        """The windows that begin at the places [B], on the device: int64 [B, context]"""
        return self._padded.unfold(0, self.context, 1)[starts].long()

    def identity(self) -> bytes:
        return hashlib.sha256(self.tokens.cpu().numpy().data).digest() + bytes(str(self.context), "ascii")


class TextData(Data):
    """`Data` of a text: inputs are tokens int64 [B, T], targets the next tokens int64 [B, T], -1 beyond the end.

    In training windows begin anywhere, drawn with replacement from (seed, epoch, step); `steps_per_epoch` batches make
    what is called an epoch. An evaluation sees the windows at 0, T, 2T, ...: it asks for each token but the first once.
    """

    def __init__(
        self,
        name: str,
        spelling: Spelling,
        splits: tuple[Split, Split, Split],
        seed: int,
        steps: int,
        characters: float = 1.0,
    ) -> None:
        super().__init__(name, spelling.names, splits, seed, Augment(), None, task=Tokens(characters))
        self.spelling, self.vocabulary, self.steps_per_epoch = spelling, len(spelling.names), steps

    @property
    def own_validation(self) -> bool:
        return False

    def batch(self, batch_size: int) -> int:
        return batch_size

    def steps(self, batch_size: int) -> int:
        return self.steps_per_epoch

    def batches(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        windows = self.train.store
        assert isinstance(windows, Windows)

        def draw(step: int) -> Tensor:
            draws = generator(self.seed, "order", epoch, step)
            return torch.randint(len(windows) - windows.context, (batch_size,), generator=draws)

        for starts in sent_ahead(draw, range(start, self.steps_per_epoch), windows.tokens.device):
            yield windows.at(starts), windows.at(starts + 1)


@dataclass(frozen=True)
class Text(Source):
    """Any text in UTF-8. Its first 90 % train, the rest is the test set.

    file        the text
    tokenizer   null: its characters, sorted, are the tokens; bpe: byte pairs that are learned from the training part;
                or the path of a tokenizer.json of the library tokenizers. Bits per character then take a token for as
                many characters as those of the test part have on average
    vocabulary  with tokenizer=bpe: how many tokens at most, the 256 bytes among them
    context     tokens of a window
    steps       in what is called an epoch: windows are drawn, and a text has no natural one
    validation  share of the training part that is held out: its end. Windows drawn anywhere would overlap
    fraction    share of the rest that is trained on: its beginning
    """

    name: ClassVar[str] = "text"

    file: str = ""
    tokenizer: str | None = None
    vocabulary: Annotated[int, Ge(257)] = 1024
    context: Annotated[int, Ge(1)] = 64
    steps: Annotated[int, Ge(1)] = 250

    def unread(self) -> Mapping[str, str]:
        unread = {} if self.tokenizer == BPE else {"vocabulary": "data.tokenizer=bpe"}
        return {**unread, "root": "data=NAME that has files of its own; data.file=PATH names a text"}

    def path(self) -> Path:
        """The file. Raises UserError if none was given."""
        if not self.file:
            raise UserError("data=text needs data.file=PATH, a text in UTF-8; data=shakespeare has one of its own")
        return paths.expanded(self.file)

    def place(self) -> str:
        return str(self.path())

    def load(self, seed: int, device: torch.device, normalisation: Normalisation | None = None) -> TextData:
        path = self.path()
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not a text in UTF-8"
            raise UserError(f"data={self.name}: {path} cannot be read ({reason}): give a text in UTF-8") from error
        if len(set(text)) < 2:
            what = "repeats one character" if text else "is empty"
            raise UserError(
                f"data={self.name}: {path} {what}, so there is nothing to learn about which character comes next: "
                "give another text"
            )
        edge = int(TRAIN * len(text))
        held_out = round(self.validation * edge)
        kept = round(self.fraction * (edge - held_out))
        texts = text[:kept], text[edge - held_out : edge], text[edge:]
        spelling = self._spelling(text, texts[0])
        parts = [spelling.encode(part) for part in texts]
        for part, own in zip(("training", "validation", "test"), parts, strict=True):
            if len(own) < self.context + 1 and not (part == "validation" and not held_out):
                what = "characters" if self.tokenizer is None else "tokens"
                raise UserError(
                    f"data={self.name}: the {part} part of {path} has {len(own)} {what}, too few for one window of "
                    f"data.context={self.context} and its next one: give a longer text or a shorter context"
                )
        train, validation, test = (self._split(part.to(device)) for part in parts)
        characters = len(texts[2]) / len(parts[2])
        return TextData(self.name, spelling, (train, validation, test), seed, self.steps, characters)

    def _spelling(self, text: str, trained: str) -> Spelling:
        if self.tokenizer is None:
            return Characters(text)
        chosen = BPE if self.tokenizer == BPE else paths.expanded(self.tokenizer)
        return BytePairs(chosen, trained, self.vocabulary)

    def _split(self, tokens: Tensor) -> Split:
        """The windows at 0, T, 2T, ... with the next tokens."""
        windows = Windows(tokens, self.context)
        starts = torch.arange(0, max(len(tokens) - 1, 0), self.context)
        places = starts[:, None] + 1 + torch.arange(self.context)
        targets = (
            windows.at((starts + 1).to(tokens.device))
            if len(starts)
            else torch.zeros(0, self.context, dtype=torch.int64)
        )
        return Split(windows, starts, targets.masked_fill((places >= len(tokens)).to(targets.device), -1))


@dataclass(frozen=True)
class Shakespeare(Text):
    """Tiny Shakespeare (Karpathy 2015): 1,115,394 characters, 65 different ones; the last 111,540 are the test set.

    Nats per character on the test part without a network: uniform 4.174, frequencies 3.347, pairs of characters 2.482.
    """

    name: ClassVar[str] = "shakespeare"
    verified: ClassVar[str] = ALL_CHECKED
    FILE: ClassVar[str] = "tinyshakespeare/input.txt"
    SHA256: ClassVar[str] = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

    def unread(self) -> Mapping[str, str]:
        return {name: reader for name, reader in super().unread().items() if name != "root"} | {"file": "data=text"}

    def path(self) -> Path:
        root = self.folder()
        check_files(self.name, root, {self.FILE: self.SHA256}, "data/tinyshakespeare of github.com/karpathy/char-rnn")
        return root / self.FILE
