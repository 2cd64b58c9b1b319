"""Was a secret written anywhere? Searched in every form in which programs write one."""

from __future__ import annotations

import base64
import gzip
import io
import urllib.parse
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path


def forms(secret: str) -> set[bytes]:
    """Return `secret` as it may stand in a file: plain, for URLs, base64 at any offset, UTF-16, hex."""
    plain = secret.encode()
    shifted = {base64.b64encode(b"\0" * skip + plain)[4 if skip else 0 : -4] for skip in range(3)}
    url = urllib.parse.quote(secret, safe="").encode()
    return {plain, url, secret.encode("utf-16-le"), plain.hex().encode(), *shifted}


def contents(path: Path) -> Iterator[bytes]:
    """Yield the content of a file, and what is packed in it."""
    content = path.read_bytes()
    yield content
    if content[:2] == b"\x1f\x8b":
        yield gzip.decompress(content)
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            yield from map(archive.read, archive.namelist())


def holding(secret: str, folders: Iterable[Path], objects: dict[str, bytes] | None = None) -> list[str]:
    """Return the files below `folders`, and the names of `objects`, that hold `secret` in any form.

    objects: content by name, such as everything in a bucket.
    """
    wanted = forms(secret)
    found = [
        str(path)
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file() and any(form in content for content in contents(path) for form in wanted)
    ]
    return found + [
        name for name, content in (objects or {}).items() if any(form in content for form in wanted)
    ]
