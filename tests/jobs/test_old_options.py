"""Names of options and fields of version 0.1: accepted, told, and not in the help text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capsdist.cli.config_files import overlaid
from capsdist.cli.job import parse_command
from capsdist.config import Config, get_preset
from capsdist.config.stored import RENAMED
from capsdist.data import Position
from capsdist.errors import ConfigError

VALUES = {
    "form": "reference", "margin_form": "official", "downweight": 0.25, "global_batch": 64, "accumulation": 2,
    "workers": 3,
}  # fmt: skip
NAMES = [(section, old, new) for section, names in RENAMED.items() for old, new in names.items()]


@pytest.mark.parametrize(("section", "old", "new"), NAMES)
@pytest.mark.parametrize("spelling", ["--{}.{} {}", "--{}.{}={}"])
def test_an_old_option_is_accepted_with_one_line(capsys, section, old, new, spelling):
    words = spelling.format(section, old.replace("_", "-"), VALUES[old]).split()
    config, _ = parse_command(None, ["mnist_paper"], None, words)
    assert getattr(getattr(config, section), new) == VALUES[old]
    option = f"--{section}.{old} is now --{section}.{new}".replace("_", "-")
    assert capsys.readouterr().err == f"notice: {option}; the old name ends with version 0.3\n"


def test_a_section_of_another_name_is_accepted(capsys):
    config, _ = parse_command(None, ["mnist_paper"], None, ["--cluster.max-workers", "4"])
    assert config.launch.max_workers == 4
    assert "--cluster.max-workers is now --launch.max-workers" in capsys.readouterr().err
    stored = {"cluster": {"max_workers": 4}}
    assert Config.model_validate_json(json.dumps(stored), strict=True).launch.max_workers == 4
    assert overlaid(get_preset("mnist_paper"), stored).launch.max_workers == 4


def test_the_help_text_has_only_the_new_names(capsys):
    with pytest.raises(SystemExit):
        parse_command(None, ["mnist_paper"], None, ["--help"])
    shown = set(capsys.readouterr().out.split())
    assert {f"--{section}.{new}".replace("_", "-") for section, _, new in NAMES} <= shown
    assert not {f"--{section}.{old}".replace("_", "-") for section, old, _ in NAMES} & shown


def test_stored_fields_load_by_their_old_names():
    values: dict[str, dict] = {}
    for section, old, _ in NAMES:
        values.setdefault(section, {})[old] = VALUES[old]
    read = [
        Config.model_validate_json(json.dumps(values), strict=True),
        Config.model_validate(values),
        overlaid(get_preset("mnist_paper"), values),
    ]
    for config in read:
        assert {new: getattr(getattr(config, section), new) for section, _, new in NAMES} == {
            new: VALUES[old] for _, old, new in NAMES
        }


def test_both_names_at_once_are_refused():
    values = {"train": {"workers": 2, "num_workers": 2}}
    with pytest.raises(ConfigError, match=r"train\.workers"):
        overlaid(get_preset("mnist_paper"), values)


def test_a_position_of_version_0_1_loads():
    values = {"digest": "a", "seed": 0, "epoch": 1, "step": 2, "global_batch": 8, "lanes": 2, "window": 4}
    assert Position.from_dict(values).global_batch_size == 8


def test_no_text_names_an_old_option():
    """Documents, presets and messages use the new names."""
    root = Path(__file__).resolve().parents[2]
    old = {f"--{section}.{old}".replace("_", "-") for section, old, _ in NAMES}
    for path in [*root.glob("*.md"), *root.rglob("capsdist/**/*.md"), *root.rglob("cluster/**/*")]:
        if path.is_file() and path.name != "CHANGELOG.md":
            words = set(path.read_text(errors="replace").replace("=", " ").replace("`", " ").split())
            assert not old & words, path
