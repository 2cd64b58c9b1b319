"""What went wrong with a request to object storage: in words, with a remedy, and whether trying again helps.

Ours. The codes are those of Amazon's S3 error list, which other servers answer with as well:
https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

from __future__ import annotations

from dataclasses import dataclass

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


_SECRET = "set AWS_SECRET_ACCESS_KEY to the secret of this access key"
_REGION = Reason("the bucket is in another region", "set AWS_DEFAULT_REGION to the bucket's region")
_CODES = {
    "NoSuchBucket": Reason("there is no such bucket", "create it, or correct its name"),
    "NoSuchKey": Reason("there is no such object", "correct the URL"),
    "404": Reason("there is no such object", "correct the URL"),
    "SignatureDoesNotMatch": Reason("the secret key is wrong (SignatureDoesNotMatch)", _SECRET),
    "InvalidAccessKeyId": Reason(
        "the access key is unknown to this server (InvalidAccessKeyId)", "set AWS_ACCESS_KEY_ID"
    ),
    "AccessDenied": Reason("access denied", "allow it to the key in AWS_ACCESS_KEY_ID, or use another one"),
    "AllAccessDisabled": Reason("all access to it is disabled", "ask its owner"),
    "403": Reason("access denied", "allow it to the key in AWS_ACCESS_KEY_ID, or use another one"),
    "ExpiredToken": Reason("the session token has expired", "renew the credentials"),
    "InvalidToken": Reason("the session token is wrong", "renew AWS_SESSION_TOKEN or unset it"),
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
_TYPES: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], Reason], ...] = (
    ((boto.NoCredentialsError, boto.PartialCredentialsError), _CREDENTIALS),
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
        known = _CODES.get(code) or _CODES.get(str(status))
        if known:
            return known
        final = 400 <= status < 500 and code not in ("RequestTimeout", "TooManyRequests")
        return Reason(f"the server answers {code}", "see the server's log", transient=not final)
    for kind, reason in _TYPES:
        if isinstance(error, kind):
            return reason
    line = next(iter(str(error).splitlines()), "")[:150]
    text = f"{type(error).__name__}: {line}" if line else type(error).__name__
    return Reason(text, "check the network and the server", transient=True)


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
