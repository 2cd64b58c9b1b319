"""Read and check the names of classes, and check that two splits number them alike.

Labels are numbers, so two splits that number the same classes differently train and evaluate without an
error and give wrong figures. The list of names is what tells them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from capsdist.errors import DataError

__all__ = ["check_class_names", "check_same_classes", "read_class_names"]


def read_class_names(path: Path) -> list[str]:
    """Return the names of classes, by label, in a UTF-8 text file with one a line.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a UTF-8 text file, a class a line") from None


def check_class_names(classes: Sequence[str]) -> None:
    """Check that `classes` is a list of names, by label: not empty, no name twice.

    Raises:
        DataError: naming the first name that is wrong, with its label.
    """
    if isinstance(classes, str | bytes):
        raise DataError(f"classes={classes!r} is one text; give a list of names, one a class")
    if not classes:
        raise DataError("classes is empty; give a list of names, one a class")
    seen: dict[str, int] = {}
    for label, name in enumerate(classes):
        if not isinstance(name, str) or not name or any("\ud800" <= letter <= "\udfff" for letter in name):
            raise DataError(f"classes[{label}]={name!r} is not a name; give texts that are not empty")
        if name in seen:
            raise DataError(f"classes[{label}]={name!r} is also classes[{seen[name]}]; give each name once")
        seen[name] = label


def check_same_classes(
    first: Sequence[str], second: Sequence[str], *, where: tuple[object, object], remedy: str
) -> None:
    """Check that two lists of names are equal; `where`: what the error calls them, `remedy`: how it ends.

    Raises:
        DataError: naming the first label whose names differ, and both names.
    """
    if tuple(first) == tuple(second):
        return
    labels = range(max(len(first), len(second)))
    label = next(label for label in labels if _name(first, label) != _name(second, label))
    here, there = _name(second, label), _name(first, label)
    raise DataError(f"{where[1]}: class {label} is {here}, in {where[0]} it is {there}; {remedy}")


def _name(classes: Sequence[str], label: int) -> str:
    return repr(classes[label]) if label < len(classes) else "missing"
