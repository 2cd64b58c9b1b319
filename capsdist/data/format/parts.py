"""What packing has finished: an entry for each shard, so that it goes on where it was cut off.

The entries stay, so that a set whose originals have not changed is not made again.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from pydantic import ConfigDict

from capsdist.data.format.folder import SplitFolder
from capsdist.data.format.packed import StoredFile
from capsdist.errors import DocumentError
from capsdist.storage.documents import dump_json, parse_document, seal

__all__ = ["Parts"]


_Shard = TypeVar("_Shard", bound=StoredFile)


@dataclass(frozen=True)
class _Part(Generic[_Shard]):
    """An entry: the finished shard, and of which samples it was made."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    fingerprint: str
    shard: _Shard


class Parts(Generic[_Shard]):
    """The finished shards, of the type `kind`, of a split that is packed; without `resume` none is known.

    made_of: what changes when the samples or the way of packing do, the fingerprint of the samples first.
    Samples without a fingerprint have no entries: their shards are made again and compared.
    """

    def __init__(
        self,
        place: SplitFolder,
        kind: type[_Shard],
        made_of: tuple[str, *tuple[object, ...]],
        *,
        resume: bool,
    ) -> None:
        self._place, self._resume = place, resume
        self._type: Any = _Part[kind]  # type: ignore[valid-type]
        self._fingerprint = hashlib.sha256(repr(made_of).encode()).hexdigest() if made_of[0] else ""

    def finished(self, number: int) -> _Shard | None:
        """Return shard `number` if it was finished from the same samples and is stored."""
        if not (self._fingerprint and self._resume):
            return None
        try:
            content = self._place.read_part(number)
            part = parse_document(content, self._type, sealed=True) if content is not None else None
        except DocumentError:
            return None
        if part is None or part.fingerprint != self._fingerprint or not self._place.holds(part.shard):
            return None
        return part.shard

    def finish(self, number: int, shard: _Shard) -> None:
        """Note that shard `number` is stored."""
        if self._fingerprint:
            self._place.put_part(number, dump_json(seal(asdict(_Part(self._fingerprint, shard)))))
