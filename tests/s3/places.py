"""Where a test keeps its objects on the S3 server of the session."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from seaweed import S3Server

BUCKET = "capsdist-tests"


@dataclass(frozen=True)
class Place:
    """A prefix of the server's bucket that no other test uses, and the cache that this test reads through."""

    server: S3Server
    url: str
    bucket: str
    prefix: str
    cache: Path

    def objects(self, below: str = "") -> dict[str, bytes]:
        """Return the objects whose names begin with `below` (at most 1,000), by name below the prefix."""
        found = self.server.objects(self.bucket, f"{self.prefix}/{below}")
        return {key.removeprefix(f"{self.prefix}/"): content for key, content in found.items()}

    def put(self, name: str, content: bytes) -> None:
        """Store an object behind the back of the code under test."""
        self.server.client().put_object(Bucket=self.bucket, Key=f"{self.prefix}/{name}", Body=content)

    def delete(self, name: str) -> None:
        """Delete an object behind the back of the code under test."""
        self.server.client().delete_object(Bucket=self.bucket, Key=f"{self.prefix}/{name}")
