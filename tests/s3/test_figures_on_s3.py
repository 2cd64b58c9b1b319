"""Figures of a run whose checkpoints, rows and images are on S3, written to S3."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from job_helpers import save_tiny, tiny_config, write_tiny
from places import Place

from capsdist.analysis.figures import draw_figures
from capsdist.runs.retention import checkpoint_name

pytestmark = pytest.mark.s3


def test_figures_of_a_run_on_s3(place: Place, tmp_path: Path) -> None:
    write_tiny(f"{place.url}/data")
    config = tiny_config(f"{place.url}/data", f"{place.url}/runs", "first")
    for step in (3, 6):
        folder = save_tiny(tmp_path, step, config=config)
        for path in folder.iterdir():
            place.put(f"runs/first/{folder.name}/{path.name}", path.read_bytes())
    row = {"kind": "train", "step": 3, "loss": 0.5}
    place.put("runs/first/metrics.jsonl", json.dumps(row).encode() + b"\n")
    told: list[str] = []
    only = ["figure_3", "figure_a1", "figure_a2"]
    written = draw_figures([f"{place.url}/runs/first"], f"{place.url}/to", only=only, log=told.append)
    assert told == []
    found = place.objects("to/")
    assert {f"{place.url}/{name}" for name in found} == set(written)
    assert len(found) == 9
    numbers = json.loads(found["to/first/figure_a1.json"])
    assert (numbers["steps"], numbers["num_images"]) == ([3, 6], 23)
    assert json.loads(found["to/figure_a2.json"])["runs"][0]["loss"] == [0.5]
    checkpoint = f"{place.url}/runs/first/{checkpoint_name(3)}"
    draw_figures([checkpoint], str(tmp_path / "to"), only=["figure_a1", "figure_a2"], log=told.append)
    one = tmp_path / f"to/first-{checkpoint_name(3)}/figure_a1.json"
    assert json.loads(one.read_text())["steps"] == [3]
    assert told == []
