"""Presets: each is valid, documented, and holds the numbers of its source."""

from __future__ import annotations

import pytest

from capsdist.config import PRESETS, Config, get_preset, problems, with_values
from capsdist.config.presets.mnist_ablation import ABLATIONS, DIFFERENCES
from capsdist.data.sets.spec import DATASETS, find_dataset
from capsdist.errors import ConfigError
from kinds_of_presets import DISTINCT


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_documented_and_knows_its_name(name: str) -> None:
    config = get_preset(name)
    assert problems(config) == []
    assert config.preset == name
    assert (PRESETS[name].__doc__ or "").strip().endswith(".")
    assert Config.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_same_each_time(name: str) -> None:
    assert get_preset(name) == get_preset(name)


def test_no_two_presets_share_a_run_name() -> None:
    names = [get_preset(name).train.name for name in PRESETS]
    assert len(set(names)) == len(names)


def test_an_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match="preset='mnist': is not a preset; choose one of mnist_paper, "):
        get_preset("mnist")


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith("_official")])
def test_official_presets_follow_the_authors_code(name: str) -> None:
    config = get_preset(name)
    assert config.model.capsule_bias
    assert config.model.initialisation == "truncated_normal"
    assert config.loss.margin_reduction == "official"
    assert config.train.global_batch_size == 128
    optim = config.optim
    assert (optim.learning_rate, optim.learning_rate_floor) == (1e-3, 1e-6)
    assert (optim.decay_rate, optim.decay_steps) == (0.96, 20_000 if "multimnist" in name else 2000)


PROFILES = {
    "paper": (False, "tensorflow", "short", "auto"), "official": (True, "tensorflow", "carry", "fp32"),
    "baseline": (None, "tensorflow", "short", "auto"), "quickstart": (False, "pytorch", "short", "auto"),
    "conv": (None, "pytorch", "short", "auto"), "deep": (None, "pytorch", "short", "auto"),
    "stack": (None, "pytorch", "short", "auto"),
    **dict.fromkeys(("attention", "inverted", "heinsen", "grouped"), (False, "pytorch", "short", "auto")),
    "em": (None, "tensorflow", "short", "auto"),
    "small": (False, "pytorch", "short", "auto"), "resnet": (None, "pytorch", "short", "auto"),
    "autoencoder": (None, "pytorch", "short", "fp32"),
}  # fmt: skip


@pytest.mark.parametrize("name", DISTINCT)
def test_every_preset_says_what_its_source_does(name: str) -> None:
    """Only official ones divide primary capsules by their types and fill the last batch."""
    config = get_preset(name)
    found = (
        getattr(config.model, "primary_coupling", None), config.optim.epsilon_placement,
        config.data.last_batch, config.train.precision,
    )  # fmt: skip
    name = "em" if "_em" in name else name
    assert found == PROFILES["resnet" if "resnet" in name else name.rpartition("_")[2]]


def test_the_paper_presets_differ_from_official_ones_where_the_sources_do() -> None:
    config = get_preset("mnist_paper")
    assert not config.model.capsule_bias
    assert config.loss.margin_reduction == "paper"
    assert config.data.shift == 2
    assert config.loss.reconstruction_weight == 0.0005


@pytest.mark.parametrize("name", ["cifar10_paper", "cifar10_official"])
def test_cifar_is_as_in_section_7(name: str) -> None:
    config = get_preset(name)
    assert config.routing.none_of_the_above
    assert (config.routing.iterations, config.model.primary_types) == (3, 64)
    assert (config.model.in_channels, config.model.image_size, config.data.crop) == (3, 24, 24)


VALIDATED = ("digits_", "capsnet_small", "resnet", "affnist", "azimuth", "elevation")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_of_papers_train_on_everything_and_the_others_validate(name: str) -> None:
    config = get_preset(name)
    if any(part in name for part in VALIDATED) and "autoencoder" not in name:
        assert (config.data.validation_split, config.train.keep_best) == ("validation", 1)
    else:
        assert (config.data.train_split, config.data.validation_split) == ("train", None)
        assert config.train.keep_best == 0
    assert config.data.test_split == "test"


# ---- differences between the profiles


def changed(config: Config, other: Config) -> dict[str, object]:
    """Fields in which `other` differs, but for the names of preset and run."""
    before, after = (each.model_dump(exclude={"preset": True, "train": {"name"}}) for each in (config, other))
    return {
        f"{section}.{field}": value
        for section, fields in after.items()
        for field, value in fields.items()
        if before[section][field] != value
    }


def test_each_ablation_is_mnist_paper_with_one_difference() -> None:
    paper = get_preset("mnist_paper")
    for difference, (field, value, _) in DIFFERENCES.items():
        assert changed(paper, get_preset(f"mnist_ablation_{difference}")) == {field: value}
    others = {name for name in ABLATIONS if name.removeprefix("mnist_ablation_") not in DIFFERENCES}
    assert others == {"mnist_ablation_epsilon_placement"}
    only = changed(paper, get_preset("mnist_ablation_epsilon_placement"))
    assert only == {"optim.epsilon_placement": "pytorch"}


def test_all_differences_together_are_mnist_official() -> None:
    paper, official = get_preset("mnist_paper"), get_preset("mnist_official")
    values = {field: value for field, value, _ in DIFFERENCES.values()}
    assert changed(official, with_values(paper, values)) == {}
    for field in values:
        rest = {name: value for name, value in values.items() if name != field}
        assert changed(official, with_values(paper, rest)).keys() == {field}


# ---- rows of the paper


def test_multimnist_is_as_in_section_6() -> None:
    for name in ("multimnist_paper", "multimnist_official", "multimnist_baseline"):
        config = get_preset(name)
        assert (config.model.image_size, config.model.num_labels, config.data.shift) == (36, 2, 0)
        assert config.optim.decay_steps == 20_000
        assert config.model.draws_parts == (not name.endswith("baseline"))
    assert get_preset("multimnist_paper").routing.iterations == 3


def test_smallnorb_is_as_in_section_7() -> None:
    for name in (name for name in PRESETS if name.startswith("smallnorb")):
        config = get_preset(name)
        assert (config.model.in_channels, config.model.num_classes) == (2, 5)
        assert (config.data.resize, config.data.crop, config.model.image_size) == (48, 32, 32)
        assert config.data.standardise == ("official" in name or "_em" in name)


MATCHED = {
    "affnist_paper": 0.77, "affnist_baseline": 0.78, "smallnorb_azimuth_paper": 3.7,
    "smallnorb_azimuth_baseline": 3.7, "smallnorb_elevation_paper": 4.3, "smallnorb_elevation_baseline": 4.3,
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_networks_that_are_compared_stop_at_the_published_error(name: str) -> None:
    """Of a validation, on familiar views; then the test, and further ones, which no training has seen."""
    config = get_preset(name)
    assert config.train.stop_at_error == MATCHED.get(name)
    further = {place for place in config.data.further_tests if not place.endswith("/validation")}
    assert further == ({"affnist/test", "affnist_like/test"} if name.startswith("affnist") else set())
    novel = "azimuth" in name or "elevation" in name
    assert (f"{config.data.name}/validation" in config.data.further_tests) == novel


def test_svhn_is_as_in_section_7() -> None:
    model = get_preset("svhn_paper").model
    assert (model.conv_channels, model.primary_types, model.primary_dim, model.class_dim) == (64, 16, 6, 8)


@pytest.mark.parametrize("name", DISTINCT)
def test_presets_fit_the_sets_that_they_name(name: str) -> None:
    config = get_preset(name)
    if config.data.name not in DATASETS or config.data.decode_size:  # of the user, or with classes in files
        return
    spec = find_dataset(config.data.name)
    assert config.model.num_classes == len(spec.classes)
    assert set(config.data.splits.values()) <= {*spec.splits, "train_part", "validation"}
