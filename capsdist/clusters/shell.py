"""Shell commands of a cluster file as words: enough to see what they install and how they start Ray."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

__all__ = ["option", "simple_commands"]

_OPERATORS = set("();<>|&")


def simple_commands(text: str) -> Iterator[list[str]]:
    """Yield the words of every simple command in a line of shell, split at `;`, `&&`, `|`, `(` and `>`.

    An unbalanced quote ends the search: the shell would refuse the line.
    """
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    try:
        for word in lexer:
            if set(word) <= _OPERATORS:
                yield words
                words = []
            else:
                words.append(word)
    except ValueError:
        return
    yield words


def option(words: list[str], name: str) -> str | None:
    """Return the value of `--name VALUE` or `--name=VALUE`, None without it."""
    for index, word in enumerate(words):
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
        if word == name and index + 1 < len(words):
            return words[index + 1]
    return None
