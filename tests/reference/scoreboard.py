"""The correctness scoreboard in README.md, made from the tests themselves.

The first table is measured: every property of `routing_properties` on every backend and on every mutant; so
is the second, of later algorithms. The third is read from marks of tests in all folders:
`property(key, sentence)` on a test of a property (further ones need the key alone), and `defect(key, defect)`
on a test that shows that a known defect breaks it.

Command: python tests/reference/scoreboard.py (needs Triton, as the measured column of `fused` does)
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported

from routing_properties import BACKENDS, DEFECTS, LATER, OF_LATER, PROPERTIES

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "tests" / "reference" / "README.md"
_MARKS = re.compile(r"(<!-- properties -->\n).*?(<!-- /properties -->)", flags=re.DOTALL)


@dataclass
class Marked:
    """A property as marks tell it: its sentence, the tests that hold it, and (defect, test) that break it."""

    sentence: str = ""
    held_by: list[str] = field(default_factory=list)
    broken_by: list[tuple[str, str]] = field(default_factory=list)


def measured_table() -> str:
    """Return the table of `PROPERTIES` against backends and defects: a cell says whether it holds."""
    names = [*(f"`{backend}`" for backend in BACKENDS), *DEFECTS]
    lines = [f"| property | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for each in PROPERTIES.values():
        held = [each.obeyed_by(backend, 0) for backend in BACKENDS]
        held += [each.distance(mutant, 0) < each.limit for mutant, _ in DEFECTS.values()]
        lines.append(f"| {each.sentence} | {' | '.join('yes' if fine else '**no**' for fine in held)} |")
    return "\n".join(lines)


def later_table() -> str:
    """Return the table of the properties that mean the same of later algorithms."""
    lines = [f"| property | {' | '.join(f'`{name}`' for name in LATER)} |", "|---" * (len(LATER) + 1) + "|"]
    for each in (PROPERTIES[name] for name in OF_LATER):
        held = [each.distance(algorithm, 0) < each.limit for algorithm in LATER.values()]
        lines.append(f"| {each.sentence} | {' | '.join('yes' if fine else '**no**' for fine in held)} |")
    return "\n".join(lines)


def marked_table() -> str:
    """Return the table of the properties that marks tell of."""
    lines = ["| property | held by | known defect | shown by |", "|---|---|---|---|"]
    for each in marked_properties().values():
        defects, tests = zip(*each.broken_by, strict=True) if each.broken_by else ((), ())
        held_by = ", ".join(f"`{test}`" for test in each.held_by)
        shown_by = ", ".join(f"`{test}`" for test in tests)
        lines.append(f"| {each.sentence} | {held_by} | {', '.join(dict.fromkeys(defects))} | {shown_by} |")
    return "\n".join(lines)


def marked_properties(tests: Path = ROOT / "tests") -> dict[str, Marked]:
    """Return the properties that the marks of all tests tell of, by key, in the order of folders and lines.

    Raises:
        ValueError: a key has two sentences or none, or no test that holds it.
    """
    properties: dict[str, Marked] = {}
    for name, kind, (key, *words) in _marks(tests):
        each = properties.setdefault(key, Marked())
        if kind == "defect":
            each.broken_by.append((words[0], name))
        else:
            each.held_by.append(name)
            if words and each.sentence:
                raise ValueError(f"property {key!r} has two sentences; leave one to mark {name}")
            each.sentence = each.sentence or "".join(words)
    for key, each in properties.items():
        if not each.sentence or not each.held_by:
            raise ValueError(f"property {key!r} has no sentence; give it where the first test holds it")
    return properties


def _marks(tests: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (test, "property" or "defect", arguments) of every such mark."""
    for file in sorted(tests.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                for mark in node.decorator_list:
                    text = ast.unparse(mark)
                    if text.startswith(("pytest.mark.property(", "pytest.mark.defect(")):
                        assert isinstance(mark, ast.Call)
                        words = [ast.literal_eval(argument) for argument in mark.args]
                        yield node.name, text.split("(")[0].rpartition(".")[2], words


def with_tables(readme: str) -> str:
    """Return the guide with fresh tables between its marks."""
    assert _MARKS.search(readme), "put <!-- properties --> and <!-- /properties --> where the tables go"
    tables = f"{measured_table()}\n\n{later_table()}\n\n{marked_table()}\n"
    return _MARKS.sub(lambda marks: f"{marks[1]}{tables}{marks[2]}", readme)


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
