"""Decode image files to pixels of one size: JPEG by simplejpeg, other formats by Pillow."""

from __future__ import annotations

import functools
import io
import warnings
from typing import TYPE_CHECKING

import numpy as np

from capsdist.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MAX_PIXELS", "decode_into", "image_size"]

MAX_PIXELS = 1 << 26
"""Limit of an image file, 8192 x 8192 pixels: it is compared before the pixels are unpacked."""

_MAX_SCAN_PIXELS = MAX_PIXELS << 4
"""Limit of the pixels of a JPEG file times its scans, each of which goes over all of them."""

_MODES = {1: "L", 3: "RGB"}
_RUNS_A_PROGRAM = {"EPS"}  # Ghostscript would run the file


def image_size(content: bytes) -> tuple[int, int]:
    """Return height and width of an image file, in pixels, without decoding it.

    Raises:
        DataError: why it is no image that can be read: damaged, or more than `MAX_PIXELS`.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            return _limited(image.height, image.width)
    except Exception as error:  # a damaged file raises nearly anything
        raise _no_image(error) from None


def decode_into(content: bytes, pixels: np.ndarray, *, of_this_size: bool = False) -> None:
    """Decode an image file into `pixels`, contiguous uint8 [H, W, C]: C = 1 is grey, 3 red, green and blue.

    An image of another size is scaled until it covers H x W, with a triangular filter that averages where it
    shrinks, and what is left over is cut off on both sides alike.

    of_this_size: the image is expected to have H x W pixels, which is faster if it is a JPEG file.

    Raises:
        DataError: it is no image, is damaged or cut, or has more than `MAX_PIXELS`.
    """
    try:
        if content[:3] == b"\xff\xd8\xff" and (
            (of_this_size and _decode_same(content, pixels)) or _decode_jpeg(content, pixels)
        ):
            return
        _decode_any(content, pixels)
    except Exception as error:  # a damaged file raises nearly anything
        raise _no_image(error) from None


def _decode_same(content: bytes, pixels: np.ndarray) -> bool:
    """Decode a JPEG file of the size of `pixels`; return False if it is none, or may be one that is refused.

    One call: threads that decode wait for each other between calls.
    """
    import simplejpeg

    height, width, channels = pixels.shape
    if len(content) * height * width > _MAX_SCAN_PIXELS:  # a scan has more than one byte
        return False
    try:
        found = simplejpeg.decode_jpeg(content, "GRAY" if channels == 1 else "RGB", buffer=pixels)
    except ValueError:  # of other sizes, or no JPEG file that it reads
        return False
    return found.shape[:2] == (height, width)


def _decode_jpeg(content: bytes, pixels: np.ndarray) -> bool:
    """Decode a JPEG file; return False for one that Pillow has to read: of four channels (CMYK)."""
    import simplejpeg

    height, width, channels = pixels.shape
    found_height, found_width, colours, _ = simplejpeg.decode_jpeg_header(content)
    found_height, found_width = _limited(int(found_height), int(found_width))
    if len(content) * found_height * found_width > _MAX_SCAN_PIXELS:  # a scan has more than one byte
        scans = content.count(b"\xff\xda")
        if scans * found_height * found_width > _MAX_SCAN_PIXELS:
            raise ValueError(f"it has {found_height} x {found_width} pixels in {scans} scans, fewer are read")
    if colours in ("CMYK", "YCCK"):
        return False
    colourspace = "GRAY" if channels == 1 else "RGB"
    if (found_height, found_width) == (height, width):
        simplejpeg.decode_jpeg(content, colourspace, buffer=pixels)
        return True
    # Photos shrink by eighths while they are decoded, which saves time; twice the size is left.
    least = {}
    if min(height, width) >= 8 and min(found_height // height, found_width // width) >= 4:
        least = {"min_height": 2 * height, "min_width": 2 * width}
    found = simplejpeg.decode_jpeg(content, colourspace, **least)
    sides = found_height, found_width
    eighths = next(n for n in range(1, 9) if tuple(-(-side * n // 8) for side in sides) == found.shape[:2])
    from PIL import Image

    image = Image.fromarray(found if channels == 3 else found[..., 0])
    _fit(image, pixels, (found_height * eighths / 8, found_width * eighths / 8))
    return True


def _decode_any(content: bytes, pixels: np.ndarray) -> None:
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=_formats()) as image:
        _limited(image.height, image.width)
        mode = _MODES[pixels.shape[2]]
        if image.mode.startswith(("I;16", "I")):  # 16 bits: the upper 8
            image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
        _fit(image.convert(mode), pixels)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return the formats of images that Pillow itself reads."""
    from PIL import Image

    # Printed by default; images of so many pixels are refused anyway, also those inside of other files.
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    Image.init()
    return tuple(name for name in Image.ID if name not in _RUNS_A_PROGRAM)


def _fit(image: Image.Image, pixels: np.ndarray, size: tuple[float, float] | None = None) -> None:
    """Scale and cut `image`, of the mode of `pixels`, to the size of `pixels`.

    size: height and width, in pixels, that hold the content of the image; None: all of it.
    """
    from PIL.Image import Resampling

    height, width, channels = pixels.shape
    if image.size != (width, height):
        full_height, full_width = size or (image.height, image.width)
        scale = min(full_height / height, full_width / width)
        # Rounding may lead outside by 1e-15, which Pillow refuses.
        left, top = max((full_width - width * scale) / 2, 0), max((full_height - height * scale) / 2, 0)
        right, bottom = min(left + width * scale, full_width), min(top + height * scale, full_height)
        box = (left, top, right, bottom)
        image = image.resize((width, height), Resampling.BILINEAR, box=box)
    pixels[:] = np.asarray(image).reshape(height, width, channels)


def _limited(height: int, width: int) -> tuple[int, int]:
    if not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"it has {height} x {width} pixels, at most {MAX_PIXELS:,} are read")
    return height, width


def _no_image(error: Exception) -> DataError:
    from PIL import UnidentifiedImageError

    reason = (
        "an unknown format" if isinstance(error, UnidentifiedImageError) else str(error).partition("\n")[0]
    )
    reason = reason or type(error).__name__
    return DataError(reason)
