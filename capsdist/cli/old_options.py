"""Options by the names of version 0.1, which are accepted with a notice until version 0.3."""

from __future__ import annotations

from collections.abc import Sequence

from capsdist.config.stored import RENAMED, SECTIONS
from capsdist.console import log

__all__ = ["with_new_names"]

_NEW = {
    f"--{section}.{old}".replace("_", "-"): f"--{section}.{new}".replace("_", "-")
    for section, names in RENAMED.items()
    for old, new in names.items()
}


_SECTIONS = {f"--{old}.": f"--{new}." for old, new in SECTIONS.items()}


def with_new_names(argv: Sequence[str]) -> list[str]:
    """Return the words of a command line with today's names of options; an old one gets a line on stderr."""
    words = []
    for word in argv:
        option, equals, value = word.partition("=")
        section, dot, field = option.partition(".")
        new = _NEW.get(option.replace("_", "-"))
        if section + dot in _SECTIONS:
            new = _SECTIONS[section + dot] + field
        if new:
            log(f"notice: {option} is now {new}; the old name ends with version 0.3")
            word = new + equals + value
        words.append(word)
    return words
