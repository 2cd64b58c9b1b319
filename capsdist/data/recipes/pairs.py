"""Which images are paired, and how they are shifted: a pure function of (seed, base split, sample id).

The statistics are those of the authors' generator (research/capsules of tensorflow/models): each digit is the
lower one of `partners` pairs and has one shift in all of them; its partners are drawn from the digits of the
other classes, all alike, none twice; each partner has a shift of its own; each shift is drawn from
-shift .. shift, in both directions, all alike. That generator stores what it has drawn; here every sample can
be computed by itself, so that nothing is stored and any order of samples costs the same.

Numbers: with G = 0x9E3779B97F4A7C15 and mix the finaliser of splitmix64 (Steele, Lea, Flood 2014), number
`draw` of counter c is mix(c * G + mix(key + draw * G)), modulo 2^64; the key is the xxh3_64 of
"recipes/SEED/DIGEST OF THE BASE". Of counter d, draw 0 is the shift of digit d as the lower one, and draw 1
the key of the order of its partners; of counter d * 2^32 + p, draw 2 is the shift of its partner p. A number
x below n is (x / 2^32) * n / 2^32, rounded down each time.
"""

from __future__ import annotations

import numpy as np
import xxhash

from capsdist.data.recipes.index import RecipeIndex
from capsdist.errors import DataError

__all__ = ["Pairs", "permuted"]

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_LOWER, _ORDER, _PARTNER = 0, 1, 2  # draws
_ROUNDS = 6


class Pairs:
    """The pairs of `index`, whose digits have the classes `labels`, int64 [num_digits].

    Raises:
        DataError: there are fewer digits of other classes than partners.
    """

    def __init__(self, index: RecipeIndex, labels: np.ndarray) -> None:
        self._index, self._labels = index, labels
        self._key = xxhash.xxh3_64_intdigest(f"recipes/{index.seed}/{index.base.digest}".encode())
        self._by_class = np.argsort(labels, kind="stable")
        self._counts = np.bincount(labels, minlength=index.num_classes)
        self._starts = np.cumsum(self._counts) - self._counts
        most = int(self._counts.argmax())
        if (others := len(labels) - int(self._counts[most])) < index.partners:
            raise DataError(
                f"partners={index.partners}, but only {others} of the {len(labels)} images are of other "
                f"classes than {index.classes[most]!r}; pack with fewer partners"
            )

    def of(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what the samples `ids` [n] are made of.

        Places of the digits among those used, int64 [n, 2], the lower one first; and their shifts in pixels,
        down and right, int64 [n, 2, 2].
        """
        partner, lower = np.divmod(ids, self._index.num_digits)
        digit = (lower + self._index.base.first).astype(np.uint64)
        pair = (digit << np.uint64(32)) + partner.astype(np.uint64)
        label = self._labels[lower]
        place = permuted(partner, len(self._labels) - self._counts[label], self._numbers(_ORDER, digit))
        # Digits sorted by class without those of the own class, which stand together.
        place += np.where(place >= self._starts[label], self._counts[label], 0)
        digits = np.stack([lower, self._by_class[place]], axis=1)
        return digits, np.stack([self._shifts(_LOWER, digit), self._shifts(_PARTNER, pair)], axis=1)

    def _shifts(self, draw: int, counters: np.ndarray) -> np.ndarray:
        """Return shifts down and right, int64 [n, 2]: of the upper and lower half of one number each."""
        numbers, sides = self._numbers(draw, counters), np.uint64(2 * self._index.shift + 1)
        drawn = np.stack([_below(numbers, sides), _below(numbers << np.uint64(32), sides)], axis=1)
        return drawn.astype(np.int64) - self._index.shift

    def _numbers(self, draw: int, counters: np.ndarray) -> np.ndarray:
        start = np.array([(self._key + draw * _GOLDEN) & _MASK], np.uint64)
        return _mix(counters * np.uint64(_GOLDEN) + _mix(start))


def permuted(places: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return places int64 [n], each under a permutation of 0 .. size - 1 that its key names.

    places, sizes: int64 [n], 0 <= place < size < 2^32; keys: uint64 [n]. An alternating Feistel network on a
    grid of just over `size` cells (Black, Rogaway 2002, "Ciphers with arbitrary finite domains"): of row and
    column, in turn, a number that the other one and the key name is added to one, modulo their count. A place
    that leaves 0 .. size - 1 goes on until it is back.
    """
    size = sizes.astype(np.uint64)
    columns = np.ceil(np.sqrt(sizes)).astype(np.uint64)
    rows = (size + columns - np.uint64(1)) // columns
    found = _rounds(places.astype(np.uint64), rows, columns, keys)
    while (outside := np.flatnonzero(found >= size)).size:
        found[outside] = _rounds(found[outside], rows[outside], columns[outside], keys[outside])
    return found.astype(np.int64)


def _rounds(places: np.ndarray, rows: np.ndarray, columns: np.ndarray, keys: np.ndarray) -> np.ndarray:
    row, column = np.divmod(places, columns)
    for number in range(_ROUNDS):
        kept, changed, limit = (row, column, columns) if number % 2 == 0 else (column, row, rows)
        state = (kept + np.uint64(number << 32)) * np.uint64(_GOLDEN) + keys
        changed += _below(_mix(state), limit)  # in place: row or column
        changed -= np.where(changed >= limit, limit, np.uint64(0))
    return row * columns + column


def _below(numbers: np.ndarray, limit: np.ndarray | np.uint64) -> np.ndarray:
    """Return a number below `limit`, at most 2^32, of the upper half of each of `numbers`, uint64."""
    return ((numbers >> np.uint64(32)) * limit) >> np.uint64(32)


def _mix(value: np.ndarray) -> np.ndarray:
    """Return splitmix64's finaliser of uint64 `value`."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
