"""Names of ImageNet's classes, which files know by their WordNet number (wnid): n01440764."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

__all__ = ["class_names", "words_in"]

_LINE = re.compile(r"(n\d{8})[\t ](.+)")


def words_in(text: str) -> dict[str, str]:
    """Return the words of every wnid: lines of a wnid, a tab or space, and words with commas between them.

    words.txt, synset_words.txt and LOC_synset_mapping.txt have this form.
    """
    return {
        match[1]: match[2].strip() for line in text.splitlines() if (match := _LINE.fullmatch(line.strip()))
    }


def class_names(wnids: Iterable[str], words: Mapping[str, str]) -> tuple[str, ...]:
    """Return a name for each class: the first of its words; all of them where classes share the first.

    The wnid distinguishes classes of equal words (two kinds of crane) and names those without words.
    """
    wnids = list(wnids)
    shares = [words.get(wnid, wnid) for wnid in wnids]
    firsts = Counter(text.partition(",")[0] for text in shares)
    whole = [text if firsts[first] > 1 else first for text in shares for first in [text.partition(",")[0]]]
    repeated = Counter(whole)
    return tuple(
        f"{name} ({wnid})" if repeated[name] > 1 else name for wnid, name in zip(wnids, whole, strict=True)
    )
