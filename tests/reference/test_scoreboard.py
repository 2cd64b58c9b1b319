"""The scoreboard in the guide is the one that measuring and the marks give."""

from __future__ import annotations

from pathlib import Path

import pytest
from routing_properties import DEFECTS, PROPERTIES
from scoreboard import README, marked_properties, with_tables


def test_the_guide_has_the_tables_that_the_tests_give() -> None:
    readme = README.read_text()
    assert with_tables(readme) == readme, "run python tests/reference/scoreboard.py"


def test_every_property_has_a_defect_that_breaks_it() -> None:
    assert {name for _, name in DEFECTS.values()} == set(PROPERTIES) - {"numbers"}


def put_tests(folder: Path, *decorated: str) -> Path:
    functions = [f"{marks}\ndef test_{number}():\n    pass\n" for number, marks in enumerate(decorated)]
    (folder / "test_marks.py").write_text("\n".join(functions))
    return folder


def test_marks_of_one_property_come_together(tmp_path: Path) -> None:
    tests = put_tests(
        tmp_path,
        '@pytest.mark.property("a", "a is held")',
        '@pytest.mark.defect("a", "the defect")\n@pytest.mark.slow',
        '@pytest.mark.property("a")\n@pytest.mark.property("b", "b is held")',
    )
    properties = marked_properties(tests)
    assert list(properties) == ["a", "b"]
    assert properties["a"].held_by == ["test_0", "test_2"]
    assert (properties["a"].sentence, properties["a"].broken_by) == ("a is held", [("the defect", "test_1")])


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        (
            ['@pytest.mark.property("a", "one")', '@pytest.mark.property("a", "two")'],
            "property 'a' has two sentences",
        ),
        (['@pytest.mark.property("a")'], "property 'a' has no sentence"),
        (['@pytest.mark.defect("a", "the defect")'], "property 'a' has no sentence"),
    ],
)
def test_marks_that_tell_no_property_are_refused(tmp_path: Path, marks: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        marked_properties(put_tests(tmp_path, *marks))
