"""From one image file to pixels: upright, on white where it is transparent, in colour, square."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from locallearn.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Only these decoders of Pillow look into a file, whatever its name: others run programs (PostScript)."""
TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")


def read_image(path: Path, size: int) -> Tensor:
    """One file -> uint8 [3, size, size]: in colour, the shorter side scaled to `size`, the middle cut out.

    It is turned as its EXIF orientation says; what is transparent lies on white; of several frames or pages the first
    is taken; CMYK becomes RGB without a colour profile, and 16 bits of a colour their upper 8. Raises UserError that
    names the file, also for grey of more than 8 bits, whose range nothing tells.
    """
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        if not path.is_file():  # reading a pipe would wait for ever
            raise ValueError("it is gone, or no file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of palettes with transparency, of very large images
            with Image.open(path, formats=FORMATS) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"it has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits")
                fitted = ImageOps.fit(_opaque(_upright(image)), (size, size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).contiguous()
    except Exception as error:  # Pillow raises whatever its readers raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = f"it is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"
        raise UserError(f"cannot read the image {path} ({reason}); replace it or take it out of the folder") from error


def _upright(image: Image) -> Image:
    """The picture as a viewer shows it."""
    from PIL.ImageOps import exif_transpose

    image.load()
    try:
        return exif_transpose(image)
    except Exception:  # a damaged EXIF block tells nothing, and viewers show the picture as it lies
        return image


def _opaque(image: Image) -> Image:
    """The picture in RGB, laid on white: under what is transparent a file holds any colour."""
    from PIL.Image import alpha_composite, new

    if image.mode not in TRANSPARENT and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema() != (255, 255):
        image = alpha_composite(new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
