"""Names of classes: what a split may call them, and two splits that number them differently."""

from __future__ import annotations

import numpy as np
import pytest

from capsdist.data import write_split
from capsdist.data.format.classes import check_same_classes
from capsdist.errors import DataError


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("cat", "classes='cat' is one text; give a list of names, one a class"),
        ([], "classes is empty; give a list of names"),
        (["a", "b", "a"], r"classes\[2\]='a' is also classes\[0\]; give each name once"),
        (["a", 1, "c"], r"classes\[1\]=1 is not a name; give texts"),
        (["\ud800"], r"classes\[0\]='\\ud800' is not a name; give texts"),
        (["a", "", "c"], r"classes\[1\]='' is not a name; give texts"),
    ],
)
def test_wrong_names_are_refused_before_anything_is_written(tmp_path, classes, message):
    with pytest.raises(DataError, match=message):
        write_split(tmp_path / "x", np.zeros((2, 1, 3, 3), np.uint8), np.zeros(2, np.int64), classes=classes)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            ["cat", "dog", "frog"],
            ["cat", "frog", "dog"],
            "B: class 1 is 'frog', in A it is 'dog'; pack again",
        ),
        (["cat", "dog"], ["cat"], "B: class 1 is missing, in A it is 'dog'"),
        (["cat"], ["cat", "dog"], "B: class 1 is 'dog', in A it is missing"),
    ],
)
def test_the_first_difference_is_named(first, second, message):
    with pytest.raises(DataError, match=message):
        check_same_classes(first, second, where=("A", "B"), remedy="pack again")


def test_equal_lists_pass():
    check_same_classes(["cat", "dog"], ("cat", "dog"), where=("A", "B"), remedy="pack again")
