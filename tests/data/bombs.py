"""Small files that claim or hold very much, and a program that reads them in a process of limited memory.

    python bombs.py FOLDER

prints a JSON object for each bomb: its name, the error that it ends with, memory in MiB and seconds.
"""

from __future__ import annotations

import io
import json
import resource
import struct
import sys
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from capsdist.data import Split, check_split, verify_split, write_split
from capsdist.data.decoding import decode_into, image_size
from capsdist.data.encoded.register import index_tars
from capsdist.data.format.packed import index_digest
from capsdist.errors import DataError

__all__ = ["BOMBS", "LIMIT_MIB", "LIMIT_S"]

LIMIT_MIB = 400
"""Memory that a bomb may take: the largest image that is read has 192 MiB."""
LIMIT_S = 60.0

FEW_ZEROS = zlib.compress(bytes(1 << 20))

Attack = Callable[[Path], object]


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, before: bytes = b"", bits: int = 8, colour: int = 2) -> bytes:
    """A PNG file with these compressed data, whatever the header states."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def deflated(num_mib: int) -> bytes:
    """Zeros of so many MiB as a zlib stream, made of one part that is repeated."""
    packer = zlib.compressobj(9)
    first = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + again * (num_mib - 1)


def saved(kind: str, size: tuple[int, int] = (16, 16), **options: object) -> bytes:
    """A grey image file of the format `kind`."""
    stream = io.BytesIO()
    Image.new("RGB", size, (90, 90, 90)).save(stream, kind, **options)
    return stream.getvalue()


def jpeg(height: int, width: int, scans: int) -> bytes:
    """A progressive JPEG file that states another size, with its first scan repeated."""
    content = saved("JPEG", progressive=True)
    frame, scan = content.index(b"\xff\xc2"), content.index(b"\xff\xda")
    end = content.index(b"\xff\xc4", scan)
    content = content[: frame + 5] + struct.pack(">HH", height, width) + content[frame + 9 :]
    return content[:scan] + content[scan:end] * scans + content[end:]


def gif(width: int, height: int) -> bytes:
    """A GIF file whose screen and frame have another size."""
    content, sides = saved("GIF"), struct.pack("<HH", width, height)
    frame = content.index(b"\x2c", 13)
    return content[:6] + sides + content[10 : frame + 5] + sides + content[frame + 9 :]


def webp(width: int, height: int) -> bytes:
    """An animated WebP file with a large canvas."""
    stream, frame = io.BytesIO(), Image.new("RGB", (16, 16))
    frame.save(stream, "WEBP", save_all=True, append_images=[Image.new("RGB", (16, 16), (9, 9, 9))])
    content = stream.getvalue()
    place = content.index(b"VP8X") + 12
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return content[:place] + sides + content[place + 6 :]


def ico(side: int) -> bytes:
    """An icon of 16 x 16 pixels with a larger PNG file inside."""
    inner = png(side, side, deflated(1))
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22) + inner


def tiff_tiles(side: int) -> bytes:
    """A TIFF file of 16 x 16 pixels in tiles of side x side, compressed by deflate."""
    data = deflated(64)
    entries = [(256, 4, 16), (257, 4, 16), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1),
               (322, 4, side), (323, 4, side), (324, 4, 200), (325, 4, len(data))]  # fmt: skip
    rows = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows + bytes(4)
    return head.ljust(200, b"\0") + data


def decoding(content: bytes) -> Attack:
    """Read an image file as packing and training do."""

    def attack(folder: Path) -> None:
        image_size(content)
        decode_into(content, np.empty((8, 8, 3), np.uint8))

    return attack


def header(name: str, size: int, kind: bytes) -> bytes:
    """A header of a tar file."""
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def pax(**values: str) -> bytes:
    """An extended header of a tar file."""
    content = b""
    for name, value in values.items():
        record = f" {name}={value}\n".encode()
        length = next(n for n in range(len(record), len(record) + 9) if len(str(n)) + len(record) == n)
        content += str(length).encode() + record
    return header("pax", len(content), tarfile.XHDTYPE) + content.ljust(-(-len(content) // 512) * 512, b"\0")


def indexing(content: bytes) -> Attack:
    """Index a foreign tar file."""

    def attack(folder: Path) -> None:
        (folder / "a.tar").write_bytes(content)
        index_tars(str(folder), warn=lambda text: None)

    return attack


def labelled(image: bytes, key: str = "a") -> bytes:
    """The members of a tar file with an image and its label."""
    members = {f"{key}.png": image, f"{key}.cls": b"0"}
    return b"".join(
        header(name, len(data), tarfile.REGTYPE) + data.ljust(-(-len(data) // 512) * 512, b"\0")
        for name, data in members.items()
    )


def large_block(folder: Path) -> None:
    """A zstd frame of 64 GiB, in a split whose index says that it is one block of so many images."""
    num = 1 << 22
    write_split(
        folder, np.zeros((2, 1, 128, 128), np.uint8), np.zeros(2, np.int64), classes=["a"],
        compression="zstd", block_size=2,
    )  # fmt: skip
    forge(folder, lambda index: large_index(index, num))
    for work in (lambda place: Split(place).gather(np.arange(2)), verify_split, check_split):
        work(folder)


def large_index(document: dict, num: int) -> None:
    """Say that there are `num` samples in the one block."""
    document |= {"num_samples": num, "block_size": num}
    document["shards"][0]["num_samples"] = document["shards"][0]["blocks"][0]["num_samples"] = num


def forge(folder: Path, change: Callable[[dict], None]) -> None:
    """Change an index, and its digest accordingly."""
    document = json.loads((folder / "index.json").read_text())
    document.pop("digest")
    change(document)
    (folder / "index.json").write_text(json.dumps({"digest": index_digest(document), **document}))


def large_sides(folder: Path) -> None:
    """A split of small images that are to be decoded to 4096 x 4096 pixels each, as its index says."""
    files = b"".join(labelled(saved("PNG"), key) for key in "bcdefgh")
    (folder / "a.tar").write_bytes(files + bytes(1024))
    index_tars(str(folder), warn=lambda text: None)

    def change(document: dict) -> None:
        document["image_shape"][1:] = document["shards"][0]["size"] = [4096, 4096]

    forge(folder, change)
    verify_split(folder)


BOMBS: dict[str, Attack] = {
    "png, stated size": decoding(png(60_000, 60_000, deflated(1))),
    "png, size of which Pillow warns": decoding(png(10_000, 10_000, deflated(1))),
    "png, too many data": decoding(png(16, 16, deflated(4096), bits=16)[:-30]),
    "png, text": decoding(png(16, 16, b"", chunk(b"zTXt", b"a\0\0" + deflated(2048)))),
    "png, many texts": decoding(png(16, 16, b"", chunk(b"zTXt", b"a\0\0" + FEW_ZEROS) * 900)),
    "png, profile": decoding(png(16, 16, b"", chunk(b"iCCP", b"a\0\0" + deflated(2048)))),
    "jpeg, stated size": decoding(jpeg(65_000, 65_000, 1)),
    "jpeg, scans": decoding(jpeg(8000, 8000, 2000)),
    "gif": decoding(gif(60_000, 60_000)),
    "webp": decoding(webp(60_000, 60_000)),
    "ico": decoding(ico(12_000)),
    "tiff, tiles": decoding(tiff_tiles(1 << 20)),
    "tar, extended header": indexing(header("pax", 8**11 - 1, tarfile.XHDTYPE) + bytes(2048)),
    "tar, long name": indexing(header("x", 1 << 60, tarfile.GNUTYPE_LONGNAME) + bytes(2048)),
    "tar, nested headers": indexing(
        (header("x", 5, tarfile.GNUTYPE_LONGNAME) + b"abcd".ljust(512, b"\0")) * 5000 + bytes(1024)
    ),
    "tar, backwards": indexing(
        pax(comment="x") + pax(size="-1536") + header("readme.md", 0, tarfile.REGTYPE) + bytes(1024)
    ),
    "tar, image": indexing(labelled(png(60_000, 60_000, deflated(1))) + bytes(1024)),
    "zstd, block": large_block,
    "index, sides": large_sides,
}  # fmt: skip
"""Each ends in a DataError, or reads an image of the stated size."""


def memory_mib() -> float:
    """The most memory that this process had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(root: Path) -> None:
    """Try every bomb; more than 4 GiB is refused by the system, so that a failing test harms nobody."""
    decode_into(saved("PNG"), np.empty((8, 8, 3), np.uint8))
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + (4 << 30), -1))
    before = memory_mib()  # the most that it ever had: a later bomb cannot show less
    for number, (name, attack) in enumerate(BOMBS.items()):
        folder = root / str(number)
        folder.mkdir()
        start, error = time.monotonic(), ""
        try:
            attack(folder)
        except DataError as found:
            error = str(found)
        except BaseException as found:
            error = f"not a DataError: {found!r}"
        taken = {"mib": memory_mib() - before, "seconds": time.monotonic() - start}
        print(json.dumps({"name": name, "error": error, **taken}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
