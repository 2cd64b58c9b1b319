"""Figures of time, speed, memory and shares in the READMEs are those of their records, or no measurements.

A measured figure is followed by a comment that readers do not see, with subject and name of the figure in the
newest record: 456.3 s<!-- tune whole_s -->. The results table has a test of its own (`test_tables.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from capsdist.bench.tables import newest_records, number
from capsdist.statistics import error_interval

ROOT = Path(__file__).resolve().parents[2]
NOT_OURS = {".venv", "data", "runs", "build"}
READMES = sorted(path for path in ROOT.rglob("README.md") if path.relative_to(ROOT).parts[0] not in NOT_OURS)
README = (ROOT / "README.md").read_text()
NEWEST = newest_records(ROOT / "jobs/records")
AMOUNT = r"\d[\d,.]*(?:\s+(?:to|and)\s+\d[\d,.]*)?"
UNITS = r"ns|µs|us|ms|s|seconds?|minutes?|hours?|images/s|[GT]FLOP/s|[KMGT]i?B(?:/s)?|bytes|%|times"
FIGURE = re.compile(rf"(?<![\w.,/-])({AMOUNT})\s({UNITS})(?![\w/])(?:<!--\s*(\S+)\s+(\S+)\s*-->)?")
NAMES = {
    "s": r"\w+_s", "ms": r"\w+_ms", "images/s": r"\w*images_per_s", "bytes": r"\w+_bytes",
    "%": r"\w+_percent|(\w+_)?share(_\w+)?", "times": r"(\w+_)?(speedup|ratio|over)(_\w+)?",
}  # fmt: skip

# What is not measured: limits and settings in the code, sizes that follow from shapes, facts about others.
NOT_MEASURED = {
    "capsdist/analysis/report/README.md": {"11 MB", "40 MB"},
    "capsdist/bench/README.md": {"21 GB"},
    "capsdist/claims/README.md": {"5 %", "95 %", "0.5 to 100 %"},
    "capsdist/data/README.md": {"10 seconds", "512 MiB", "1 GiB", "1 MiB"},
    "capsdist/data/recipes/README.md": {"78 MB"},
    "capsdist/export/README.md": {"94 MB", "1.5 GB"},
    "capsdist/routing/README.md": {"64 MB", "0.8 GB", "3.2 GB"},
    "capsdist/routing/dynamic/fused/README.md": {
        "227 KB",
        "425 MB",
        "6 MB",
        "2.8 times",
        "7 times",
    },
    "capsdist/storage/README.md": {"10 seconds", "64 GiB", "64 MiB", "50 MB"},
    "capsdist/launch/README.md": {"5 seconds", "3 s"},
    "capsdist/runs/README.md": {"10 seconds", "5 s", "16 s", "64 MiB"},
    "jobs/README.md": {"0.77 %", "0.78 %", "3.7 %", "4.3 %"},
    "tests/reference/README.md": {"64 MB"},
    "cluster/README.md": {"3 s", "150 GB"},
    "capsdist/clusters/README.md": {"110 MB"},
    "data_prep/README.md": {
        "7 MB",
        "56 MB",
        "105 MB",
        "117 MB",
        "185 MB",
        "306 MB",
        "410 MB",
        "515 MB",
        "600 MB",
        "900 MB",
        "1.6 GB",
        "19 GB",
        "150 GB",
        "10 seconds",
    },
}


def prose(text: str) -> str:
    """A document without blocks and pieces of code and without the results table."""
    text = re.sub(r"<!-- results -->.*?<!-- /results -->", "", text, flags=re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def faults(text: str, not_measured: set[str], records: Mapping[str, Any] = NEWEST) -> Iterator[str]:
    """What is wrong with the figures of a document."""
    for match in FIGURE.finditer(prose(text)):
        amount, unit, what, name = match.groups()
        shown = f"{amount} {unit}"
        if what is None:
            if shown not in not_measured:
                yield f"{shown}: has no record; add <!-- subject figure -->, or take it out"
            continue
        value = records[what][1]["figures"].get(name) if what in records else None
        scale = 100 if unit == "%" and "share" in name else 1
        if value is None or amount != number(scale * value) or not re.fullmatch(NAMES.get(unit, ""), name):
            yield f"{shown}: the record of {what} has {name}={value}"


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_figures_are_those_of_the_records(path: Path) -> None:
    known = NOT_MEASURED.get(str(path.relative_to(ROOT)), set())
    assert list(faults(path.read_text(), known)) == []


def test_the_error_that_the_quickstart_prints_is_that_of_its_record() -> None:
    [shown] = re.findall(r"^error_percent .* 1,000 images, run quickstart\)$", README, re.MULTILINE)
    error = NEWEST["quickstart"][1]["figures"]["error_percent"]
    low, high = error_interval(error, 1_000)
    interval = f"95 % interval {low:.2f} to {high:.2f}"
    assert shown == f"error_percent {error:.2f}  ({interval}, test, 1,000 images, run quickstart)"


def test_what_is_not_measured_is_still_there() -> None:
    for name, known in NOT_MEASURED.items():
        shown = {f"{match[1]} {match[2]}" for match in FIGURE.finditer(prose((ROOT / name).read_text()))}
        assert known - shown == set(), name


SOME = {
    "tune": ("", {"figures": {"whole_s": 456.3, "error_percent": 2.7, "share_of_preset_parameters": 0.293}}),
    "routing": ("", {"figures": {"speedup_vs_reference": 6.071, "num_runs": 30.0}}),
}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("takes 456.3 s<!-- tune whole_s --> here", None),
        ("takes 456 s<!-- tune whole_s --> here", "456 s: the record of tune has whole_s=456.3"),
        ("takes 456.3 ms<!-- tune whole_s --> here", "456.3 ms: the record of tune has whole_s=456.3"),
        ("takes 456.3 s<!-- dance whole_s --> here", "456.3 s: the record of dance has whole_s=None"),
        ("takes 0.9 ms", "0.9 ms: has no record; add <!-- subject figure -->, or take it out"),
        ("in 10 to 20 s", "10 to 20 s: has no record; add <!-- subject figure -->, or take it out"),
        ("of 29.3 %<!-- tune share_of_preset_parameters --> here", None),
        (
            "is 2.7 %<!-- tune error_percent -->, 2.7 % wrong",
            "2.7 %: has no record; add <!-- subject figure -->, or take it out",
        ),
        (
            "of 29 %<!-- tune share_of_preset_parameters -->",
            "29 %: the record of tune has share_of_preset_parameters=0.293",
        ),
        ("6.071 times<!-- routing speedup_vs_reference --> as fast", None),
        (
            "6.1 times<!-- routing speedup_vs_reference --> as fast",
            "6.1 times: the record of routing has speedup_vs_reference=6.071",
        ),
        ("30 times<!-- routing num_runs -->", "30 times: the record of routing has num_runs=30.0"),
        ("7 times as often", "7 times: has no record; add <!-- subject figure -->, or take it out"),
        ("`sleep 5 s`, torch 2.13, 64 images, 10 seconds", None),
    ],
)
def test_a_wrong_figure_is_noticed(text: str, fault: str | None) -> None:
    assert list(faults(text, {"10 seconds"}, SOME)) == ([] if fault is None else [fault])
