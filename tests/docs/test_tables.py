"""The results table comes from records alone, and the README's is the one that the records give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capsdist.bench.tables import documents_of_results, newest_records, number, results_table, with_table
from capsdist.errors import DataError

ROOT = Path(__file__).resolve().parents[2]


def put_record(records: Path, folder: str, *, what: str, written: str, figures: dict[str, object]) -> None:
    """Write a small record."""
    (records / folder).mkdir()
    hardware = {"cpu": "Some CPU", "num_cores": 2}
    record = {"what": what, "written": written, "figures": figures, "hardware": hardware}
    (records / folder / "record.json").write_text(json.dumps(record))


@pytest.mark.parametrize("document", documents_of_results(ROOT), ids=lambda path: path.parent.name)
def test_a_document_has_the_table_that_the_records_give(document: Path) -> None:
    assert documents_of_results(ROOT)[document] == document.read_text(), "run python jobs/tables.py"


def test_the_readme_shows_at_most_eight_results() -> None:
    lines = results_table(ROOT / "jobs/records", headlines=True).splitlines()
    rows = [line for line in lines if line.startswith("|") and "---" not in line and "| aim |" not in line]
    assert 0 < len(rows) <= 8


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
    assert "| 5.04 | ratio of medians | Some CPU, 2 cores | [2026-03-01](a) |" in table
    assert "6.52" not in table


@pytest.mark.parametrize("content", [b"", b"[]", b'{"what": "a"}', b"\xff", b'{"what": NaN}', b"[" * 100_000])
def test_a_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "record.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"^{tmp_path}/a/record.json .*; restore it") as caught:
        results_table(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_test_error_stands_with_its_interval(tmp_path: Path) -> None:
    figures = {"error_percent": 0.83, "error_interval_percent": [0.67, 1.03]}
    put_record(tmp_path, "a", what="mnist-paper-3-epochs", written="2026-03-01", figures=figures)
    assert "| at most 0.9 % | 0.83 % (0.67 to 1.03) | one run |" in results_table(tmp_path)


def test_a_text_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="<!-- results -->"):
        with_table("no marks here", "table")


@pytest.mark.parametrize(
    ("figure", "value", "shown"),
    [
        ("step_r3_over_r1", 1.153, "at most 1.15 | **1.153, missed** | ratio of medians of 12 |"),
        ("step_r3_over_r1", 1.15, "at most 1.15 | 1.15 | ratio of medians of 12 |"),
        ("speedup_vs_full_shape", 9.9996, "at least 10 | **10, missed** | ratio of medians of 30 |"),
        ("speedup_vs_full_shape", 10.0, "at least 10 | 10 | ratio of medians of 30 |"),
        ("cifar10_peak_bytes", 400_100_000.0, "at most 400,000,000 | **400,100,000, missed** | counted |"),
    ],
)
def test_a_missed_aim_shows(figure: str, value: float, shown: str, tmp_path: Path) -> None:
    figures = {figure: value, "num_runs": 30.0, "num_step_runs": 12}
    put_record(tmp_path, "a", what="routing", written="2026-03-01", figures=figures)
    assert shown in results_table(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.026, "0.026"),
        (0.3419, "0.3419"),
        (13.0, "13"),
        (275.7201, "275.7"),
        (1593000.0, "1,593,000"),
    ],
)
def test_figures_have_the_digits_of_records(value: float, text: str) -> None:
    assert number(value) == text
