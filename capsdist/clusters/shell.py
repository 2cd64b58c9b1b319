"""Shell commands of a cluster file as words: enough to see what they install and how they start Ray."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator

from capsdist.clusters.walk import texts

__all__ = ["commands", "options"]

_OPERATORS = "();<>|&\n"
_MAX_LENGTH = 131_072  # of an argument in Linux: `bash -c` refuses more


def commands(document: object) -> Iterator[tuple[str, list[str]]]:
    """Yield the place and the words of every simple command in the texts of a document.

    Also yields those in a quoted word (`bash -c 'pip install x'`). Comments are left out. An unbalanced quote
    ends the search in its text: the shell would refuse it.
    """
    for field, text in texts(document):
        for words in _simple_commands(text) if len(text) < _MAX_LENGTH else ():
            yield field, words


def _simple_commands(text: str) -> Iterator[list[str]]:
    text = text.replace("\\\n", " ").replace("\n", "\n\n")  # a comment takes one end of line with it
    text = re.sub(r"(?<=[^\s;&|()])#", r"\\#", text)  # shlex would begin a comment within a word
    lexer = shlex.shlex(text, posix=True, punctuation_chars=_OPERATORS)
    lexer.whitespace, lexer.whitespace_split = " \t\r", True
    words: list[str] = []
    try:
        for word in lexer:
            if word and set(word) <= set(_OPERATORS):
                yield words
                words = []
                continue
            words.append(word)
            if re.search(r"\s", word):
                yield from _simple_commands(word)
    except ValueError:
        return
    yield words


def options(words: list[str], name: str) -> list[str]:
    """Return the values of all `--name VALUE` and `--name=VALUE`."""
    separate = [value for word, value in itertools.pairwise(words) if word == name]
    return separate + [word.partition("=")[2] for word in words if word.startswith(f"{name}=")]
