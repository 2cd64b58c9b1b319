"""What an s3:// URL names. Credentials are refused in it: URLs end up in configurations, records and logs.

Ours. The two options behind `?` are those of pyarrow, through which Ray reads the same URL.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import parse_qsl

from capsdist.errors import CapsdistError, DataError

__all__ = ["Place", "is_remote", "join"]

_OPTIONS = frozenset({"endpoint_override", "scheme", "region"})


@dataclass(frozen=True)
class Place:
    """A prefix in a bucket; `endpoint` and `region` None: what the environment says."""

    bucket: str
    prefix: str
    endpoint: str | None = None
    region: str | None = None

    @classmethod
    def parse(cls, url: str, *, error: type[CapsdistError] = DataError) -> Place:
        """Return what `url`, s3://bucket/prefix, names.

        The endpoint comes from AWS_ENDPOINT_URL or from `?endpoint_override=host:port&scheme=http`.

        Raises:
            error: another scheme, no bucket, credentials, an unknown option. No message repeats a credential.
        """
        address, _, query = url.partition("?")
        scheme, _, rest = address.partition("://")
        bucket, _, prefix = rest.rpartition("@")[2].partition("/")
        shown = f"{scheme}://{bucket}" + f"/{prefix}".rstrip("/")
        options = dict(parse_qsl(query, keep_blank_values=True))
        if scheme != "s3":
            raise error(f"{shown}: {scheme}:// is not supported; give an s3:// URL or a local path")
        if "@" in rest or {"access_key", "secret_key", "session_token"} & options.keys():
            raise error(
                f"{shown}: credentials do not belong in a URL; take them out and set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY"
            )
        if unknown := sorted(options.keys() - _OPTIONS):
            raise error(f"{shown}: unknown option {unknown[0]!r}; there are {', '.join(sorted(_OPTIONS))}")
        if not bucket or ":" in bucket:
            raise error(f"{shown}: does not name a bucket; write s3://bucket/prefix")
        endpoint = options.get("endpoint_override")
        if endpoint and "://" not in endpoint:
            endpoint = f"{options.get('scheme', 'https')}://{endpoint}"
        return cls(bucket, prefix.strip("/"), endpoint, options.get("region"))

    def key(self, name: str) -> str:
        """Return the key of the object `name` below the prefix."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Return whether `path` is a URL that leads to object storage, not into the local file system."""
    text = os.fspath(path)
    return "://" in text and not text.startswith("file://")


def join(root: str | os.PathLike[str], *parts: str) -> str:
    """Return `root`, a local path or a URL, continued by `parts`; options of a URL stay at its end.

    Use it in place of `Path(root, ...)`, which takes the second slash out of `s3://`.

    >>> join("s3://bucket/data?region=eu-west-1", "mnist", "train")
    's3://bucket/data/mnist/train?region=eu-west-1'
    """
    text = os.fspath(root)
    if "://" not in text:
        return os.path.join(text, *parts)
    address, mark, query = text.partition("?")
    return "/".join([address.rstrip("/"), *parts]) + mark + query
