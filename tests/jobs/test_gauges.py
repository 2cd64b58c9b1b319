"""A run seen by Prometheus: scraped from Ray's own endpoint, and drawn by the dashboard that we ship."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest
from job_helpers import NUM_TEST, Rows, tiny_config

from capsdist.launch import launch
from capsdist.launch.gauges import GAUGES
from faults.script import Fault, Script
from limits import PATIENCE_S

Samples = dict[tuple[str, str], float]


@pytest.fixture
def dashboard(repo: Path) -> dict:
    return json.loads((repo / "cluster/grafana/capsdist.json").read_text())


def test_the_dashboard_draws_every_metric_and_no_other(dashboard):
    drawn = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\bray_(\w+)\{", target["expr"])
    }
    assert drawn == set(GAUGES)


def test_its_labels_are_those_of_the_metrics(dashboard):
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            for by, name in re.findall(
                r"max by \(([\w, ]+)\) \(ray_(\w+)\{run=~\"\$run\"\}\)", target["expr"]
            ):
                assert tuple(by.split(", ")) == GAUGES[name].tags
    [run] = [each for each in dashboard["templating"]["list"] if each["name"] == "run"]
    assert run["query"] == "label_values(ray_capsdist_step, run)"


def test_its_panels_do_not_overlap(dashboard):
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in dashboard["panels"])
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def scraped(run: str) -> Samples:
    """Our metrics of a run, by name and split, from the endpoint of this node's Ray."""
    import ray

    [node] = [node for node in ray.nodes() if node["Alive"]]
    url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        lines = answer.read().decode().splitlines()
    found: Samples = {}
    for line in lines:
        if sample := re.match(r"ray_(capsdist_\w+)\{(.*)\} (\S+)$", line):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', sample[2]))
            if labels["run"] == run:
                found[sample[1], labels.get("split", "")] = float(sample[3])
    return found


WANTED = {
    (name, split)
    for name, kind in GAUGES.items()
    for split in (("train", "validation") if "split" in kind.tags else ("",))
}


class Scraper(Rows):
    """A display that scrapes after the first validation, until all is there, and lets the workers go on."""

    def __init__(self, run: str, script: Script) -> None:
        super().__init__()
        self._run, self._script = run, script
        self.samples: Samples = {}

    def __call__(self, row: dict) -> None:
        super().__call__(row)
        if row["kind"] == "validation" and not self.samples:
            end = time.monotonic() + PATIENCE_S
            while not self._is_whole(row["step"]) and time.monotonic() < end:
                time.sleep(0.2)
                self.samples = scraped(self._run)
            self._script.go_on()

    def _is_whole(self, step: int) -> bool:
        return self.samples.keys() == WANTED and self.samples["capsdist_step", ""] == step


@pytest.mark.usefixtures("ray_cluster")
def test_rays_endpoint_shows_what_the_run_does(tiny_root, tmp_path):
    script = Script([Fault("wait", 0, 9)], tmp_path / "marks", tmp_path / "scraped")
    rows = Scraper("scraped", script)
    config = tiny_config(tiny_root, tmp_path, "scraped", num_workers=1, epochs=2)
    launch(config, display=rows, fault=script)
    assert rows.samples.keys() == WANTED
    validation = rows.of("validation")[0]
    trained = next(row for row in rows.of("train") if row["step"] == validation["step"])
    assert validation["num_images"] == NUM_TEST
    for name in ("loss", "error_percent"):
        assert rows.samples[f"capsdist_{name}", "validation"] == pytest.approx(validation[name])
        assert rows.samples[f"capsdist_{name}", "train"] == pytest.approx(trained[name])
    for name in ("images_per_s", "step_time_s", "step"):
        assert rows.samples[f"capsdist_{name}", ""] == pytest.approx(trained[name])
    assert rows.samples["capsdist_total_steps", ""] == 16
    assert rows.samples["capsdist_restarts", ""] == 0
