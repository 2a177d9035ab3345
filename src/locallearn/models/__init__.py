"""The model zoo: ordered lists of units with a head, which have no idea how they will be trained.

torchvision and timm are imported only when one of their models is asked for.
"""

from __future__ import annotations

from locallearn.models.base import BlockModel, UnitCost, answering, head_apart, measure
from locallearn.models.foreign import as_blocks

__all__ = ["BlockModel", "UnitCost", "answering", "as_blocks", "head_apart", "measure"]
