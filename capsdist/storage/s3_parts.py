"""Files that are too large for one request to S3, in parts: each has a deadline and retries of its own.

A few parts at a time are in memory. Ranges have no checksum of S3's: whoever downloads compares a digest.
Limits of S3: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from capsdist.storage.s3_request import Operation

if TYPE_CHECKING:
    from s3fs import S3FileSystem

__all__ = ["PART_BYTES", "download", "upload"]

T = TypeVar("T")
PART_BYTES = 64 * 2**20  # larger files go in parts
_MOST_PARTS = 10_000
_AT_ONCE = 4


class Call(Protocol):
    """Sends a request within one deadline, tried again where that may help."""

    def __call__(self, operation: Operation[T], /) -> T: ...


def upload(call: Call, key: Mapping[str, str], path: Path) -> None:
    """Upload the file `path` to the object `key` in parts; the object appears with the last of them.

    A process that is killed leaves the parts: a lifecycle rule of the bucket can remove them.
    """
    size = path.stat().st_size
    target = {**key, "UploadId": call(_begin(key))}
    try:
        ranges = list(_ranges(size, max(PART_BYTES, -(-size // _MOST_PARTS))))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            put = functools.partial(_put, call, target, path)
            parts = list(pool.map(put, range(1, len(ranges) + 1), ranges))
        call(_complete(target, parts, size))
    except BaseException:
        with contextlib.suppress(Exception):  # the error that led here says more
            call(_request("abort_multipart_upload", **target))
        raise


def download(call: Call, key: Mapping[str, str], size: int, path: Path) -> None:
    """Download the object `key` of `size` bytes to the file `path`, in ranges.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("wb") as file:
        file.truncate(size)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        get = functools.partial(_get, call, key, path)
        list(pool.map(get, _ranges(size, PART_BYTES)))


def _ranges(size: int, step: int) -> Iterator[range]:
    return (range(begin, min(begin + step, size)) for begin in range(0, size, step))


def _request(method: str, **arguments: Any) -> Operation[dict[str, Any]]:
    async def send(store: S3FileSystem) -> dict[str, Any]:
        return await store._call_s3(method, **arguments)

    return send


def _begin(key: Mapping[str, str]) -> Operation[str]:
    async def begin(store: S3FileSystem) -> str:
        return (await store._call_s3("create_multipart_upload", **key))["UploadId"]

    return begin


def _put(call: Call, target: Mapping[str, str], path: Path, number: int, part: range) -> dict[str, Any]:
    """Upload the bytes `part` of the file; return what completes the upload: tag, and checksums if any."""
    with path.open("rb") as file:
        content = os.pread(file.fileno(), len(part), part.start)
    answer = call(_request("upload_part", **target, PartNumber=number, Body=content))
    checks = {name: value for name, value in answer.items() if name.startswith("Checksum")}
    return {"PartNumber": number, "ETag": answer["ETag"], **checks}


def _complete(target: Mapping[str, str], parts: list[dict[str, Any]], size: int) -> Operation[None]:
    async def complete(store: S3FileSystem) -> None:
        try:
            await store._call_s3("complete_multipart_upload", **target, MultipartUpload={"Parts": parts})
        except FileNotFoundError:  # no such upload: was the attempt before successful, its answer lost?
            key = {name: target[name] for name in ("Bucket", "Key")}
            with contextlib.suppress(FileNotFoundError):
                if (await store._call_s3("head_object", **key))["ContentLength"] == size:
                    return
            raise

    return complete


def _get(call: Call, key: Mapping[str, str], path: Path, part: range) -> None:
    async def get(store: S3FileSystem) -> bytes:
        answer = await store._call_s3("get_object", **key, Range=f"bytes={part.start}-{part.stop - 1}")
        try:
            if answer["ContentLength"] != len(part):  # not a range
                raise OSError(f"{answer['ContentLength']} bytes instead of {len(part)}")
            return await answer["Body"].read()
        finally:
            answer["Body"].close()

    content = call(get)
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), content, part.start)
