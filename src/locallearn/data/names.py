"""Surnames of 18 languages, letter by letter: which language is a name from?"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from locallearn.data.files import ALL_CHECKED, check_files
from locallearn.data.source import DataSource, Raw, with_fixed_test
from locallearn.errors import UserError
from locallearn.seeds import generator

ORIGIN = (
    "the folder names of https://download.pytorch.org/tutorial/data.zip, or data/names of "
    "github.com/spro/practical-pytorch at commit 5e79b65"
)
LETTERS = string.ascii_letters + " .,;'"
SUMS = {  # of github.com/spro/practical-pytorch at 5e79b652c199421f54e11534b6bdf6257637a49b, before names were mended
    "Arabic": "6f424a8dbe51cbbbabab7a57d38b617210125e4e3991f3c657cb79b8f104bafc",
    "Chinese": "49263ef55a8cb1740e841d65cad8214b2f9b5b869bc534c811746422496fa91e",
    "Czech": "145bbbd6d0816578f03388e92c264d39ef1c60df920b081d371fa5c5cc055a8e",
    "Dutch": "924f32b635170eae561f84538632138fc07d4c8bbd70ba3fb980de1ecc4d2af3",
    "English": "9cca037066d3d5989e24bc01801416162de506b5e28e15b7c092a47905d29bf2",
    "French": "81e65b36c60ed5b89a17422f6edcadbb89546f38ad69e960e64e7ba682012a95",
    "German": "7449cd590b97a733e18d613a4155decd77ec35dc5f8aadd7a82204dce4f051db",
    "Greek": "3555b5186de7f401e6d991b088e9e644ca3099116477818c25ab5793801389e6",
    "Irish": "cf8c7013256252a88d2503127b87282a11f21b2ff6db1bded68834c19a1ec058",
    "Italian": "f88414c27d0606a11a678b4859277828c2565d6cc4d9ee932deef6e94f3b35e4",
    "Japanese": "e0e717e114fec3e7eade4d9dabe0067c475f43147e36a22b47902ee76ad9e67f",
    "Korean": "cd54221ccb362a6cba4c78828838cf3268a0e59744767a37cf6ec4b74036b136",
    "Polish": "45bab898af2f60ed3a728bbf6980e28821011a7caa53227553b5785903a40826",
    "Portuguese": "50a8735f41f4f73757c8ce5b16cb0275cd86b2b214bcbc8c9805f508cb131c53",
    "Russian": "43b3e64ce351f77f1ac9e0cdf7566012d127f4371875fd25208845b5c9d6f7c3",
    "Scottish": "78d0252711d87d948ea86fe34826c51d2d794a8e52d15b5d6f7b6244d45d62dd",
    "Spanish": "1bcb462ed3316756a85781d68232bddae04498fdddd5d9219c53fd1fbdeba7a7",
    "Vietnamese": "f3f9e4164ab47601178a6e45b216464a64122f49d05541f24bf18a757253281d",
}


@dataclass(frozen=True)
class Names(DataSource):
    """20,074 surnames in 18 very unequal classes (9,408 Russian, 73 Vietnamese), as in PyTorch's char-RNN tutorial.

    A sample is float32 [T, 57], T the longest name: one-hot letters after ASCII folding, zeros on the left, so that
    the last step is the last letter. A fixed tenth of each class is the test set; it does not depend on the seed of a
    run. The tutorial's files are used as they are, with their 24 Russian lines "To The First Page".

    longest    letters that a name may have; None: any number
    longest_by  what is done with longer ones: drop leaves them out, cut leaves off the end
    per_class  this many different names of each language, drawn alike whatever the seed of a run; None: all
    """

    longest: Annotated[int, Ge(1)] | None = None
    longest_by: Literal["drop", "cut"] = "drop"
    per_class: Annotated[int, Ge(2)] | None = None

    name: ClassVar[str] = "names"
    verified: ClassVar[str] = ALL_CHECKED

    def read(self, device: torch.device) -> Raw:
        root = self.folder()
        sums = {f"names/{language}.txt": sha256 for language, sha256 in SUMS.items()}
        check_files(self.name, root, sums, ORIGIN)
        texts = [(root / file).read_text(encoding="utf-8") for file in sums]
        surnames = [[ascii_letters(line.strip()) for line in text.strip().split("\n")] for text in texts]
        surnames = [self._chosen(*each) for each in zip(SUMS, surnames, strict=True)]
        labels = torch.cat([torch.full((len(names),), label) for label, names in enumerate(surnames)])
        samples = encode([name for names in surnames for name in names])
        return with_fixed_test(self.name, tuple(SUMS), samples, labels, len(labels) // 10)

    def unread(self) -> Mapping[str, str]:
        return {**super().unread(), **({} if self.longest else {"longest_by": "data.longest=NUMBER"})}

    def _chosen(self, language: str, names: list[str]) -> list[str]:
        """Of the names of a language those that are asked for. Raises UserError where there are too few."""
        if self.longest_by == "cut":
            names = [name[: self.longest] for name in names]
        elif self.longest is not None:
            names = [name for name in names if len(name) <= self.longest]
        least = 2 if self.per_class is None else self.per_class
        names = names if self.per_class is None else [*dict.fromkeys(names)]
        if len(names) < least:
            letters = "" if self.longest is None else f" of at most data.longest={self.longest} letters"
            raise UserError(
                f"data.per_class={self.per_class}: {language} has {len(names)} different names{letters}; ask for fewer"
                if self.per_class
                else f"data.longest={self.longest}: {language} has {len(names)} names so short; allow more letters"
            )
        if self.per_class is None:
            return names
        order = torch.randperm(len(names), generator=generator(0, self.name, "per_class", language))
        return [names[i] for i in sorted(order[: self.per_class].tolist())]


def ascii_letters(name: str) -> str:
    """'Ślusàrski' -> 'Slusarski': accents are taken off, and what is not one of the 57 letters is left out."""
    return "".join(c for c in unicodedata.normalize("NFD", name) if c in LETTERS)


def encode(names: list[str]) -> Tensor:
    """One-hot letters [N, T, 57] with T the longest name, zeros on the left."""
    length = max(map(len, names))
    places = torch.tensor([[-1] * (length - len(name)) + [LETTERS.index(c) for c in name] for name in names])
    return (places[..., None] == torch.arange(len(LETTERS))).float()
