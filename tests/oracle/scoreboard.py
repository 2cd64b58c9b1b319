"""The correctness scoreboard in README.md, made from the tests themselves.

The first table is measured: every law of `laws` on every backend and on every twin with a known defect. The
second is read from marks of tests in all folders: `law(key, sentence)` on a test that holds a law (further
ones need the key alone), and `defect(key, defect)` on a test that shows that a known defect breaks it.

Command: python tests/oracle/scoreboard.py (needs Triton, as the measured column of `fused` does)
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported

from laws import BACKENDS, DEFECTS, LAWS

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "tests" / "oracle" / "README.md"
_MARKS = re.compile(r"(<!-- laws -->\n).*?(<!-- /laws -->)", flags=re.DOTALL)


@dataclass
class Marked:
    """A law as the marks tell it: its sentence, the tests that hold it, and (defect, test) that break it."""

    sentence: str = ""
    held_by: list[str] = field(default_factory=list)
    broken_by: list[tuple[str, str]] = field(default_factory=list)


def measured_table() -> str:
    """Return the table of `LAWS` against backends and defects: a cell says whether the law is held."""
    names = [*(f"`{backend}`" for backend in BACKENDS), *DEFECTS]
    lines = [f"| law | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for law in LAWS.values():
        held = [law.obeyed_by(backend, 0) for backend in BACKENDS]
        held += [law.distance(twin, 0) < law.limit for twin, _ in DEFECTS.values()]
        lines.append(f"| {law.sentence} | {' | '.join('yes' if each else '**no**' for each in held)} |")
    return "\n".join(lines)


def marked_table() -> str:
    """Return the table of the laws that marks tell of."""
    lines = ["| law | held by | known defect | shown by |", "|---|---|---|---|"]
    for law in marked_laws().values():
        defects, tests = zip(*law.broken_by, strict=True) if law.broken_by else ((), ())
        held_by = ", ".join(f"`{test}`" for test in law.held_by)
        shown_by = ", ".join(f"`{test}`" for test in tests)
        lines.append(f"| {law.sentence} | {held_by} | {', '.join(dict.fromkeys(defects))} | {shown_by} |")
    return "\n".join(lines)


def marked_laws(tests: Path = ROOT / "tests") -> dict[str, Marked]:
    """Return the laws that the marks of all tests tell of, by key, in the order of folders and lines.

    Raises:
        ValueError: a key has two sentences or none, or no test that holds it.
    """
    laws: dict[str, Marked] = {}
    for name, kind, (key, *words) in _marks(tests):
        law = laws.setdefault(key, Marked())
        if kind == "defect":
            law.broken_by.append((words[0], name))
        else:
            law.held_by.append(name)
            if words and law.sentence:
                raise ValueError(f"law {key!r} has two sentences; leave one to mark {name}")
            law.sentence = law.sentence or "".join(words)
    for key, law in laws.items():
        if not law.sentence or not law.held_by:
            raise ValueError(f"law {key!r} has no sentence; give it where the first test holds it")
    return laws


def _marks(tests: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (test, "law" or "defect", arguments) of every such mark."""
    for file in sorted(tests.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                for mark in node.decorator_list:
                    text = ast.unparse(mark)
                    if text.startswith(("pytest.mark.law(", "pytest.mark.defect(")):
                        assert isinstance(mark, ast.Call)
                        words = [ast.literal_eval(argument) for argument in mark.args]
                        yield node.name, text.split("(")[0].rpartition(".")[2], words


def with_tables(readme: str) -> str:
    """Return the guide with fresh tables between its marks."""
    assert _MARKS.search(readme), "put <!-- laws --> and <!-- /laws --> where the tables go"
    tables = f"{measured_table()}\n\n{marked_table()}\n"
    return _MARKS.sub(lambda marks: f"{marks[1]}{tables}{marks[2]}", readme)


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
