"""What recipes make: pixels, labels, pairs and shifts, against slow references and the authors' rules."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import xxhash
from recipe_sets import make_recipes

from capsdist.data.format.source import open_split
from capsdist.data.recipes.index import Base, RecipeIndex, recipe_fields
from capsdist.data.recipes.overlay import Frames
from capsdist.data.recipes.pairs import Pairs, permuted

# ---- pixels


def placed(digit: np.ndarray, pad: int, shift: np.ndarray) -> np.ndarray:
    """The digit [C, H, W] padded and shifted, a pixel at a time."""
    channels, height, width = digit.shape
    canvas = np.zeros((channels, height + 2 * pad, width + 2 * pad), np.uint8)
    for channel, row, column in itertools.product(*map(range, digit.shape)):
        y, x = row + pad + shift[0], column + pad + shift[1]
        if 0 <= y < canvas.shape[1] and 0 <= x < canvas.shape[2]:
            canvas[channel, y, x] = digit[channel, row, column]
    return canvas


SIZES = [((1, 7, 7), 2, 2), ((1, 6, 9), 1, 3), ((3, 5, 4), 0, 4), ((2, 4, 4), 3, 0), ((1, 1, 1), 1, 1)]


@pytest.mark.parametrize(("shape", "pad", "shift"), SIZES)
@pytest.mark.parametrize("num", [1, 130])
def test_pixels_are_those_of_the_reference(shape, pad, shift, num):
    """Also where digits are shifted beyond the edge, whose pixels must not appear on the other side."""
    rng = np.random.default_rng(num + pad)
    digits = rng.integers(0, 256, (9, *shape), dtype=np.uint8)
    frames = Frames(9, shape, pad=pad, shift=shift)
    frames.digits[:] = digits
    places = rng.integers(0, 9, (num, 2))
    shifts = rng.integers(-shift, shift + 1, (num, 2, 2))
    shifts[0] = [[shift, shift], [-shift, -shift]]
    places[0] = [8, 0]  # the ends of the buffer
    out = np.full((num, shape[0], shape[1] + 2 * pad, shape[2] + 2 * pad), 7, np.uint8)
    frames.overlay_into(places, shifts, out)
    for row, (pair, moves) in enumerate(zip(places, shifts, strict=True)):
        lower, upper = (placed(digits[each], pad, move) for each, move in zip(pair, moves, strict=True))
        assert np.array_equal(out[row], np.minimum(lower.astype(int) + upper, 255))
        assert np.array_equal(frames.shifted(pair[:1], moves[:1])[0], lower)


@pytest.mark.parametrize(("pad", "shift"), [(2, 2), (1, 3), (0, 0)])
def test_a_sample_is_what_its_fields_say(tmp_path, pad, shift):
    made = make_recipes(tmp_path, pad=pad, shift=shift, first=4, last=51)
    found = made.every("digits", "image", "labels", "shifts")
    assert np.array_equal(found["labels"], made.labels[found["digits"]])
    assert (found["digits"].min(), found["digits"].max()) == (4, 50)
    separate = made.source.separate(np.arange(made.index.num_samples))
    for row in range(0, made.index.num_samples, 7):
        both = [
            placed(made.images[digit], pad, move)
            for digit, move in zip(found["digits"][row], found["shifts"][row], strict=True)
        ]
        assert np.array_equal(separate[row], both)
        assert np.array_equal(found["image"][row], np.minimum(both[0].astype(int) + both[1], 255))


def test_samples_do_not_depend_on_what_is_read_with_them(tmp_path):
    made = make_recipes(tmp_path)
    whole = made.every(*made.index.field)
    ids = np.random.default_rng(0).integers(0, made.index.num_samples, 200)
    for part in (ids, ids[:1], ids[:0], ids[::-1]):
        found = made.source.fields(part, *made.index.field)
        for name, array in found.items():
            assert np.array_equal(array, whole[name][part])
            assert (array.dtype, array.shape[1:]) == (
                made.index.field[name].numpy,
                made.index.field[name].shape,
            )
    assert open_split(made.folder).index == made.index


# ---- pairs


def pairs_of(labels: np.ndarray, *, partners: int, shift: int, seed: int = 0, first: int = 0) -> np.ndarray:
    """The pairs of all samples, digits and shifts down and right side by side: int64 [n, 6]."""
    base = Base("digits", "ab" * 32, first, first + len(labels))
    classes = tuple(f"class {label}" for label in range(labels.max() + 1))
    index = RecipeIndex(base, recipe_fields((1, 28, 28), 4), classes, partners, 4, shift, seed, 100)
    digits, shifts = Pairs(index, labels).of(np.arange(index.num_samples))
    return np.concatenate([digits, shifts.reshape(-1, 4)], axis=1)


def specified(labels: list[int], partners: int, shift: int, seed: int, first: int) -> list[list[int]]:
    """The same as the docstrings of `pairs` specify it, in plain Python."""
    golden, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1

    def mix(value: int) -> int:
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & mask
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB & mask
        return value ^ (value >> 31)

    key = int(xxhash.xxh3_64_hexdigest(f"recipes/{seed}/{'ab' * 32}".encode()), 16)

    def number(draw: int, counter: int) -> int:
        return mix((counter * golden + mix((key + draw * golden) & mask)) & mask)

    def shifts(value: int) -> list[int]:
        return [(half * (2 * shift + 1) >> 32) - shift for half in (value >> 32, value & 0xFFFFFFFF)]

    def place(start: int, size: int, name: int) -> int:
        columns = next(n for n in range(1, size + 1) if n * n >= size)
        rows = -(-size // columns)
        cell = start
        while True:
            row, column = divmod(cell, columns)
            for turn in range(6):
                kept = column if turn % 2 else row
                added = mix(((kept + (turn << 32)) * golden + name) & mask) >> 32
                if turn % 2:
                    row = (row + (added * rows >> 32)) % rows
                else:
                    column = (column + (added * columns >> 32)) % columns
            cell = row * columns + column
            if cell < size:
                return cell

    found = []
    for partner, digit in itertools.product(range(partners), range(len(labels))):
        others = sorted(
            (label, other) for other, label in enumerate(labels) if label != labels[digit]
        )  # by class, then by place
        _, other = others[place(partner, len(others), number(1, first + digit))]
        lower = shifts(number(0, first + digit))
        found.append([digit, other, *lower, *shifts(number(2, ((first + digit) << 32) + partner))])
    return found


@pytest.mark.parametrize(
    ("num", "partners", "shift", "seed", "first"), [(12, 5, 4, 0, 0), (31, 9, 6, 3, 10_000)]
)
def test_the_specification_says_the_same(num, partners, shift, seed, first):
    labels = np.random.default_rng(num).integers(0, 4, num)
    found = pairs_of(labels, partners=partners, shift=shift, seed=seed, first=first)
    assert found.tolist() == specified(labels.tolist(), partners, shift, seed, first)


def test_pairs_do_not_drift():
    """Golden: pairs that change between versions would change a data set under its digest."""
    found = pairs_of(np.arange(6) % 3, partners=2, shift=4)
    assert found[[0, 5, 7, 11]].tolist() == GOLDEN


GOLDEN = [[0, 2, 1, -1, 4, 0], [5, 1, 0, -1, -4, -4], [1, 5, -2, -4, 4, 2], [5, 3, 0, -1, -1, -1]]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 250, 54_077])
def test_permutations_are_permutations(size):
    """Of any size; for the sizes of MNIST, by another key another one."""
    places, sizes = np.arange(size), np.full(size, size)
    first, second = (permuted(places, sizes, np.full(size, key, np.uint64)) for key in (1, 2))
    assert sorted(first) == sorted(second) == list(range(size))
    if size > 16:
        assert (first == second).mean() < 0.2
        assert (first[1:] == first[:-1] + 1).mean() < 0.2


def test_permutations_are_uniform():
    """Every value in every place alike, over many keys: chi-square over 7 x 7 cells."""
    keys = np.random.default_rng(1).integers(0, 1 << 63, 3000).astype(np.uint64)
    counts = np.zeros((7, 7))
    for place in range(7):
        found = permuted(np.full(3000, place), np.full(3000, 7), keys)
        counts[place] = np.bincount(found, minlength=7)
    chi2 = ((counts - 3000 / 7) ** 2 / (3000 / 7)).sum()
    assert 12 < chi2 < 75, chi2


# ---- statistics, beside those of the authors' generator


def drawn_like_the_authors(labels: np.ndarray, *, partners: int, shift: int, seed: int) -> np.ndarray:
    """Pairs by the rules of the authors' generator, from numpy's own random numbers; rows as `pairs_of`.

    For every digit one shift, and of twice as many digits as partners, drawn without replacement, the first
    ones of another class.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for digit, label in enumerate(labels):
        lower = rng.integers(-shift, shift + 1, 2)
        chosen = rng.choice(len(labels), 2 * partners, replace=False)
        for other in chosen[labels[chosen] != label][:partners]:
            rows.append([digit, other, *lower, *rng.integers(-shift, shift + 1, 2)])
    return np.array(rows)


def statistics(rows: np.ndarray, labels: np.ndarray, partners: int) -> dict[str, np.ndarray]:
    """What is compared: classes of pairs, uses of a digit, common partners, shifts."""
    classes, num = labels.max() + 1, len(labels)
    table = np.bincount(labels[rows[:, 0]] * classes + labels[rows[:, 1]], minlength=classes**2)
    uses = np.bincount(rows[:, 1], minlength=num)
    chosen = np.zeros((num, num))
    chosen[rows[:, 0], rows[:, 1]] = 1
    same = np.flatnonzero(labels == 0)
    common = (chosen[same] @ chosen[same].T)[np.triu_indices(len(same), 1)]
    related = np.corrcoef(np.concatenate([rows[:, 2:], labels[rows[:, :2]]], axis=1).T)
    return {
        "classes": table / len(rows),
        "uses": np.array([uses.mean(), uses.std() / np.sqrt(partners)]),
        "common": np.array([common.mean(), common.std()]) / partners,
        "lower shifts": np.concatenate([rows[:, 2:4].mean(axis=0), rows[:, 2:4].std(axis=0)]),
        "upper shifts": np.concatenate([rows[:, 4:].mean(axis=0), rows[:, 4:].std(axis=0)]),
        "related lower": related[:2].ravel(),
        "related upper": related[2:4].ravel(),
    }


TOLERANCE = {
    "classes": 0.007, "uses": 0.25, "common": 0.004, "lower shifts": 0.8, "upper shifts": 0.08,
    "related lower": 0.32, "related upper": 0.04,
}  # fmt: skip
"""Five standard deviations or more; what concerns lower digits has 500 independent values, others 50,000."""


def unbalanced(num: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    return np.minimum(rng.integers(0, 6, num), rng.integers(0, 6, num))


@pytest.mark.parametrize("seed", range(3))
def test_the_statistics_are_those_of_the_authors_generator(seed):
    labels = unbalanced(500)
    ours = statistics(pairs_of(labels, partners=100, shift=4, seed=seed), labels, 100)
    theirs = statistics(drawn_like_the_authors(labels, partners=100, shift=4, seed=seed), labels, 100)
    for name, values in ours.items():
        assert np.abs(values - theirs[name]).max() < TOLERANCE[name], name


def test_mutants_have_other_statistics():
    """Partners drawn with replacement, one partner for all digits, a shift of its own for every pair."""
    labels = unbalanced(500)
    rows = drawn_like_the_authors(labels, partners=100, shift=4, seed=9)
    expected = statistics(rows, labels, 100)
    rng = np.random.default_rng(2)

    def differs(mutant: np.ndarray, name: str) -> bool:
        values = statistics(mutant, labels, 100)[name]
        return bool(np.abs(values - expected[name]).max() > TOLERANCE[name])

    again = rows.copy()
    again[:, 1] = np.concatenate([rng.choice(np.flatnonzero(labels != labels[d]), 100) for d in range(500)])
    assert differs(again, "common")
    one = rows.copy()
    for label in range(6):
        one[labels[one[:, 0]] == label, 1] = np.tile(
            np.flatnonzero(labels != label)[:100], (labels == label).sum()
        )
    assert differs(one, "common")
    assert differs(one, "uses")
    narrow = rows.copy()
    narrow[:, 2:] = rng.integers(-3, 4, (len(rows), 4))
    assert differs(narrow, "upper shifts")
    shared = rows.copy()
    shared[:, 4:] = shared[:, 2:4]
    assert differs(shared, "related upper")


@pytest.mark.parametrize("shift", [0, 4, 6])
def test_every_digit_keeps_its_shift_and_has_no_partner_twice(shift):
    labels = unbalanced(400)
    rows = pairs_of(labels, partners=150, shift=shift, seed=1).reshape(150, 400, 6)
    assert (rows[:, :, 0] == np.arange(400)).all()
    assert (labels[rows[:, :, 0]] != labels[rows[:, :, 1]]).all()
    assert all(len(set(rows[:, digit, 1])) == 150 for digit in range(400))
    assert (rows[:, :, 2:4] == rows[0, :, 2:4]).all()
    sides = 2 * shift + 1
    for part, num in ((rows[0, :, 2:4], 400), (rows[:, :, 4:].reshape(-1, 2), 60_000)):
        cells = np.bincount((part + shift) @ [sides, 1], minlength=sides**2)
        assert len(cells) == sides**2
        freedom, chi2 = sides**2 - 1, ((cells - num / sides**2) ** 2 / (num / sides**2)).sum()
        assert abs(chi2 - freedom) <= 5 * np.sqrt(2 * freedom)


def test_fewer_partners_are_the_first_of_more():
    labels = unbalanced(50)
    more = pairs_of(labels, partners=20, shift=4)
    assert np.array_equal(pairs_of(labels, partners=5, shift=4), more[: 5 * 50])


def test_seed_and_digit_make_other_pairs():
    labels = unbalanced(200)
    first, second = (pairs_of(labels, partners=20, shift=4, seed=seed) for seed in (0, 1))
    assert (first[:, 1] == second[:, 1]).mean() < 0.05
    assert (first[:, 2:] == second[:, 2:]).all(axis=1).mean() < 0.01
