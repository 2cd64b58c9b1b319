"""The scoreboard in the guide is the one that measuring and the marks give."""

from __future__ import annotations

from pathlib import Path

import pytest
from laws import DEFECTS, LAWS
from scoreboard import README, marked_laws, with_tables


def test_the_guide_has_the_tables_that_the_tests_give() -> None:
    readme = README.read_text()
    assert with_tables(readme) == readme, "run python tests/oracle/scoreboard.py"


def test_every_law_has_a_defect_that_breaks_it() -> None:
    assert {law for _, law in DEFECTS.values()} == set(LAWS) - {"numbers"}


def put_tests(folder: Path, *decorated: str) -> Path:
    functions = [f"{marks}\ndef test_{number}():\n    pass\n" for number, marks in enumerate(decorated)]
    (folder / "test_marks.py").write_text("\n".join(functions))
    return folder


def test_marks_of_one_law_come_together(tmp_path: Path) -> None:
    tests = put_tests(
        tmp_path,
        '@pytest.mark.law("a", "a is held")',
        '@pytest.mark.defect("a", "the defect")\n@pytest.mark.slow',
        '@pytest.mark.law("a")\n@pytest.mark.law("b", "b is held")',
    )
    laws = marked_laws(tests)
    assert list(laws) == ["a", "b"]
    assert laws["a"].held_by == ["test_0", "test_2"]
    assert (laws["a"].sentence, laws["a"].broken_by) == ("a is held", [("the defect", "test_1")])


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        (['@pytest.mark.law("a", "one")', '@pytest.mark.law("a", "two")'], "law 'a' has two sentences"),
        (['@pytest.mark.law("a")'], "law 'a' has no sentence"),
        (['@pytest.mark.defect("a", "the defect")'], "law 'a' has no sentence"),
    ],
)
def test_marks_that_tell_no_law_are_refused(tmp_path: Path, marks: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        marked_laws(put_tests(tmp_path, *marks))
