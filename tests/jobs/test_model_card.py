"""The model card of `capsdist export --to hub`: data, error, input, and whose work the network is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from export_cases import BASELINE, CONFIGS, CONV, CROPPED, EM, INVERTED, exported, save
from job_helpers import tiny_config, write_tiny

from capsdist.algorithms import BUILT_IN
from capsdist.cli.main import main
from capsdist.config import Config, Routing
from capsdist.config.models import find_family
from capsdist.console import DONE
from capsdist.models import build_model
from capsdist.runs.rundir import RunFolder, RunSummary
from capsdist.train.checkpoint import Checkpoint, EngineState, write_checkpoint


def test_the_card_says_what_the_network_is(tmp_path: Path) -> None:
    folder = save(tmp_path / "run", CONFIGS[CROPPED])
    assert exported(folder, "hub", tmp_path / "hub") == DONE
    card = (tmp_path / "hub/README.md").read_text()
    _, header, text = card.split("---\n", 2)
    assert yaml.safe_load(header)["pipeline_tag"] == "image-classification"
    for part in (
        "# shown: capsule network over a residual network\n", "CIFAR-10",
        "3 classes: `bar`, `dot`, `two rings`.",
        "error_percent 12.50 on data/cifar10/validation, when the run validated",
        "capsdist evaluate FOLDER --split data/cifar10/validation\n", "the central 7 x 7 is cut out",
        "less the means 0.1, 0.3, 0.5", "https://arxiv.org/abs/1710.09829", "## Intended use",
    ):  # fmt: skip
        assert part in text
    RunFolder(folder).write_result(RunSummary("shown", str(folder), "done", 7, 2.25, None, 60.0))
    assert exported(folder, "hub", tmp_path / "tested") == DONE
    assert (
        "error_percent 2.25 on data/cifar10/test, at the end" in (tmp_path / "tested/README.md").read_text()
    )


DYNAMIC, MATRICES = (
    "(https://arxiv.org/abs/1710.09829), 2017",
    "(https://openreview.net/forum?id=HJWLfGWRb), 2018",
)
SOURCES = {
    "dynamic": (DYNAMIC,),
    "attention": (DYNAMIC, "(https://arxiv.org/abs/2101.12491), 2021"),
    "inverted": (DYNAMIC, "(https://arxiv.org/abs/2002.04764), 2020"),
    "heinsen": (DYNAMIC, "(https://arxiv.org/abs/1911.00792), 2019"),
    "grouped": (DYNAMIC, "(https://doi.org/10.1371/journal.pone.0329202), 2025"),
    "average": (),
    "fully_connected": (),
}


@pytest.mark.parametrize(
    ("config", "sources"),
    [
        (CONFIGS[BASELINE], ()),
        (CONFIGS[CROPPED], (DYNAMIC,)),
        (CONFIGS[EM], (MATRICES,)),
        (CONFIGS[CONV], SOURCES["grouped"]),
        *(
            (CONFIGS[INVERTED].model_copy(update={"routing": Routing(algorithm=name)}), SOURCES[name])
            for name in BUILT_IN
        ),
    ],
    ids=[BASELINE, CROPPED, EM, CONV, *BUILT_IN],
)
def test_the_card_cites_who_published_network_and_routing(
    config: Config, sources: tuple[str, ...], tmp_path: Path
) -> None:
    assert exported(save(tmp_path / "run", config), "hub", tmp_path / "hub") == DONE
    lines = (tmp_path / "hub/README.md").read_text().split("## Source\n\n")[1].splitlines()
    cited = [line for line in lines if line.startswith("- ")]
    assert len(cited) == len(sources)
    assert all(line.endswith(f"{source}.") for line, source in zip(cited, sources, strict=True))
    assert lines[len(cited) :][-1].startswith("Written by capsdist ")


def test_a_family_that_has_no_card_names_its_source_too() -> None:
    assert "Transforming Auto-encoders" in find_family("transforming_autoencoder").source
    assert find_family("pooling_cnn").source == ""


def test_the_error_of_the_card_is_measured_where_a_split_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny(tmp_path / "data")
    split = str(tmp_path / "data/tiny/test")
    config = tiny_config(tmp_path / "data", tmp_path, "run")
    weights = build_model(config.model, config.routing).state_dict()
    write_checkpoint(tmp_path / "run/step_00000003", Checkpoint(EngineState(weights, {}), 3, 0, {}, config))
    assert exported(tmp_path / "run", "hub", tmp_path / "unknown") == DONE
    assert "Not measured." in (tmp_path / "unknown/README.md").read_text()
    assert exported(tmp_path / "run", "hub", tmp_path / "hub", "--split", split) == DONE
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "hub"), "--split", split]) == DONE
    last = capsys.readouterr().out.splitlines()[-1]
    [error] = re.findall(r"error_percent (\S+)", last)
    assert f"error_percent {error} on {split}, 23 images" in (tmp_path / "hub/README.md").read_text()
