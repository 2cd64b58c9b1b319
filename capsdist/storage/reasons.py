"""Explain a failed request to object storage: reason, remedy, and whether a retry may help.

The codes are those of Amazon's S3 error list, which other servers answer with as well:
https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import botocore.exceptions as boto

__all__ = ["Damaged", "Reason", "explain", "is_damaged", "is_missing", "is_taken"]


class Damaged(Exception):
    """An object arrived whole but is not what its checksum says."""


@dataclass(frozen=True)
class Reason:
    """Why a request failed, and what to do; transient: trying again may help."""

    text: str
    remedy: str
    transient: bool = False


_KEY, _SECRET, _TOKEN = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"
_REGION = Reason("the bucket is in another region", "set AWS_DEFAULT_REGION to the bucket's region")
_CODES = {
    "NoSuchBucket": Reason("there is no such bucket", "create it, or correct its name"),
    "NoSuchKey": Reason("there is no such object", "correct the URL"),
    "404": Reason("there is no such object", "correct the URL"),
    "NoSuchUpload": Reason("its upload in parts was ended by another program", "start it again"),
    "SignatureDoesNotMatch": Reason(
        "the secret key is wrong (SignatureDoesNotMatch)", f"set {_SECRET} to the secret of this access key"
    ),
    "InvalidAccessKeyId": Reason(
        "the access key is unknown to this server (InvalidAccessKeyId)", f"set {_KEY}"
    ),
    "AccessDenied": Reason("access denied", f"allow it to the key in {_KEY}, or use another one"),
    "AllAccessDisabled": Reason("all access to it is disabled", "ask its owner"),
    "403": Reason("access denied", f"allow it to the key in {_KEY}, or use another one"),
    "ExpiredToken": Reason("the session token has expired", f"renew {_KEY}, {_SECRET} and {_TOKEN}"),
    "InvalidToken": Reason("the session token is wrong", f"renew {_TOKEN}, or unset it for a permanent key"),
    "RequestTimeTooSkewed": Reason("the clock of this machine is wrong", "set the clock"),
    "PermanentRedirect": _REGION,
    "301": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "InvalidBucketName": Reason("this is not a bucket name", "correct its name"),
    "PreconditionFailed": Reason("it exists already", "delete it first"),
}
_UNREACHABLE = Reason("cannot be reached", "check AWS_ENDPOINT_URL and the network", transient=True)
_SILENT = Reason("the server does not answer", "check AWS_ENDPOINT_URL and the server", transient=True)
_DAMAGED = Reason(
    "its content does not have its checksum",
    "delete this object and write it again, unless the network damages it",
    transient=True,
)
_CREDENTIALS = Reason(
    "no credentials found",
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine an instance profile",
)
_OF_KEYS = frozenset(
    {"SignatureDoesNotMatch", "InvalidAccessKeyId", "AccessDenied", "403", "ExpiredToken", "InvalidToken"}
)
_AS_SAID = ""  # the error's own words name a profile or a file, and no secret
_LOGIN = Reason(
    "the login has expired", "log in again (`aws sso login`), or set AWS_PROFILE to another profile"
)
_TYPES: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], Reason], ...] = (
    ((boto.NoCredentialsError, boto.PartialCredentialsError), _CREDENTIALS),
    (boto.ProfileNotFound, Reason(_AS_SAID, "correct or unset AWS_PROFILE")),
    ((boto.ConfigParseError, boto.ConfigNotFound), Reason(_AS_SAID, "correct that file")),
    ((boto.SSOError, boto.TokenRetrievalError), _LOGIN),
    (boto.CredentialRetrievalError, _CREDENTIALS),
    (boto.NoRegionError, _REGION),
    (boto.ParamValidationError, _CODES["InvalidBucketName"]),
    (
        boto.SSLError,
        Reason("does not speak TLS as expected", "check https:// or http:// in AWS_ENDPOINT_URL"),
    ),
    (boto.ConnectTimeoutError, _UNREACHABLE),
    (boto.ReadTimeoutError, _SILENT),
    (boto.EndpointConnectionError, _UNREACHABLE),
    (TimeoutError, _SILENT),
)


def explain(error: BaseException) -> Reason:
    """Return what `error`, raised by botocore, aiobotocore or s3fs, means.

    What is not known to be final counts as transient: cut connections, damaged bytes, overloaded servers.
    """
    if is_damaged(error):
        return _DAMAGED
    if code := _code(error):
        status = _status(error)
        for name in (code, str(status)):
            if known := _CODES.get(name):
                return replace(known, remedy=_remedy_for_keys(known.remedy)) if name in _OF_KEYS else known
        final = 400 <= status < 500 and code not in ("RequestTimeout", "TooManyRequests")
        return Reason(f"the server answers {code}", "see the server's log", transient=not final)
    for kind, reason in _TYPES:
        if isinstance(error, kind):
            return replace(reason, text=str(error)) if reason.text == _AS_SAID else reason
    line = next(iter(str(error).splitlines()), "")[:150]
    text = f"{type(error).__name__}: {line}" if line else type(error).__name__
    return Reason(text, "check the network and the server", transient=True)


def _remedy_for_keys(remedy: str) -> str:
    """Return `remedy` for the place that the keys come from: it names the environment's variables."""
    if _KEY not in os.environ:
        if profile := os.environ.get("AWS_PROFILE"):
            return (
                f"correct the keys of profile {profile!r} in ~/.aws/credentials, or set another AWS_PROFILE"
            )
        return "correct the keys in ~/.aws/credentials or those of the instance profile"
    if os.environ.get(_TOKEN) and _TOKEN not in remedy:
        return f"{remedy}; {_TOKEN} is set, and has to be of the same login, or unset for a permanent key"
    if os.environ[_KEY].startswith("ASIA") and _TOKEN not in os.environ:  # a temporary key of Amazon's
        return f"{remedy}; this key is a temporary one and needs its {_TOKEN} as well"
    return remedy


def is_damaged(error: BaseException) -> bool:
    """Return whether `error` says that other bytes arrived than were once written."""
    return isinstance(error, Damaged | boto.FlexibleChecksumError)


def is_missing(error: BaseException) -> bool:
    """Return whether `error` says that there is no such object in an existing bucket."""
    return _code(error) in ("NoSuchKey", "404")


def is_taken(error: BaseException) -> bool:
    """Return whether `error` says that a conditional write found an object already there."""
    return _code(error) in ("PreconditionFailed", "412")


def _response(error: BaseException) -> dict[str, dict[str, object]]:
    cause = error if isinstance(error, boto.ClientError) else error.__cause__  # s3fs translates to OSError
    return getattr(cause, "response", None) or {}


def _code(error: BaseException) -> str:
    return str(_response(error).get("Error", {}).get("Code", ""))


def _status(error: BaseException) -> int:
    return int(str(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)))
