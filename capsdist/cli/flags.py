"""Options of booleans: `--section.field false` means the same as `--section.no-field`."""

from __future__ import annotations

from collections.abc import Sequence

from capsdist.config import Config

__all__ = ["with_flags"]

_VALUES = {"true": "", "false": "no-"}


def with_flags(argv: Sequence[str], base: Config) -> list[str]:
    """Return `argv` in which true and false after an option of a boolean field of `base` are flags."""
    booleans = {
        f"--{section}.{name}"
        for section in Config.model_fields
        for name, field in getattr(type(getattr(base, section)), "model_fields", {}).items()
        if field.annotation is bool
    }
    words, found = list(argv), []
    while words:
        word = words.pop(0)
        name, mark, value = word.partition("=")
        if not mark and words:
            value = words[0]
        if name.replace("-", "_").replace("__", "--", 1) in booleans and value.lower() in _VALUES:
            if not mark:
                words.pop(0)
            section, _, field = name.partition(".")
            word = f"{section}.{_VALUES[value.lower()]}{field}"
        found.append(word)
    return found
