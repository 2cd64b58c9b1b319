"""Parse URLs: a prefix in a bucket, or a local folder. Credentials in a URL are refused.

A URL is taken literally, as S3 tools do: `%20` in it is three characters. Ray has pyarrow decode it, so
Ray gets `Place.uri`; what no encoding makes equal for both is refused. The options behind `?` are those of
pyarrow. URLs end up in configurations, records and logs, hence no credentials.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from urllib.parse import parse_qsl, quote

from capsdist.errors import CapsdistError, DataError
from capsdist.storage.documents import printable

__all__ = [
    "Fault", "Place", "folder_and_name", "has_credentials", "in_uploaded_package", "is_remote", "is_url",
    "join", "url_fault",
]  # fmt: skip

_OPTIONS = frozenset({"endpoint_override", "scheme", "region"})
_SECRETS = frozenset({"access_key", "secret_key", "session_token"})
_BUCKET = re.compile(r"[A-Za-z0-9._-]+")
_CREDENTIALS = re.compile(r"([a-z0-9+.-]+://)?[^/?#]*@", re.IGNORECASE)
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


@dataclass(frozen=True)
class Fault:
    """What is wrong with a URL: as it may be shown, which rule it breaks, and what to do."""

    shown: str
    rule: str
    fix: str

    def __str__(self) -> str:
        """Return it as one line."""
        return f"{printable(self.shown)}: {self.rule}; {self.fix}"


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
            error: another scheme, no bucket, a prefix that Ray would read in another way, an unknown option;
                credentials in the URL or in the endpoint. No message repeats a credential.
        """
        if fault := url_fault(url):
            raise error(str(fault))
        if not url.startswith("s3://"):
            raise error(f"{url}: is no place in object storage; write s3://bucket/prefix")
        bucket, prefix, options = _parts(url)
        endpoint = options.get("endpoint_override")
        if endpoint and "://" not in endpoint:
            endpoint = f"{options.get('scheme', 'https')}://{endpoint}"
        return cls(bucket, prefix.strip("/"), endpoint, options.get("region"))

    @property
    def uri(self) -> str:
        """The URL that pyarrow, and so Ray, reads as this place."""
        options = []
        if self.endpoint:
            scheme, _, host = self.endpoint.partition("://")
            options += [f"endpoint_override={quote(host, safe='')}", f"scheme={quote(scheme, safe='')}"]
        if self.region:
            options.append(f"region={quote(self.region, safe='')}")
        address = f"s3://{self.bucket}/{quote(self.prefix)}".rstrip("/")
        return address + ("?" + "&".join(options) if options else "")

    def key(self, name: str) -> str:
        """Return the key of the object `name` below the prefix."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


def _parts(url: str) -> tuple[str, str, dict[str, str]]:
    """Return bucket, prefix and options of an s3:// URL."""
    address, _, query = url.partition("?")
    rest = address.partition("://")[2]
    bucket, _, prefix = (rest.rpartition("@")[2] if _names_user(rest) else rest).partition("/")
    return bucket, prefix, dict(parse_qsl(query, keep_blank_values=True))


def _names_user(rest: str) -> bool:
    """Return whether what follows :// begins with a user, or a key that may hold a slash, and an @."""
    first = rest.partition("/")[0]
    return "@" in first or ("@" in rest and not _BUCKET.fullmatch(first))


def url_fault(url: str) -> Fault | None:
    """Return why `url` cannot be used, None if it can; neither it nor the message repeats a credential.

    An s3:// URL needs a bucket, a prefix that all programs read alike, known options, and an endpoint, its
    own or the environment's, without credentials; a file:// URL an absolute path that needs no decoding.
    """
    scheme, _, rest = url.partition("?")[0].partition("://")
    bucket, prefix, options = _parts(url)
    shown = f"{scheme}://{bucket}" + f"/{prefix}".rstrip("/")
    keys = "take them out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if _names_user(rest) or _SECRETS & options.keys():
        return Fault(shown, "credentials do not belong in a URL", keys)
    if scheme == "file":
        if bucket or any(mark in url for mark in "%?#"):
            rule = "names a host, or has a character that programs read in several ways"
            return Fault(url.partition("?")[0], rule, "write the path without file://")
        return None
    if scheme != "s3":
        return Fault(shown, f"{scheme}:// is not supported", "give an s3:// URL or a local path")
    if unknown := sorted(options.keys() - _OPTIONS):
        return Fault(shown, f"unknown option {unknown[0]!r}", f"there are {', '.join(sorted(_OPTIONS))}")
    if not _BUCKET.fullmatch(bucket):
        return Fault(shown, "does not name a bucket", "write s3://bucket/prefix")
    if problem := _prefix_problem(prefix):
        return Fault(shown, *problem)
    endpoints = {"endpoint_override": options.get("endpoint_override")}
    for name, endpoint in (endpoints | {name: os.environ.get(name) for name in _ENDPOINTS}).items():
        if has_credentials(endpoint):
            return Fault(shown, f"{name} holds a user or a password, which do not belong there", keys)
    return None


def _prefix_problem(prefix: str) -> tuple[str, str] | None:
    names = prefix.strip("/").split("/") if prefix.strip("/") else []
    if prefix.startswith("/") or "" in names:
        return "has two slashes with nothing between them, which Ray reads as one", "write one"
    if {".", ".."} & set(names):
        return "has '.' or '..' as a name, which S3 takes literally", "write the prefix without it"
    if not prefix.isprintable():
        return "has a character that cannot be printed", "take it out"
    return None


def has_credentials(endpoint: str | None) -> bool:
    """Return whether the address of a server holds a user or a password."""
    return bool(endpoint and _CREDENTIALS.match(endpoint))


def in_uploaded_package(path: str) -> bool:
    """Return whether a local path leads into a folder to which Ray has uploaded the code of a job."""
    parts = Path(path).expanduser().resolve().parts
    return ("runtime_resources", "working_dir_files") in pairwise(parts)


def is_url(path: str) -> bool:
    """Return whether `path` is a URL, of object storage or of a file."""
    return "://" in path


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Return whether `path` is a URL that leads to object storage, not into the local file system."""
    text = os.fspath(path)
    return "://" in text and not text.startswith("file://")


def beside(place: str | os.PathLike[str], name: str) -> str:
    """Return the folder `name` beside `place`, a local path or a URL, whose options stay at its end.

    >>> beside("s3://bucket/data/mnist/train?region=eu-west-1", "test")
    's3://bucket/data/mnist/test?region=eu-west-1'
    """
    text = os.fspath(place)
    if "://" not in text:
        return os.path.join(os.path.dirname(os.path.abspath(text)), name)
    address, mark, query = text.partition("?")
    return f"{address.rstrip('/').rpartition('/')[0]}/{name}{mark}{query}"


def folder_and_name(file: str | os.PathLike[str]) -> tuple[str, str]:
    """Return the folder of `file`, a local path or a URL, and its name; options of a URL stay at the folder.

    >>> folder_and_name("s3://bucket/runs/mnist/evaluation.json?region=eu-west-1")
    ('s3://bucket/runs/mnist?region=eu-west-1', 'evaluation.json')
    """
    text = os.fspath(file)
    if "://" not in text:
        return os.path.dirname(text) or ".", os.path.basename(text)
    address, mark, query = text.partition("?")
    folder, _, name = address.rpartition("/")
    return f"{folder}{mark}{query}", name


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
