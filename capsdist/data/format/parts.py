"""What packing has finished: an entry for each shard, so that it goes on where it was cut off.

The entries stay, so that a set whose originals have not changed is not made again.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

from pydantic import ConfigDict

from capsdist.data.format.folder import SplitFolder
from capsdist.data.format.index import Index, Shard
from capsdist.data.format.samples import Samples
from capsdist.errors import DocumentError
from capsdist.storage.documents import dump_json, parse_document, seal

__all__ = ["Parts"]


@dataclass(frozen=True)
class _Part:
    """An entry: the finished shard, and of which samples it was made."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    fingerprint: str
    shard: Shard


class Parts:
    """The finished shards of a split that is being packed; without `resume` none is known.

    Samples without a fingerprint have none: their shards are made again and compared.
    """

    def __init__(
        self, place: SplitFolder, index: Index, samples: Samples, shard_size: int, *, resume: bool
    ) -> None:
        self._place, self._resume = place, resume
        made_of = (samples.fingerprint, index.with_digest().digest, len(samples), shard_size)
        self._fingerprint = hashlib.sha256(repr(made_of).encode()).hexdigest() if samples.fingerprint else ""

    def finished(self, number: int) -> Shard | None:
        """Return shard `number` if it was finished from the same samples and is stored."""
        if not (self._fingerprint and self._resume):
            return None
        try:
            content = self._place.read_part(number)
            part = parse_document(content, _Part, sealed=True) if content is not None else None
        except DocumentError:
            return None
        if part is None or part.fingerprint != self._fingerprint or not self._place.holds(part.shard):
            return None
        return part.shard

    def finish(self, number: int, shard: Shard) -> None:
        """Note that shard `number` is stored."""
        if self._fingerprint:
            self._place.put_part(number, dump_json(seal(asdict(_Part(self._fingerprint, shard)))))
