"""Read the JSON files of the project: untrusted bytes in, values of a declared shape or one error out.

A JSON file may be damaged by a disk, cut by a full one, or written by somebody else. `read_file` and the
parsers here refuse what Python's `json` passes silently: bytes that are not UTF-8, duplicate keys, NaN and
infinity, values of another type or outside their range, files that are not regular, and files of any size.
The caller decides what the error means: a damaged checkpoint is passed over, a damaged configuration is not.
"""

from __future__ import annotations

import functools
import json
import math
import os
import stat
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from capsdist.errors import DocumentError

if TYPE_CHECKING:  # loaded late: a machine that only writes records has none
    from pydantic import TypeAdapter

__all__ = [
    "MAX_BYTES", "dump_json", "open_file", "parse_document", "parse_json", "parse_lines", "printable",
    "read_file", "seal",
]  # fmt: skip

MAX_BYTES = 64 << 20
"""Default limit of a file's size, in bytes: 30 times the largest file that the project writes."""

T = TypeVar("T")
_SHOWN = 40  # characters of a value in a message
_SEAL = "crc32"


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Return the regular file at `path`, open for reading.

    Raises:
        FileNotFoundError: there is none.
        DocumentError: it is a folder or another special file, or cannot be opened.
    """
    try:
        # O_NONBLOCK: opening a named pipe must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(os.fspath(path)) from None
    except OSError as error:
        raise DocumentError(f"cannot be read ({error.strerror or error})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DocumentError("is not a regular file")
    return open(descriptor, "rb")


def read_file(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the content of the regular file at `path`.

    Raises:
        FileNotFoundError: there is none.
        DocumentError: it is a folder or another special file, is larger than `max_bytes`, or cannot be read.
    """
    with open_file(path) as file:
        try:
            content = file.read(max_bytes + 1)
        except OSError as error:
            raise DocumentError(f"cannot be read ({error.strerror or error})") from None
    _check_size(content, max_bytes)
    return content


def parse_json(content: bytes, *, max_bytes: int = MAX_BYTES) -> Any:
    """Return the value that `content`, a JSON document in UTF-8, holds.

    Raises:
        DocumentError: larger than `max_bytes`, empty, not UTF-8, not JSON, nested too deeply, with a
            duplicate key, or with a number that is not finite.
    """
    _check_size(content, max_bytes)
    if not content.strip():
        raise DocumentError("is empty")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DocumentError(f"is not UTF-8 at byte {error.start}") from None
    try:
        return json.loads(text, object_pairs_hook=_object, parse_float=_finite, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise DocumentError(f"is not JSON (line {error.lineno}: {error.msg})") from None
    except RecursionError:
        raise DocumentError("is nested too deeply") from None
    except ValueError as error:  # an integer of more digits than Python converts
        raise DocumentError(f"is not JSON ({_shortened(str(error))})") from None


def parse_document(content: bytes, shape: type[T], *, max_bytes: int = MAX_BYTES, sealed: bool = False) -> T:
    """Return `content` as a `shape`: a pydantic model, a dataclass, or any other type that pydantic knows.

    Types are strict: the text "3" is no number, and true is no integer. A checksum of `seal` is compared;
    `sealed`: it must be there.

    Raises:
        DocumentError: as `parse_json`; the checksum is another or missing; or fields are missing, unknown, of
            another type or out of range, all of them named.
    """
    from pydantic import ValidationError

    value = parse_json(content, max_bytes=max_bytes)
    if not isinstance(value, dict | list):
        raise DocumentError(f"holds {_shortened(json.dumps(value))} instead of an object")
    if isinstance(value, dict) and _SEAL in value:
        found = value.pop(_SEAL)
        if found != seal(value)[_SEAL]:
            raise DocumentError("was changed: its checksum is another")
        content = dump_json(value)
    elif sealed:
        raise DocumentError("has no checksum")
    try:
        return cast(T, _adapter(shape).validate_json(content, strict=True))
    except ValidationError as error:
        raise DocumentError(printable("; ".join(map(_fault, error.errors(include_url=False))))) from None


def parse_lines(content: bytes, shape: type[T], damaged: Callable[[int, DocumentError], None]) -> list[T]:
    """Return the lines of `content`, one JSON document each, as `shape`s.

    `damaged(number, error)` is called with each line, counted from 1, that holds none, and may raise. A last
    line without its end is a write that was cut; it is left out silently.
    """
    found: list[T] = []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            found.append(parse_document(line, shape))
        except DocumentError as error:
            damaged(number, error)
    return found


def dump_json(value: object, *, indent: int | None = 1) -> bytes:
    """Return `value` as a JSON document that `parse_document` reads, with a newline at its end.

    Bytes that are not UTF-8, which Python keeps in texts as lone surrogates, are escaped: a message may name
    a file of any name.

    Raises:
        ValueError: it holds NaN or infinity.
    """
    return (json.dumps(_escaped(value), indent=indent, allow_nan=False) + "\n").encode()


def printable(text: str) -> str:
    """Return `text` as part of a message: line breaks and what else cannot be printed are escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )


def seal(values: Mapping[str, object]) -> dict[str, Any]:
    """Return a JSON object with a checksum (CRC-32) of all its values, which `parse_document` compares.

    It finds damage, a changed digit for example, that leaves every value in its range; it proves no origin.
    """
    text = json.dumps(_escaped(values), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return {**values, _SEAL: zlib.crc32(text.encode())}


@functools.lru_cache(maxsize=64)
def _adapter(shape: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


def _escaped(value: object) -> Any:
    """Return `value` with lone surrogates, which pydantic refuses to read, as backslash escapes."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_escaped(key): _escaped(item) for key, item in value.items()}
    return [_escaped(item) for item in value] if isinstance(value, list | tuple) else value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise DocumentError(f"has the key {_shortened(key)!r} twice")
        found[key] = value
    return found


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise DocumentError(f"has the number {_shortened(text)}, which is not finite")
    return value


def _refuse(text: str) -> float:
    raise DocumentError(f"has the number {text}, which is not finite")


def _fault(fault: Any) -> str:
    where = ".".join(_shortened(str(part)) for part in fault["loc"]) or "document"
    if fault["type"] == "missing":
        return f"{where} is missing"
    if fault["type"] == "extra_forbidden":
        return f"{where} is not a field of this version"
    return f"{where}={_shortened(repr(fault['input']))}: {str(fault['msg']).lower()}"


def _check_size(content: bytes, max_bytes: int) -> None:
    if len(content) > max_bytes:
        raise DocumentError(f"is larger than {max_bytes:,} bytes")


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
