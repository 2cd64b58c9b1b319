"""Read members of tar and zip archives: by name, into memory, never onto disk."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from capsdist.data.format.tar_headers import TAR_ERRORS
from capsdist.data.sets import originals
from capsdist.data.sets.originals import opened
from capsdist.errors import DataError

__all__ = ["tar_members", "zip_member"]


def tar_members(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """Return the content of the files of a tar archive, packed by gzip or not, that have one of `names`.

    names: without folders; those that are not there are left out.

    Raises:
        DataError: an archive that cannot be read, or that unpacks to more than `originals.MAX_BYTES`.
    """
    found: dict[str, bytes] = {}
    try:
        with opened(path) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                if member.isfile() and name in names and (held := tar.extractfile(member)):
                    found[name] = held.read()
    except (*TAR_ERRORS, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason}); give the folder or the tar.gz") from None
    return found


def zip_member(file: BinaryIO, name: str, where: object) -> bytes | None:
    """Return the content of the file `name`, without folders, of an open zip archive; None if it has none.

    where: what errors call the archive. zipfile reads no more of a member than its header says.

    Raises:
        DataError: no zip archive, a damaged one, or a member of more than `originals.MAX_BYTES`.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = [one for one in archive.infolist() if PurePosixPath(one.filename).name == name]
            if not members:
                return None
            if members[0].file_size > originals.MAX_BYTES:
                raise DataError(
                    f"{where}: {name} has more than {originals.MAX_BYTES:,} bytes; get the original"
                )
            return archive.read(members[0])
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{where}: {name} cannot be read ({error}); get the archive again") from None
