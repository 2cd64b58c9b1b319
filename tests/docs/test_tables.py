"""The results table comes from records alone, and the README's is the one that the records give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capsdist.bench.tables import newest_records, results_table, with_table

ROOT = Path(__file__).resolve().parents[2]


def put_record(records: Path, folder: str, *, what: str, written: str, figures: dict[str, object]) -> None:
    """Write a small record."""
    (records / folder).mkdir()
    hardware = {"cpu": "Some CPU", "num_cores": 2}
    record = {"what": what, "written": written, "figures": figures, "hardware": hardware}
    (records / folder / "record.json").write_text(json.dumps(record))


def test_readme_has_the_table_that_the_records_give() -> None:
    readme = (ROOT / "README.md").read_text()
    assert with_table(readme, results_table(ROOT / "jobs/records")) == readme, "run python jobs/tables.py"


def test_without_records_every_cell_says_so(tmp_path: Path) -> None:
    lines = [
        line for line in results_table(tmp_path).splitlines() if line.startswith("|") and "---" not in line
    ]
    assert all("not run" in line or "| aim |" in line for line in lines)


def test_the_newest_record_of_a_subject_counts(tmp_path: Path) -> None:
    put_record(tmp_path, "b", what="routing", written="2026-02-01", figures={"speedup_vs_reference": 6.52})
    put_record(tmp_path, "a", what="routing", written="2026-03-01", figures={"speedup_vs_reference": 5.04})
    assert newest_records(tmp_path)["routing"][0] == "a"
    table = results_table(tmp_path)
    assert "| 5.04 | Some CPU, 2 cores | [2026-03-01](jobs/records/a) |" in table
    assert "6.52" not in table


def test_a_text_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="<!-- results -->"):
        with_table("no marks here", "table")
