"""Check that an index belongs to a packed split and is unaltered.

Shared by those who read the data (`capsdist.data`) and by `--check`, which imports no numpy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from capsdist.errors import DocumentError
from capsdist.storage.documents import parse_json

__all__ = [
    "ENCODED", "FORMAT", "IMAGE", "INDEX_NAME", "KEPT", "LABEL", "LABELS", "LOCATION", "MAX_INDEX_BYTES",
    "PARTS", "RECIPES", "SHARD_NAME", "TABLE_NAME", "TAR_NAME", "VERSION", "StoredFile", "check_unaltered",
    "format_of", "index_digest",
]  # fmt: skip

FORMAT = "capsdist-blocks"
ENCODED = "capsdist-encoded"
"""Format of a split of encoded images: see `capsdist.data.encoded`."""
VERSION = 2
RECIPES = "capsdist-recipes"
"""Format of splits that are made of another one; see `capsdist.data.recipes`."""
_READ = {FORMAT: (1, 2), ENCODED: (1,), RECIPES: (1,)}
INDEX_NAME = "index.json"
IMAGE = "image"
"""Name of the field with the pixels: uint8 [C, H, W]."""
LABEL = "label"
"""Name of the field with the class of an image: int64, 0 .. classes - 1."""
LABELS = "labels"
"""Name of the field with up to K classes of an image: int64 [K], -1 where there are fewer."""
PARTS = "parts"
"""Name under which recipes give the image of each label alone: uint8 [K, C, H, W]; no index has it."""
KEPT = "pack the set again, intact shards are kept"
MAX_INDEX_BYTES = 256 << 20
"""Limit of an index's size: about two million blocks, two billion images."""
SHARD_NAME = r"shard-[0-9]{5,9}\.tar"
"""Regular expression of a shard's name; nothing else is opened, written or removed."""
TAR_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.+@=-]{0,200}\.tar"
"""Regular expression of the name of a tar file of encoded images, which another program may have written."""
LOCATION = r"(/[^\x00-\x1f]*|s3://[^\x00-\x1f]*)?"
"""Regular expression of the place of tar files that do not lie beside their index."""
TABLE_NAME = r"table-[0-9]{5,9}\.npy"
"""Regular expression of the name of a table of encoded images."""

_SHOWN = 40  # characters of a value in a message


class StoredFile(Protocol):
    """A file of a split as its index names it."""

    @property
    def name(self) -> str:
        """Name inside the folder of the split."""
        ...

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        ...

    @property
    def sha256(self) -> str:
        """Checksum of the file, hex."""
        ...


def index_digest(values: Mapping[str, Any]) -> str:
    """Return the sha256 of the canonical JSON of an index without its digest: it names the data set."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def format_of(content: bytes) -> str:
    """Return what the index `content` gives as its format, "" if that is no text.

    Raises:
        DocumentError: it is no index.
    """
    name = _document(content)["format"]
    return name if isinstance(name, str) else ""


def check_unaltered(content: bytes, formats: Sequence[str] = (FORMAT,)) -> int:
    """Return the version of the index `content`, once it has one of `formats` and is what its digest says.

    Raises:
        DocumentError: it is not, or no JSON.
    """
    document = _document(content)
    version, name = document["version"], document["format"]
    known = isinstance(name, str) and name in formats
    if not known or isinstance(version, bool) or version not in _READ[name]:
        told = name if known else formats[0]
        raise DocumentError(
            f"has format {_shown(name)} version {_shown(version)}, this program reads "
            f"{told!r} version {' and '.join(map(str, _READ[told]))}"
        )
    digest = document.pop("digest", None)
    try:
        altered = digest != index_digest(document)
    except RecursionError:
        raise DocumentError("is nested too deeply") from None
    if altered:
        raise DocumentError("was altered, it does not match its own digest")
    return version


def _document(content: bytes) -> dict[str, Any]:
    document = parse_json(content, max_bytes=MAX_INDEX_BYTES)
    if not isinstance(document, dict) or not {"format", "version"} <= document.keys():
        raise DocumentError("is not an index of this project")
    return document


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int) else f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
