"""A copy of each record as TensorBoard event files under `tensorboard/` in the run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from locallearn.names import of_probe
from locallearn.runs.folder import RunFolder


class TensorBoardSink:
    """Numbers become scalars at their step; texts are left to the other records."""

    name = "TensorBoard"

    def __init__(self, folder: RunFolder) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder.path / "tensorboard"))  # writes from a thread of its own

    def log(self, record: Mapping[str, Any]) -> None:
        step = int(record.get("step", 0))
        for key, value in record.items():
            if key != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(key, value, step)

    def show(self, name: str, rows: Sequence[Mapping[str, Any]], pictures: Sequence[Path]) -> None:
        import numpy as np
        from PIL import Image

        for picture in pictures:
            with Image.open(picture, formats=["PNG"]) as image:
                pixels = np.asarray(image.convert("RGB"))  # [H, W, 3]
            self._writer.add_image(of_probe(name, picture.stem), pixels, dataformats="HWC")

    def close(self, status: str, summary: Mapping[str, Any]) -> None:
        self._writer.add_text("status", status)
        self._writer.close()
