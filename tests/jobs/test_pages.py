"""The picture and the page that a run leaves: made again if they were cut, a failure only told."""

from __future__ import annotations

import io

import pytest
from job_helpers import NETWORK, save_tiny

from capsdist.analysis import overview
from capsdist.analysis.report import facts, run_page
from capsdist.cli.pages import leave_pages
from capsdist.runs import record
from capsdist.runs.rundir import RunFolder
from capsdist.train.display import Display

PICTURE = b"\x89PNG\r\n\x1a\nIEND\xaeB`\x82"
PAGE = b"<!doctype html></html>\n"


def test_a_picture_is_not_missing_because_its_path_cannot_be_printed(tmp_path):
    run = RunFolder(tmp_path / "é")
    save_tiny(run.path, 3)
    raw = io.BytesIO()
    (run.path / "overview.png").write_bytes(PICTURE)
    (run.path / "report.html").write_bytes(PAGE)
    stream = io.TextIOWrapper(raw, encoding="ascii")
    leave_pages(str(run.path), Display(stream), anew=False)
    names = ("overview.png", "report.html")
    lines = [f"{name.partition('.')[0]}: {tmp_path}/\\xe9/{name}\n" for name in names]
    assert raw.getvalue().decode() == "".join(lines)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("length", [0, 9, None])
def test_a_page_that_was_cut_is_made_again(tmp_path, monkeypatch, length, whole):
    made: list[str] = []
    (tmp_path / "overview.png").write_bytes(PICTURE[:length])
    (tmp_path / "report.html").write_bytes(PAGE if whole else PAGE[:length])
    monkeypatch.setattr(record, "trained_rows", lambda *words: [])
    monkeypatch.setattr(overview, "read_shown", lambda *words: None)
    monkeypatch.setattr(overview, "overview", lambda place, shown: made.append("overview"))
    monkeypatch.setattr(facts, "read_facts", lambda *words: None)
    monkeypatch.setattr(run_page, "write_report", lambda facts, **options: made.append("report"))
    leave_pages(str(tmp_path), lambda row: None, anew=False)
    cut = length is not None
    assert made == ["overview"] * cut + ["report"] * (cut and not whole)


def test_without_a_checkpoint_a_page_has_no_images_and_there_is_no_picture(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 3, "loss": 0.5}\n')
    (tmp_path / "config.json").write_text(NETWORK.model_dump_json())
    rows: list[dict] = []
    leave_pages(str(tmp_path), rows.append, anew=True, images=False, picture=False)
    notes = [row["message"] for row in rows if row["kind"] == "note"]
    assert notes == [f"report: {tmp_path}/report.html"]
    assert not (tmp_path / "overview.png").exists()
    leave_pages(str(tmp_path / "none"), rows.append, anew=True)
    assert [row["message"].partition(" (")[0] for row in rows if row["kind"] == "note"][1:] == [
        "warning: no overview.png", "warning: no report.html"
    ]  # fmt: skip
