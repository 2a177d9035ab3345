"""Whether a set is still the one that a run was trained on: a count of each part, and a checksum of all."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from locallearn.data.dataset import Data


@dataclass(frozen=True)
class Fingerprint:
    """The samples of each part, and one sum over what they are, which of them each part has, and their labels. The same
    for a folder in memory and one that is streamed, on every device, wherever the files lie."""

    train: int
    validation: int
    test: int
    checksum: str

    def same_parts(self, other: Fingerprint) -> bool:
        return (self.train, self.validation, self.test) == (other.train, other.validation, other.test)

    def change(self, now: Fingerprint) -> str:
        """What is not the same `now`, in words; an empty text if nothing is."""
        if self == now:
            return ""
        if self.same_parts(now):
            return "as many samples as before, but not the same files, values or labels"
        then = f"{self.train} training, {self.validation} validation and {self.test} test samples before"
        return f"{then}, {now.train}, {now.validation} and {now.test} now"


def fingerprint(data: Data) -> Fingerprint:
    """The set as it is now. Reads every sample in memory (1 GB/s), of image files names and sizes, and of a store
    without an `identity` number, shape and type."""
    splits = (data.train, data.validation, data.test)
    stores = {id(split.store): split.store for split in splits}  # training and validation samples lie in one
    digest = hashlib.sha256()
    for store in stores.values():
        own = getattr(store, "identity", None)
        digest.update(own() if own else repr((len(store), store.image, store.dtype)).encode())
    for numbers in (*(tensor for split in splits for tensor in (split.index, split.labels)), data.graph):
        if numbers is not None:
            digest.update(numbers.cpu().contiguous().numpy().data)
    return Fingerprint(len(data.train), len(data.validation), len(data.test), digest.hexdigest()[:32])
