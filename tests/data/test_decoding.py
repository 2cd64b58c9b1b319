"""Image files become pixels of one size: held against Pillow; damaged and oversized ones are one line."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from bombs import jpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from capsdist.data.decoding import decode_into, image_size
from capsdist.errors import DataError
from limits import within


def smooth(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    """An image that JPEG keeps nearly as it is."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (3, 3, channels), dtype=np.uint8)
    image = Image.fromarray(small if channels == 3 else small[..., 0])
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).reshape(
        height, width, channels
    )


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])
    image.save(stream, kind, **options)
    return stream.getvalue()


def decoded(content: bytes, height: int, width: int, channels: int) -> np.ndarray:
    pixels = np.full((height, width, channels), 7, np.uint8)
    decode_into(content, pixels)
    return pixels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("size", [(5, 9), (64, 64), (33, 17)])
def test_an_image_of_the_size_that_is_asked_for(kind, size, channels):
    pixels = smooth(*size, channels)
    content = encoded(
        pixels, kind, **({"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0})
    )
    assert image_size(content) == size
    found = decoded(content, *size, channels)
    assert np.abs(found.astype(int) - pixels).max() <= (6 if kind == "JPEG" else 0)


@pytest.mark.parametrize(("kind", "tolerance"), [("PNG", 1), ("JPEG", 8)])
@pytest.mark.parametrize("size", [(40, 31), (31, 40), (300, 211), (9, 8), (64, 7)])
@pytest.mark.parametrize("wanted", [(16, 16), (20, 11), (1, 1)])
def test_another_size_covers_and_is_cut_alike_on_both_sides(kind, tolerance, size, wanted):
    pixels = smooth(*size, 3)
    scale = min(size[0] / wanted[0], size[1] / wanted[1])
    cut = wanted[1] * scale, wanted[0] * scale
    left, top = (size[1] - cut[0]) / 2, (size[0] - cut[1]) / 2
    box = (left, top, left + cut[0], top + cut[1])
    content = encoded(pixels, kind, quality=100, subsampling=0)
    expected = Image.open(io.BytesIO(content)).resize(wanted[::-1], Image.Resampling.BILINEAR, box=box)
    found = decoded(content, *wanted, 3)
    assert np.abs(found.astype(int) - np.asarray(expected)).max() <= tolerance


def test_modes_that_are_not_grey_or_rgb():
    rgb = Image.fromarray(smooth(12, 10, 3))
    grey = np.asarray(rgb.convert("L"))[..., None]
    for mode, kind in (("RGBA", "PNG"), ("P", "PNG"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("LA", "PNG")):
        stream = io.BytesIO()
        rgb.convert(mode).save(stream, kind)
        assert np.abs(decoded(stream.getvalue(), 12, 10, 1).astype(int) - grey).max() <= 24, mode
    stream = io.BytesIO()
    Image.fromarray(grey[..., 0].astype(np.uint16) * 257).save(stream, "PNG")
    assert np.array_equal(decoded(stream.getvalue(), 12, 10, 1), grey)


def bomb(width: int, height: int) -> bytes:
    """A small PNG file whose header states a large image."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(9)))
        + chunk(b"IEND", b"")
    )


def large_jpeg() -> bytes:
    content = bytearray(encoded(smooth(16, 16, 3), "JPEG"))
    place = content.index(b"\xff\xc0")
    content[place + 5 : place + 9] = struct.pack(">HH", 65000, 65000)
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [bomb(60000, 60000), bomb(0, 5), large_jpeg(), b"", b"GIF89a", b"\xff\xd8\xff", b"<svg/>", bytes(99)],
)
def test_bombs_and_what_is_no_image(content):
    with pytest.raises(DataError) as caught:
        decoded(content, 8, 8, 3)
    assert "\n" not in str(caught.value)


def test_a_jpeg_file_has_few_scans_for_its_size():
    """Every scan goes over all pixels: about 10 are usual, also of a photograph of the largest size."""
    pixels = smooth(40, 48, 3)
    whole = decoded(encoded(pixels, "JPEG", quality=95, subsampling=0), 40, 48, 3).astype(int)
    found = decoded(encoded(pixels, "JPEG", quality=95, subsampling=0, progressive=True), 40, 48, 3)
    assert np.abs(found - whole).max() <= 2
    with pytest.raises(DataError, match=r"it has 8000 x 8000 pixels in \d+ scans, fewer are read"):
        decoded(jpeg(8000, 8000, 100), 8, 8, 3)


@pytest.mark.parametrize("num_cases", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_files_are_decoded_or_refused_in_one_line(num_cases):
    files = {kind: encoded(smooth(20, 15, 3), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")}

    @settings(max_examples=num_cases, deadline=None)
    @given(data=st.data())
    def every(data: st.DataObject) -> None:
        content = bytearray(files[data.draw(st.sampled_from(list(files)))])
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        sides = data.draw(st.sampled_from([(20, 15), (8, 8)]))
        for read in (image_size, lambda content: decoded(content, *sides, 3)):
            told = "one line"
            try:
                with within(60):
                    read(bytes(content))
            except DataError as error:  # any other error fails
                told = str(error)
            assert len(told.splitlines()) == 1

    every()


@pytest.mark.parametrize("wanted", [(7, 23), (16, 16), (5, 3)])
def test_every_small_size_is_fitted(wanted):
    """Rounding once led outside of 243 of these images by 1e-15, for example 9 x 27 to 7 x 23."""
    for height in range(1, 41):
        for width in range(1, 41):
            grey = np.full((height, width, 1), 90, np.uint8)
            assert (decoded(encoded(grey, "BMP"), *wanted, 1) == 90).all()


def test_a_file_that_a_program_would_have_to_run_is_refused():
    """Pillow gives PostScript to Ghostscript, whatever the name of the file says."""
    content = encoded(np.full((4, 5, 3), 90, np.uint8), "EPS")
    for read in (image_size, lambda content: decoded(content, 4, 5, 3)):
        with pytest.raises(DataError, match="an unknown format"):
            read(content)
