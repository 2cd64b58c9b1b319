"""report.html and table.html: what runs have spent, plots, confusions, and pages that need no other file."""

from __future__ import annotations

import base64
import json
import re
import shutil
import statistics
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import TINY, make_run, rows_of
from PIL import Image

from capsdist.analysis.report.confusions import Confusions
from capsdist.analysis.report.facts import Spent, read_facts
from capsdist.analysis.report.interactive_page import write_interactive
from capsdist.analysis.report.plots import MAX_POINTS, Curve, Plot, drawn, plots_of_run
from capsdist.analysis.report.run_page import write_report
from capsdist.analysis.report.table_page import write_table
from capsdist.analysis.report.words import duration, short
from capsdist.cli.main import main
from capsdist.config import CapsNetConfig, Config, Data, get_preset
from capsdist.errors import RunError
from capsdist.runs.rundir import CONFIG, RunFolder, RunSummary
from capsdist.train.machine import processor

HOSTILE = "</script><img src=x onerror=alert(1)>"


class Elements(HTMLParser):
    """The elements of a page: (name, attributes); texts: what is between them, by the innermost element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append((self.found[-1][0] if self.found else "", data))

    def outside(self) -> list[str]:
        """What the page would fetch from elsewhere."""
        urls = [
            str(attributes[name])
            for tag, attributes in self.found
            for name in ("src", "href", "data", "poster", "action", "srcset")
            if name in attributes and not (tag == "a" and name == "href")
        ]
        texts = "".join(text for tag, text in self.texts if tag in ("style", "script"))
        calls = re.findall(r"url\(|@import|\bimport\b|fetch\(|XMLHttpRequest|WebSocket|https?://", texts)
        return [url for url in urls if not url.startswith("data:")] + calls


def made(folder: Path, **train: Any) -> Path:
    """A run of a tiny network, with images, and the configuration as a file."""
    config = Config(model=CapsNetConfig(**TINY), data=Data(name="made", root=str(folder / "data"), shift=0))
    config = config.model_copy(update={"train": config.train.model_copy(update=train)})
    run = make_run(folder, config)
    (run / CONFIG).write_text(config.model_dump_json())
    return run


def finished(folder: Path, name: str, error: float, **changes: Any) -> Path:
    """A run that is done, without a checkpoint; changes: fields of its configuration by section__field."""
    config = get_preset("digits_quickstart").model_dump(mode="json")
    for field, value in changes.items():
        section, _, key = field.partition("__")
        config[section][key] = value
    run = RunFolder(folder / name)
    run.create()
    (run.path / CONFIG).write_text(json.dumps(config))
    test = {"kind": "test", "step": 40, "error_percent": error, "loss": 0.1, "num_images": 100}
    rows = [*rows_of(10, best=5.0), test]
    rows[0] |= {"validation_split": "validation", "test_split": "test"}
    (run.path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    run.write_result(RunSummary(name, str(run), "done", 40, error, 100.0, 12.0))
    return run.path


def test_what_a_run_has_spent_is_summed_over_its_starts(tmp_path: Path) -> None:
    run = finished(tmp_path, "spent", 3.0)
    start = {"kind": "start", "resumed_step": 0, "step": 0}
    window = {"kind": "train", "loss": 1.0}
    rows = [
        start,
        window | {"step": 4, "step_time_s": 0.5, "images_per_s": 16.0, "time_s": 2.5},
        window | {"step": 5, "step_time_s": 1.0, "images_per_s": 3.0, "time_s": 4.0},
        start | {"resumed_step": 5, "step": 5},
        window | {"step": 7, "step_time_s": 0.25, "images_per_s": 32.0, "time_s": 1.0},
        {"kind": "validation", "step": 7, "loss": 1.0, "error_percent": 1.0, "num_images": 9, "time_s": 7.0},
    ]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    facts = read_facts(run)
    spent = Spent.of(facts)
    assert (spent.num_images, spent.train_s, spent.wall_s, spent.num_starts) == (32 + 3 + 16, 3.5, 11.0, 2)
    assert spent.flop is not None
    assert spent.flop.forward == 51 * sum(layer.forward_flop for layer in facts.cost.layers)
    assert facts.status == "done"
    assert (facts.measured["error_percent"], facts.step) == (1.0, 7)


def test_points_of_a_plot_are_where_its_values_are() -> None:
    steps = np.array([0.0, 5, 10])
    linear = drawn(Plot("A", [Curve("a", steps, np.array([0.0, 50, 100]), 1)]))
    assert linear.paths == [("line c1", "M0.0 1000.0L500.0 537.0L1000.0 74.1")]  # 100 of 108
    assert linear.x_ticks[0] == (0.0, "0")
    assert linear.y_ticks[0] == (100.0, "0")
    errors = drawn(Plot("B", [Curve("b", steps, np.array([0.0, 1, 100]), 2, "dots")], log=True, unit=" %"))
    [(kind, path)] = errors.paths
    heights = [float(y) for y in re.findall(r" ([\d.]+)h0", path)]
    assert kind == "dot c2"
    assert heights == sorted(heights, reverse=True)
    share = (heights[0] - heights[1]) / (heights[1] - heights[2])
    assert share == pytest.approx(np.log(2) / np.log(100), abs=0.01)  # 0 is drawn at half the least error
    assert (round(heights[0] / 10, 2), "0") == (round(errors.y_ticks[0][0], 2), errors.y_ticks[0][1])
    assert errors.legend == [("b", "100 %", 2)]


@pytest.mark.parametrize("num", [1, 2, 299, 300, 301, 7777])
def test_a_long_curve_keeps_its_ends_and_its_extremes(num: int) -> None:
    values = np.random.default_rng(num).random(num) + 0.5
    plot = drawn(Plot("A", [Curve("a", np.arange(1.0, num + 1), values, 1, rough=True)]))
    [data] = plot.data["curves"]
    assert len(data["steps"]) == min(num, MAX_POINTS)
    assert data["steps"][-1] == num
    if num == 1:
        assert [kind for kind, _ in plot.paths] == ["dot c1"]
        return
    band = dict(plot.paths)["band c1"]
    heights = np.array([float(y) for y in re.findall(r" ([\d.]+)", band)])
    top = 1.08 * values.max()
    assert heights.min() == pytest.approx(1000 - 1000 * values.max() / top, abs=0.1)
    assert heights.max() == pytest.approx(1000 - 1000 * values.min() / top, abs=0.1)


def test_plots_are_of_what_the_rows_have() -> None:
    rows = rows_of(10, best=2.0)
    assert [plot.title for plot in plots_of_run(rows)] == ["Loss", "Error"]
    rows += [{"kind": "train", "step": 50 + n, "learning_rate": 1e-3 * 0.5**n} for n in range(9)]
    plots = plots_of_run(rows)
    assert [(plot.title, plot.log) for plot in plots][2:] == [("Learning rate", True)]
    assert [curve.name for curve in plots[0].curves] == ["training", "test"]  # of version 0.1
    assert plots_of_run([{"kind": "start", "step": 0}]) == []


def test_confusions_count_errors_by_class() -> None:
    draw = np.random.default_rng(5)
    table = draw.integers(0, 4, (13, 13)) + np.diag(draw.integers(30, 40, 13))
    table[4] = 0
    found = Confusions.of(table.tolist(), ["a", "b"])
    assert found.classes == ["a", "b", *map(str, range(2, 13))]
    assert found.errors[4] is None
    for true in (0, 7):
        assert found.errors[true] == pytest.approx(100 * (1 - table[true, true] / table[true].sum()))
    wrong = table - np.diag(table.diagonal())
    assert found.worst[0][2] == wrong.max()
    assert len(found.worst) == 12
    assert found.picture is None
    assert Confusions.of(np.eye(3, dtype=int).tolist(), []).worst == []


def test_many_classes_are_a_picture_of_one_pixel_each() -> None:
    table = np.diag(np.arange(1, 131))
    table[3, 128] = 1
    picture = Confusions.of(table.tolist(), []).picture
    assert picture is not None
    pixels = np.array(Image.open(BytesIO(base64.b64decode(picture.partition(",")[2]))))
    assert pixels.shape == (130, 130, 4)
    assert (pixels[..., 3] > 0).sum() == 131
    assert pixels[3, 128, 0] > pixels[3, 128, 2]
    assert pixels[3, 3, 2] > pixels[3, 3, 0]


def test_the_processor_is_named_with_its_cores() -> None:
    assert re.fullmatch(r"\S.*, [1-9]\d* cores?", processor())


def test_numbers_in_words() -> None:
    assert [duration(s) for s in (0.123, 59.97, 154, 3599.8, 11520, 86399, 350_000)] == [
        "0.123 s", "1 min 0 s", "2 min 34 s", "1 h 0 min", "3 h 12 min", "1 d 0 h", "4 d 1 h"
    ]  # fmt: skip
    assert [short(n) for n in (0, 7, 999.7, 8_215_568)] == ["0", "7", "1 k", "8.22 M"]
    assert short(1.42e16, "FLOP") == "14.2 PFLOP"


def test_pages_need_no_other_file(tmp_path: Path) -> None:
    run = made(tmp_path)
    facts = read_facts(run)
    paths = [write_report(facts), write_interactive(facts), write_table([facts, facts])]
    assert [Path(path).name for path in paths] == ["report.html", "interactive.html", "table.html"]
    for path in paths:
        page = Elements(Path(path).read_text())
        assert page.outside() == []
        [policy] = [each["content"] for _, each in page.found if each.get("http-equiv")]
        assert str(policy).startswith("default-src 'none'")
        assert ("meta", {"charset": "utf-8"}) in page.found
    report = Elements(Path(paths[0]).read_text())
    tags = [tag for tag, _ in report.found]
    assert tags.count("img") == 2 * tags.count("figure") > 0  # images and their reconstructions
    assert (tags.count("svg"), tags.count("details")) == (2, 7)
    text = "".join(text for _, text in report.texts)
    assert "0.00 %" in text
    assert "conv_channels" in text


def test_what_a_page_would_fetch_is_noticed() -> None:
    page = Elements(
        "<style>a{background:url(x)}</style><img src='http://a/b.png'><script>fetch('c')</script>"
    )
    assert page.outside() == ["http://a/b.png", "url(", "fetch("]


def test_fields_that_the_preset_has_otherwise_are_marked(tmp_path: Path) -> None:
    path = write_report(read_facts(finished(tmp_path, "a", 2.0, optim__learning_rate=0.007)), images=False)
    page = Path(path).read_text()
    assert page.count("Preset: ") == 1
    assert "Preset: 0.001." in page
    [summary] = re.findall(r"<summary>optim (.*?)</summary>", page, re.DOTALL)
    words = " ".join(re.sub(r"<.*?>", "", summary).split())
    assert words == "18 fields; not as the preset: learning_rate 0.007"
    assert "There are none in this page." in page


def test_the_error_stands_with_its_interval_and_that_of_labels(tmp_path: Path) -> None:
    run = finished(tmp_path, "a", 2.0)
    with (run / "metrics.jsonl").open("a") as file:
        more = {"error_interval_percent": [0.551, 7.0], "label_error_percent": 1.25}
        row = {"kind": "test", "step": 41, "error_percent": 2.0, "loss": 0.1, "num_images": 1100, **more}
        file.write(json.dumps(row) + "\n")
    page = Path(write_report(read_facts(run), images=False)).read_text()
    assert "1,100 test images; 95 %: 0.55 to 7.00 %; 1.25 % of their labels" in page


def test_names_cannot_become_elements(tmp_path: Path) -> None:
    run = made(tmp_path)
    hostile = run.with_name(HOSTILE.replace("/", "|"))
    run.rename(hostile)
    facts = read_facts(hostile)
    facts.rows[0]["network"] = HOSTILE
    facts = type(facts)(**{**vars(facts), "classes": (HOSTILE,) * 4})
    for path in (write_report(facts, images=False), write_interactive(facts), write_table([facts])):
        page = Elements(Path(path).read_text())
        assert not any("onerror" in attributes for _, attributes in page.found)
        assert page.outside() == []


def test_a_table_says_what_differs_and_averages_over_seeds(tmp_path: Path) -> None:
    errors = {"one": 3.0, "two": 2.5, "three": 3.5}
    runs = [
        finished(tmp_path, name, error, train__seed=n, train__name=name)
        for n, (name, error) in enumerate(errors.items())
    ]
    runs.append(finished(tmp_path, "deep", 2.0, routing__iterations=5, train__num_workers=1))
    page = Path(write_table([read_facts(run) for run in runs])).read_text()
    assert page.count("routing.iterations</th>") == 2
    assert page.count("train.seed</th>") == 1
    assert "num_workers" not in page
    links = re.findall(r'<a href="(.*?)">', page)
    assert links == ["deep/report.html", "two/report.html", "one/report.html", "three/report.html"]
    mean, sd = statistics.fmean(errors.values()), statistics.stdev(errors.values())
    [line] = [line for line in re.findall(r"<tr>.*?</tr>", page, re.DOTALL) if f"{sd:.2f} %" in line]
    assert f"{mean:.2f} %" in line
    assert "2.50 %" in line
    assert "<td>3</td>" in line


def test_the_command_reports_a_folder_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [finished(tmp_path / "runs", name, 2.0, data__root=str(tmp_path)) for name in ("a", "b", "c")]
    (runs[1] / "metrics.jsonl").unlink()
    (tmp_path / "runs/other").mkdir()
    assert main(["report", str(tmp_path / "runs")]) == 1
    printed = capsys.readouterr()
    lines = [f"report: {runs[0]}/report.html", f"report: {runs[2]}/report.html"]
    assert printed.out.splitlines() == [*lines, f"table: {tmp_path}/runs/table.html"]
    assert f"error: {runs[1]} holds no metrics.jsonl; give the folder of a run" in printed.err
    shutil.copytree(runs[0], tmp_path / "d")
    two = [str(runs[2]), str(tmp_path / "d")]
    assert main(["report", *two, "--no-images", "--to", str(tmp_path / "e")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"table: {tmp_path}/e/table.html"
    with pytest.raises(RunError, match="the 2 runs lie in no common folder; say where table"):
        write_table([read_facts(runs[0]), read_facts(tmp_path / "d")])
