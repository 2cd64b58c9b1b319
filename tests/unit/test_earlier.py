"""Presets of version 0.1: each run of them is continued with what they meant, and no other run is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capsdist.config import PRESETS, Config, get_preset
from capsdist.config.earlier import as_begun

STORED = json.loads(Path(__file__).with_name("presets_of_0_1.json").read_text())  # written by the code of 0.1
BEGUN = {name: Config.model_validate(values) for name, values in STORED.items()}


def with_values(config: Config, **values: object) -> Config:
    for name, value in values.items():
        section, field = name.split("__")
        part = getattr(config, section).model_copy(update={field: value})
        config = config.model_copy(update={section: part})
    return config


@pytest.mark.parametrize("name", STORED)
def test_a_run_of_every_preset_of_0_1_goes_on_as_it_began(name: str) -> None:
    assert as_begun(get_preset(name), BEGUN[name])[0] == BEGUN[name]


def test_a_field_that_0_1_did_not_have_means_what_it_did() -> None:
    config = Config()
    assert not config.model.primary_coupling
    assert (config.optim.epsilon_placement, config.data.last_batch) == ("pytorch", "short")
    assert Config.model_validate({"data": {"test_split": "other"}}).data.validation_split == "other"


@pytest.mark.parametrize("name", PRESETS)
def test_a_run_of_today_is_continued_as_it_is(name: str) -> None:
    config = get_preset(name)
    assert as_begun(config, config) == (config, None)


def test_a_run_whose_decoder_draws_both_digits_at_once_goes_on_so() -> None:
    today = get_preset("multimnist_paper")
    begun = with_values(today, model__decoder_separate=False)
    assert as_begun(today, begun)[0] == begun


def test_the_note_names_every_field_and_the_way_to_todays_preset() -> None:
    _, note = as_begun(get_preset("mnist_official"), BEGUN["mnist_official"])
    assert note == (
        "continues as version 0.1 began it: model.primary_coupling=False not True, "
        "optim.epsilon_placement='pytorch' not 'tensorflow', data.last_batch='short' not 'carry', "
        "train.precision='auto' not 'fp32', data.validation_split='test' not None, "
        "train.keep_best=1 not 0; another --train.name gets today's preset"
    )


def test_what_was_set_on_the_command_line_stays() -> None:
    asked = with_values(get_preset("mnist_official"), data__last_batch="short", train__precision="bf16")
    found, _ = as_begun(asked, BEGUN["mnist_official"])
    assert found == with_values(BEGUN["mnist_official"], train__precision="bf16")


def test_a_run_of_today_with_one_old_field_is_no_run_of_0_1() -> None:
    config = get_preset("cifar10_official")
    stored = with_values(config, data__last_batch="short")
    assert as_begun(config, stored) == (config, None)


@pytest.mark.parametrize("name", PRESETS)
def test_a_run_that_began_before_there_was_validation_validates_on_its_test_split(name: str) -> None:
    """The other fields are today's: it is a run of this version's development."""
    begun = get_preset(name).model_dump(mode="json")
    del begun["data"]["validation_split"]
    begun["data"] |= {"train_split": "train", "test_split": "held_out"}
    begun["train"]["keep_best"] = 1
    stored = Config.model_validate(begun)
    asked = with_values(get_preset(name), data__test_split="held_out")
    found, note = as_begun(asked, stored)
    assert found == stored
    assert note is not None
    assert "data.validation_split='held_out' not " in note


def test_validation_that_was_asked_for_is_refused_as_another_configuration() -> None:
    asked = with_values(get_preset("mnist_paper"), data__validation_split="validation")
    assert as_begun(asked, BEGUN["mnist_paper"])[0].data.validation_split == "validation"
