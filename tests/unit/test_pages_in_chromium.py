"""Pages in Chromium: drawing, sliders, values under the pointer, light and dark, widths, requests."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, opened_browser
from digits_run import SMALL, train_on_digits

from capsdist.analysis.report.facts import read_facts
from capsdist.analysis.report.interactive_page import write_interactive
from capsdist.analysis.report.run_page import write_report
from capsdist.analysis.report.table_page import write_table
from capsdist.analysis.subject import read_images
from capsdist.config import CapsNetConfig
from capsdist.train.checkpoint import load_model

pytestmark = pytest.mark.slow
NETWORKS = {"small": (SMALL, 60, 32), "paper": (CapsNetConfig(), 30, 16)}
BOX = "(({ x, y, width, height }) => [x, y, width, height])(%s.getBoundingClientRect())"
READY = "document.body.dataset.state === 'ready'"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with opened_browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module", params=NETWORKS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Path:
    """A trained run with all its pages; it comes after the browser, without which nothing is trained."""
    found = train_on_digits(tmp_path_factory.mktemp("digits"), *NETWORKS[request.param])
    facts = read_facts(found)
    write_report(facts)
    write_interactive(facts)
    write_table([facts, facts])
    return found


@pytest.fixture(autouse=True)
def _no_faults(browser: Browser) -> Iterator[None]:
    """No page asks for anything but itself, or has an error in its console."""
    browser.faults.clear()
    browser.requests.clear()
    yield
    assert browser.faults == []
    others = {url for url in browser.requests if not url.startswith(("data:", "file:"))}
    files = {url.rpartition("/")[2] for url in browser.requests if url.startswith("file:")}
    assert (others, files - {"report.html", "interactive.html", "table.html"}) == (set(), set())


def test_the_page_reads_100_digits_as_pytorch_does(browser: Browser, run: Path) -> None:
    config, network = load_model(max(run.glob("step_*")))
    images = read_images(config, network, run.parents[1] / "data/digits/test", 100)
    browser.open(run / "interactive.html")
    browser.wait(READY)
    found = []
    for image in images.shown:
        pixels = json.dumps(image.flatten().tolist())
        call = f"capsnet.read(network, {pixels}).then(found => capsnet.largest(found.lengths.at(-1), 1)[0])"
        found.append(browser.run(call))
    assert found == images.predictions.tolist()
    assert (run / "interactive.html").stat().st_size < 40_000_000


def test_a_drawing_is_centred_and_read(browser: Browser, run: Path) -> None:
    browser.open(run / "interactive.html")
    browser.wait(READY)
    before = browser.run("[...state.pixels]")
    left, top, side, _ = browser.run(BOX % "sheet")
    circle = [(0.3 + 0.15 * math.cos(t / 4), 0.3 + 0.2 * math.sin(t / 4)) for t in range(26)]
    browser.drag([(left + side * x, top + side * y) for x, y in circle])
    browser.wait(READY)
    pixels = browser.run("[...state.pixels]")
    assert pixels != before
    assert 0 <= min(pixels) <= max(pixels) <= 1
    rows = [[pixels[28 * y + x] for x in range(28)] for y in range(28)]
    total = sum(pixels)
    middle = [sum(value * (x + 0.5) for row in rows for x, value in enumerate(row)) / total,
              sum(value * (y + 0.5) for y, row in enumerate(rows) for value in row) / total]  # fmt: skip
    assert middle == pytest.approx([14, 14], abs=0.1)
    inked = [y for y, row in enumerate(rows) if max(row) > 0]
    assert 20 <= inked[-1] - inked[0] + 1 <= 21
    shown = browser.run("part('verdict').textContent")
    assert shown == str(browser.run("capsnet.largest(state.lengths.at(-1), 1)[0]"))
    browser.run("part('clear').click()")
    browser.wait(READY)
    assert browser.run("Math.max(...state.pixels)") == 0
    browser.run("part('samples').children[3].click()")
    browser.wait(READY)
    assert browser.run("part('detail').textContent").startswith("true class 3; PyTorch reads ")


def test_sliders_move_the_pose_that_is_decoded(browser: Browser, run: Path) -> None:
    browser.open(run / "interactive.html", dark=True)
    browser.wait(READY)
    assert browser.run("sliders.length") == 16
    picture = "[...part('turned').getContext('2d').getImageData(0, 0, 28, 28).data]"
    before, pose = browser.run(picture), browser.run("[...state.pose]")
    browser.run("sliders[4].input.scrollIntoView({ block: 'center' })")
    left, top, width, height = browser.run(BOX % "sliders[4].input")
    x, y = left + width / 2, top + height / 2
    browser.drag([(x, y), (x + 20, y), (x + 60, y)])
    moved = browser.run("[...state.pose]")
    assert moved[4] > 0.1
    assert (moved[:4], moved[5:]) == (pose[:4], pose[5:])
    assert browser.run(picture) != before
    assert browser.run("part('dimension').textContent") == "5"
    expected = browser.run("Array.from(capsnet.decode(network, state.pose, state.chosen))")
    assert browser.run(picture)[::4] == pytest.approx([255 * value for value in expected], abs=1)
    browser.run("part('reset').click()")
    assert browser.run(picture) == before
    browser.run("part('class').value = 7, part('class').dispatchEvent(new Event('change'))")
    typical = browser.run("given.typical[7]")
    assert browser.run("[...state.pose]") == pytest.approx(typical, abs=1e-6)


def test_iterations_of_routing_can_be_changed(browser: Browser, run: Path) -> None:
    browser.open(run / "interactive.html")
    browser.wait(READY)
    third = browser.run("state.lengths[2]")
    browser.run("part('iterations').value = 7, part('iterations').dispatchEvent(new Event('input'))")
    assert browser.run("state.lengths.length") == 7
    assert browser.run("state.lengths[2]") == third
    assert browser.run("part('rounds').textContent") == "7"
    assert browser.run("document.querySelectorAll('.class .bar u').length") == 60


@pytest.mark.parametrize("name", ["report", "interactive", "table"])
@pytest.mark.parametrize("width", [360, 1280])
def test_pages_follow_scheme_and_width(
    browser: Browser, run: Path, name: str, width: int, tmp_path: Path
) -> None:
    colours = set()
    folder = run.parent if name == "table" else run
    for dark in (False, True):
        browser.open(folder / f"{name}.html", width=width, dark=dark)
        colours.add(browser.run("getComputedStyle(document.body).backgroundColor"))
        assert browser.run("document.documentElement.scrollWidth") <= width
        browser.picture(tmp_path / f"{name}-{width}-{'dark' if dark else 'light'}.png")
        assert (tmp_path / f"{name}-{width}-{'dark' if dark else 'light'}.png").stat().st_size > 10_000
    assert colours == {"rgb(246, 247, 249)", "rgb(16, 20, 24)"}


def test_values_are_shown_under_the_pointer(browser: Browser, run: Path) -> None:
    browser.open(run / "report.html")
    x, y, width, _ = browser.run(BOX % "document.querySelector('.box')")
    browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=x + width / 2, y=y + 20)
    says = browser.run("document.querySelector('.says').innerText").split("\n")
    rows = {row["step"]: row for row in read_facts(run).rows if row["kind"] == "train"}
    step = int(says[0].removeprefix("step "))
    assert says[1] == f"training {rows[step]['loss']:.4g}"


def test_a_table_is_sorted_by_its_headings(browser: Browser, run: Path) -> None:
    browser.open(run.parent / "table.html")
    browser.run("document.querySelectorAll('.runs th')[1].click()")
    assert browser.run("document.querySelectorAll('.runs th')[1].getAttribute('aria-sort')") == "ascending"
