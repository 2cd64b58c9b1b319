"""The picture and the page that a run leaves: made again if they were cut, a failure only told."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from job_helpers import NETWORK, save_tiny

import capsdist.launch
from capsdist.analysis import overview
from capsdist.analysis.report import facts, run_page
from capsdist.cli.job import run_job
from capsdist.cli.pages import leave_pages, leave_table
from capsdist.console import FAILED, STOPPED
from capsdist.errors import RunError
from capsdist.runs import record
from capsdist.runs.rundir import RunFolder, RunSummary
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


def test_runs_of_a_grid_leave_a_page_each_once_and_a_table_of_all(tmp_path):
    places = [tmp_path / "trials" / name for name in ("a", "b")]
    for place in places:
        place.mkdir(parents=True)
        (place / "metrics.jsonl").write_text('{"kind": "train", "step": 3, "loss": 0.5}\n')
        (place / "config.json").write_text(NETWORK.model_dump_json())
    (places[0] / "report.html").write_bytes(PAGE)
    lines: list[str] = []
    leave_table([str(place) for place in places], str(tmp_path), lines.append)
    assert lines == [f"pages: {tmp_path}/table.html"]
    assert (places[0] / "report.html").read_bytes() == PAGE
    assert (places[1] / "report.html").read_bytes().startswith(PAGE[:15])
    assert 'href="trials/b/report.html"' in (tmp_path / "table.html").read_text()
    leave_table([str(tmp_path / "none")], str(tmp_path), lines.append)
    assert lines[-1].startswith("warning: no table.html (")


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("end", ["failed", "stopped"])
def test_a_run_that_fails_or_stops_leaves_a_page_without_images(tmp_path, monkeypatch, capsys, end, trained):
    run = RunFolder(tmp_path / "runs/mnist")

    def launch(config, *, display):
        run.create()
        run.begin(config)
        if trained:
            (run.path / "metrics.jsonl").write_text('{"kind": "start", "resumed_step": 0, "step": 0}\n')
            display({"kind": "start", "resumed_step": 0, "step": 0})
        if end == "failed":
            raise RunError("a worker is lost")
        return RunSummary("mnist", str(run), "stopped", 0, None, None, 1.0)

    monkeypatch.setattr(capsdist.launch, "launch", launch, raising=False)
    monkeypatch.setattr(capsdist.cli.job, "fitted", lambda config: config)
    monkeypatch.setattr("capsdist.train.display.Display", Silent)
    argv = [f"--train.storage={tmp_path}/runs"]
    assert run_job("Train.", ["mnist_paper"], argv=argv) == (FAILED if end == "failed" else STOPPED)
    assert ("error: a worker is lost" in capsys.readouterr().err) == (end == "failed")
    page = Path(run.path, "report.html")
    assert page.exists() == trained
    assert not Path(run.path, "overview.png").exists()
    if trained:
        assert "There are none in this page" in page.read_text()


class Silent:
    """A display that shows nothing."""

    def __enter__(self):
        return lambda row: None

    def __exit__(self, *words):
        return None
