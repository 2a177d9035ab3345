"""From text to token numbers and back: character by character, or by byte pairs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from locallearn.errors import UserError, in_one_line

MISSING = "data.tokenizer needs tokenizers: pip install 'locallearn[tokens]', or leave it out for characters"


class Spelling(ABC):
    """`names` are those of the tokens, in the order of their numbers; `start` is what a text may begin after."""

    names: tuple[str, ...]
    start = "\n"

    @abstractmethod
    def encode(self, text: str) -> Tensor:
        """Token numbers, uint8 or int32 [N]. Raises UserError for a character that has none."""

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""

    def _packed(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.uint8 if len(self.names) <= 256 else torch.int32)


class Characters(Spelling):
    """Each different character of a text is a token; they are sorted."""

    def __init__(self, text: str) -> None:
        self.names = tuple(sorted(set(text)))
        self.start = "\n" if "\n" in self.names else self.names[0]
        self._number = {character: index for index, character in enumerate(self.names)}

    def encode(self, text: str) -> Tensor:
        if unknown := sorted(set(text) - self._number.keys()):
            raise UserError(
                f"the character {unknown[0]!r} is not in the text that was trained on, which has "
                f"{''.join(self.names)!r:.120}: use only these"
            )
        return self._packed([self._number[c] for c in text])

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self.names[t] for t in tokens)


class BytePairs(Spelling):
    """Byte pairs (Sennrich, Haddow & Birch 2016), by the library tokenizers: nothing is unknown.

    Args:
        tokenizer: `bpe`, or the path of a tokenizer.json as that library saves it.
        text: what the pairs of `bpe` are learned from.
        vocabulary: how many tokens `bpe` has at most, the 256 bytes among them.
    """

    def __init__(self, tokenizer: str | Path, text: str, vocabulary: int) -> None:
        try:
            from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        except ImportError as error:
            raise UserError(MISSING) from error
        if tokenizer == "bpe":
            self._library = Tokenizer(models.BPE())
            self._library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            self._library.decoder = decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = trainers.BpeTrainer(vocab_size=vocabulary, show_progress=False, initial_alphabet=alphabet)
            self._library.train_from_iterator([text], trainer)
        else:
            try:
                self._library = Tokenizer.from_str(Path(tokenizer).read_text(encoding="utf-8"))
            except Exception as error:  # the library raises a bare Exception
                reason = getattr(error, "strerror", None) or in_one_line(error)
                raise UserError(
                    f"data.tokenizer={tokenizer} cannot be read ({reason}): give bpe, or a tokenizer.json "
                    "of the library tokenizers"
                ) from error
        numbered = sorted(self._library.get_vocab().items(), key=lambda item: item[1])
        self.names = tuple(name for name, _ in numbered)
        if [number for _, number in numbered] != list(range(len(numbered))):
            raise UserError(f"data.tokenizer={tokenizer}: its tokens must be numbered from 0 without gaps")

    def encode(self, text: str) -> Tensor:
        return self._packed(self._library.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._library.decode(list(tokens), skip_special_tokens=False)
