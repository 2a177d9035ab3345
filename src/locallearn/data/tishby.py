"""The 12-bit task on which the information plane of neural networks was first drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Interval

from locallearn.data.files import check_files
from locallearn.data.source import DataSource, Raw, with_fixed_test

FILE = "IDNNs/var_u.mat"
SHA256 = "0ba9551878a855396a8de0cbaae620788ede1e7b1eb2b8373bbe017d5ea02036"


@dataclass(frozen=True)
class Tishby(DataSource):
    """Every 12-bit pattern once, with one of two labels (Shwartz-Ziv & Tishby 2017): H(X) = 12 bits, H(Y) = 0.9992.

    Samples are the bits 0 and 1 as float32 [12], as in the authors' code. The file has no test part: a fixed share,
    class by class, is the test set; it does not depend on the seed of a run.

    test  share of the patterns that is tested on; 0.2 in the authors' code
    """

    name: ClassVar[str] = "tishby"
    verified: ClassVar[str] = "the file has the right checksum"

    test: Annotated[float, Interval(gt=0, lt=1)] = 0.2

    def read(self, device: torch.device) -> Raw:
        from scipy.io import loadmat

        root = self.folder()
        check_files(self.name, root, {FILE: SHA256}, f"data/var_u.mat of github.com/ravidziv/IDNNs as {FILE}")
        content = loadmat(root / FILE)
        patterns = torch.from_numpy(content["F"]).float()  # [4096, 12]
        labels = torch.from_numpy(content["y"][0]).long()  # [4096]
        return with_fixed_test(self.name, ("0", "1"), patterns, labels, round(self.test * len(labels)))
