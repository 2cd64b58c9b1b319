"""The display, fed with rows: plain lines without control codes, a live line on a terminal, the last line."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest

from capsdist.train.display import Display

START: dict[str, Any] = {
    "kind": "start", "step": 0, "epoch": 0.0, "run": "quickstart", "preset": "digits_quickstart",
    "data": "digits", "test_split": "test", "model": "capsnet", "network": "capsule network",
    "num_parameters": 8215568,
    "precision": "bf16", "engine": "ddp", "device": "cpu", "world_size": 2, "torch_threads": 1,
    "global_batch_size": 64, "steps_per_epoch": 63, "total_steps": 252, "resumed_step": 0,
}  # fmt: skip
TRAIN: dict[str, Any] = {
    "kind": "train", "step": 10, "epoch": 0.16, "loss": 0.2312, "margin_loss": 0.2,
    "reconstruction_loss": 31.0, "error_percent": 12.5, "learning_rate": 1e-3, "grad_norm": 0.5,
    "images_per_s": 1231.4, "step_time_s": 0.1, "eta_s": 3667.0, "time_s": 3.0,
}  # fmt: skip
VALIDATION = {
    "kind": "validation", "step": 63, "epoch": 1.0, "error_percent": 8.2, "loss": 0.201, "num_images": 1000,
    "confusion": [], "time_s": 30.0,
}  # fmt: skip
END = {
    "kind": "end", "step": 252, "epoch": 4.0, "run": "quickstart", "test_split": "test", "stopped": False,
    "error_percent": 2.71, "loss": 0.1, "num_images": 1000, "images_per_s": 231.0,
    "checkpoint": "step_00000252", "wall_time_s": 112.0,
}  # fmt: skip
LAST = "error_percent 2.71  (test, 1,000 images, run quickstart)"


def plain(*rows: dict[str, Any], interval_s: float = 0.0) -> list[str]:
    """The lines of a plain display."""
    file = io.StringIO()
    with Display(file, interval_s=interval_s) as display:
        for row in rows:
            display(row)
    return file.getvalue().splitlines()


class Terminal(io.StringIO):
    """What a terminal receives."""

    def isatty(self) -> bool:
        return True


def on_terminal(*rows: dict[str, Any], width: int) -> str:
    """What the display sends to a terminal of `width` columns."""
    file = Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_JOB_ID", raising=False)
        patch.setenv("TERM", "xterm-256color")
        patch.setenv("COLUMNS", str(width))
        with Display(file) as display:
            for row in rows:
                display(row)
                if display._live:
                    display._live.refresh()
    return file.getvalue()


def test_plain_output_has_no_control_codes_and_ends_with_the_error() -> None:
    lines = plain(START, TRAIN, VALIDATION, {"kind": "checkpoint", "step": 63}, END)
    assert all(line.isprintable() for line in lines)
    assert lines[0] == "quickstart  capsule network of 8,215,568 parameters on digits"
    assert lines[1] == "2 workers on cpu (1 thread each), engine ddp, bf16; 252 steps of 64 images"
    assert lines[2] == "step 10/252  1,231 images/s  loss 0.231  error_percent 12.50  eta 1:01:07"
    assert re.fullmatch(r"epoch 1 +step 63 +error_percent 8\.20 +loss 0\.201 +test, 1,000 images", lines[3])
    assert lines[-4].split() == ["-" * len(lines[-5])]
    assert lines[-3].split() == ["quickstart", "252", "231", "2.71", "step_00000252", "1:52"]
    assert lines[-1] == LAST


def test_the_last_line_has_the_interval_of_the_error() -> None:
    last = plain(START, END | {"error_interval_percent": [1.868, 3.917]})[-1]
    assert last == LAST.replace("(test", "(95 % interval 1.87 to 3.92, test")


def test_plain_progress_is_rare_but_validations_are_not() -> None:
    lines = plain(START, *[TRAIN] * 50, *[VALIDATION] * 3, interval_s=3600.0)
    assert sum(line.startswith("step") for line in lines) == 1
    assert sum(line.startswith("epoch") for line in lines) == 3


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_gets_all_figures_on_one_line(width: int) -> None:
    sent = on_terminal(START, TRAIN, VALIDATION, END, width=width)
    bare = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sent)
    progress = [line for line in re.split(r"[\r\n]", bare) if "10/252" in line]
    assert "━" in progress[0]
    for figure in ("10/252", "1,231 images/s", "loss 0.231", "error_percent 12.50", "eta 1:01:0"):
        assert figure in progress[0]
    assert all(len(line) <= width for line in re.split(r"[\r\n]", bare))
    assert bare.rstrip().splitlines()[-1] == LAST
    assert sent.count("\x1b[?25l") == sent.count("\x1b[?25h")  # the cursor comes back


def test_a_narrow_terminal_drops_figures_from_the_right() -> None:
    bare = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", on_terminal(START, TRAIN, width=40))
    progress = [line for line in re.split(r"[\r\n]", bare) if "10/252" in line]
    assert "images/s" in progress[0]
    assert "eta" not in progress[0]
    assert len(progress[0]) <= 40


@pytest.mark.parametrize("variables", [{"RAY_JOB_ID": "01000000"}, {"TERM": "dumb"}])
def test_a_ray_job_or_a_dumb_terminal_gets_plain_lines(variables: dict[str, str]) -> None:
    file = Terminal()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        with Display(file) as display:
            display(START)
    assert "\x1b" not in file.getvalue()


def test_a_resumed_run_says_where_it_goes_on() -> None:
    assert "continues after step 126" in plain(START | {"resumed_step": 126})


@pytest.mark.parametrize(
    ("resident", "text"),
    [("never", ""), ("device", ", kept in memory"), ("shared", ", kept in shared memory")],
)
def test_the_start_says_where_the_images_are_kept(resident: str, text: str) -> None:
    assert plain(START | {"resident": resident})[1].endswith(f"; 252 steps of 64 images{text}")


def test_a_failed_worker_is_shown_with_its_message_as_it_is() -> None:
    lines = plain(START, {"kind": "failure", "message": "rank 1: KeyError: [bold]"})
    assert lines[-1].endswith("starting again from the newest checkpoint: rank 1: KeyError: [bold]")


def test_a_stopped_run_says_how_to_continue_it() -> None:
    lines = plain(START, END | {"stopped": True, "error_percent": None, "num_images": None, "step": 9})
    assert lines[-1] == "stopped after step 9: start quickstart again to continue it"
    assert lines[-3].split()[3] == "-"


ODD = "s3://b/x[/y]/a[b]c[bold]/:cat:"
PROGRESS = {"kind": "progress", "doing": ODD, "done": 1, "total": 9}


@pytest.mark.parametrize(
    "rows",
    [
        [{"kind": "status", "message": ODD}],
        [{"kind": "note", "message": ODD}],
        [{"kind": "failure", "message": ODD}],
        [PROGRESS],
        [START, PROGRESS],
        [START | {"run": ODD}],
        [START | {"data": ODD}],
        [START | {"test_split": ODD}, VALIDATION],
        [START, END | {"run": ODD}],
        [START, END | {"run": ODD, "stopped": True, "error_percent": None}],
        [START, END | {"test_split": ODD}],
        [START, END | {"checkpoint": ODD}],
    ],
    ids=lambda rows: "-".join(row["kind"] for row in rows),
)
def test_texts_of_others_are_shown_as_they_are(rows: list[dict[str, Any]]) -> None:
    assert any(ODD in line for line in plain(*rows))
    assert ODD in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", on_terminal(*rows, width=200))


def test_validations_name_the_split_that_they_are_on() -> None:
    lines = plain(START | {"validation_split": "validation"}, VALIDATION, {"kind": "test", "step": 63}, END)
    assert lines[2].endswith("validation, 1,000 images")
    assert lines[-1] == LAST  # the test: told by the row of the end
