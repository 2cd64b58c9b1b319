"""The configuration: ranges, rules across fields, frozen sections, round trip, and all problems at once."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from collections.abc import Iterator

import pytest
from pydantic import BaseModel, ValidationError

from capsdist.config import Config, image_shape, problems, validate
from capsdist.config.images import sides
from capsdist.config.schema import Bounds
from capsdist.errors import ConfigError
from capsdist.runs.rundir import parse_config

SECTIONS = [name for name in Config.model_fields if isinstance(getattr(Config(), name), BaseModel)]


def changed(**fields: object) -> Config:
    """The default configuration with `section__field` set, unchecked as on the command line."""
    config = Config.model_validate({"model": {"kind": fields.pop("model__kind", "capsnet")}})
    for path, value in fields.items():
        section, name = path.split("__")
        part = getattr(config, section)
        part = type(part).model_validate({**part.model_dump(), name: value})
        config = config.model_copy(update={section: part})
    return config


def bounded_fields() -> Iterator[tuple[str, Bounds, type]]:
    """Every field that carries a range: name, range, type."""
    for section in SECTIONS:
        for name, field in type(getattr(Config(), section)).model_fields.items():
            for bounds in field.metadata:
                if isinstance(bounds, Bounds):
                    kind = float if field.annotation in (float, float | None) else int
                    yield f"{section}__{name}", bounds, kind


def edges(kind: type, bounds: Bounds) -> Iterator[tuple[float, bool]]:
    """Values at and just beyond each end of a range, and whether they are allowed."""
    up = (lambda x: x + 1) if kind is int else (lambda x: math.nextafter(x, math.inf))
    down = (lambda x: x - 1) if kind is int else (lambda x: math.nextafter(x, -math.inf))
    if bounds.ge is not None:
        yield from ((bounds.ge, True), (down(bounds.ge), False))
    if bounds.gt is not None:
        yield from ((up(bounds.gt), True), (bounds.gt, False))
    if bounds.le is not None:
        yield from ((bounds.le, True), (up(bounds.le), False))
    if bounds.lt is not None:
        yield from ((down(bounds.lt), True), (bounds.lt, False))


EDGES = [
    pytest.param(field, kind(value), allowed, id=f"{field}={value!r}")
    for field, bounds, kind in bounded_fields()
    for value, allowed in edges(kind, bounds)
]


@pytest.mark.parametrize(("field", "value", "allowed"), EDGES)
def test_every_range_is_held_at_its_edges(field: str, value: float, allowed: bool) -> None:
    name = field.replace("__", ".")
    # only the range rule: a value inside its range may still break a rule across fields
    found = [
        p for p in problems(changed(**{field: value})) if p.field == name and p.fix.startswith("correct --")
    ]
    assert found == [] if allowed else (len(found) == 1 and str(found[0]).startswith(f"{name}={value!r}: "))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["optim__learning_rate", "loss__absent_weight", "launch__cpus_per_worker"])
def test_numbers_must_be_finite(field: str, value: float) -> None:
    name = field.replace("__", ".")
    assert [p.field for p in problems(changed(**{field: value}))] == [name]


NORMALISED = {"data__normalise_mean": (0.1,), "data__normalise_std": (0.3,), "model__decoder": False}
SEPARATE = {"model__num_labels": 2, "model__decoder_separate": True}
WEB = {"data__reader": "webdataset", "data__urls": "https://h/{0..9}.tar", "data__num_samples": 300}
SGD, COSINE, CYCLE = ("kind", "sgd"), ("schedule", "cosine"), ("schedule", "one_cycle")
OPTIM_RULES = [  # fields of `optim`, the first of which is named
    ([("momentum", 0.8)], "is for kind sgd, and optim.kind is adam"),
    ([("nesterov", True), ("kind", "adamw")], "is for kind sgd, and optim.kind is adamw"),
    ([("nesterov", True), SGD, ("momentum", 0.0)], "needs momentum"),
    ([("weight_decay", 0.1)], "divided by Adam's second moment"),
    ([("beta1", 0.8), SGD], "is for kinds adam and adamw"),
    ([("epsilon_placement", "tensorflow"), SGD], "is for kinds adam and adamw"),
    ([("schedule_steps", 9)], "is for cosine and one_cycle"),
    ([("cycle_up", 0.4), COSINE], "is for one_cycle"),
    ([("warmup_steps", 3), CYCLE], "does not go with optim.schedule=one_cycle"),
    ([("warmup_steps", 9), COSINE, ("schedule_steps", 9)], "must be below the 9 steps"),
    ([("learning_rate_floor", 0.1), CYCLE], "must be below optim.learning_rate=0.001"),
]
RULES = [
    ("train.max_steps", 0, {"train__max_steps": 0}, "at least 1"),
    ("train.validate_every_steps", -3, {"train__validate_every_steps": -3}, "at least 1"),
    ("train.checkpoint_every_steps", 0, {"train__checkpoint_every_steps": 0}, "at least 1"),
    ("launch.max_workers", 0, {"launch__max_workers": 0}, "at least 1"),
    ("train.name", "a/b", {"train__name": "a/b"}, "names a folder"),
    ("train.name", "", {"train__name": ""}, "names a folder"),
    ("data.name", "../mnist", {"data__name": "../mnist"}, "names a folder"),
    ("data.train_split", "a b", {"data__train_split": "a b"}, "names a folder"),
    ("data.test_split", "/test", {"data__test_split": "/test"}, "names a folder"),
    ("data.test_split", "train", {"data__test_split": "train"}, "is the training split"),
    ("data.further_tests", "affnist", {"data__further_tests": ("affnist",)}, "must be SET/SPLIT"),
    ("data.further_tests", "a/../b", {"data__further_tests": ("a/b", "a/../b")}, "must be SET/SPLIT"),
    ("data.further_tests", "mnist/train", {"data__further_tests": ("mnist/train",)}, "the training split"),
    ("data.validation_split", "a b", {"data__validation_split": "a b"}, "names a folder"),
    ("data.validation_split", "train", {"data__validation_split": "train"}, "is the training split"),
    ("train.keep_best", 1, {"data__validation_split": None}, "data.validation_split=None has none"),
    ("data.crop", 24, {"data__crop": 24}, "must equal model.image_size=28"),
    ("data.crop", (28, 24), {"data__crop": (28, 24)}, "must equal model.image_size=28"),
    ("data.shift", 28, {"data__shift": 28}, "must be below model.image_size=28"),
    ("data.shift", 20, {"data__shift": 20, "model__image_size": (40, 20)}, "must be below"),
    ("data.resize", 24, {"data__resize": 24}, "must equal model.image_size=28"),
    ("data.crop", 24, {"data__resize": 28, "data__crop": 24}, "must equal model.image_size=28"),
    ("data.resize", (40, 27), {"data__resize": (40, 27), "data__crop": 28}, "smaller than data.crop=28"),
    ("data.resize_area", (0.1, 1.0), {"data__resize_area": (0.1, 1.0)}, "no effect without data.resize"),
    ("data.resize_ratio", (0.5, 2.0), {"data__resize_ratio": (0.5, 2.0)}, "no effect without data.resize"),
    ("data.resize_area", (0.5, 1.1), {"data__resize_area": (0.5, 1.1), "data__resize": 28}, "high <= 1"),
    ("data.resize_ratio", (0.0, 2.0), {"data__resize_ratio": (0.0, 2.0), "data__resize": 28}, "0 < low"),
    ("data.scale", (1.2, 0.8), {"data__scale": (1.2, 0.8)}, "0 < low <= high"),
    ("data.translation", 28.0, {"data__translation": 28.0}, "must be below model.image_size=28"),
    ("data.cutout", 28, {"data__cutout": 28}, "must be below model.image_size=28"),
    ("data.mixup", 0.001, {"data__mixup": 0.001}, "must be 0 or at least 0.01"),
    ("data.normalise_mean", (0.1, 0.2), {**NORMALISED, "data__normalise_mean": (0.1, 0.2)}, "in_channels=1"),
    ("data.normalise_std", (), {**NORMALISED, "data__normalise_std": ()}, "one number a channel"),
    ("data.normalise_std", (0.0,), {**NORMALISED, "data__normalise_std": (0.0,)}, "greater than 0"),
    ("data.normalise_std", (math.inf,), {**NORMALISED, "data__normalise_std": (math.inf,)}, "must be finite"),
    ("data.normalise_mean", (0.1,), {**NORMALISED, "data__standardise": True}, "data.standardise"),
    ("model.decoder", True, {**NORMALISED, "model__decoder": True}, "which data.normalise_mean removes"),
    ("data.contrast", (0.0, 1.0), {"data__contrast": (0.0, 1.0)}, "0 < low <= high"),
    ("data.contrast", (1.5, 0.5), {"data__contrast": (1.5, 0.5)}, "0 < low <= high"),
    ("data.contrast", (1.0, math.inf), {"data__contrast": (1.0, math.inf)}, "0 < low <= high"),
    ("loss.m_minus", 0.9, {"loss__m_minus": 0.9}, "below loss.m_plus=0.9"),
    ("model.decoder_hidden", (512, 0), {"model__decoder_hidden": (512, 0)}, "at least 1 each"),
    ("model.decoder", True, {"data__standardise": True}, "pixels in [0, 1]"),
    ("model.decoder_separate", True, {"model__decoder_separate": True}, "model.num_labels=1: it needs 2"),
    ("model.decoder_separate", True, {**SEPARATE, "data__mixup": 0.3}, "images that are not mixed"),
    ("model.decoder_separate", True, {**SEPARATE, **WEB}, "it needs packed recipes"),
    (
        "model.image_size",
        (40, 8),
        {"model__image_size": (40, 8), "model__padding": "same"},
        "must be at least 9",
    ),
    (
        "train.global_batch_size",
        8,
        {"train__global_batch_size": 8, "train__num_workers": 3, "train__gradient_accumulation_steps": 3},
        "at least num_workers x gradient_accumulation_steps = 9",
    ),
    (
        "train.microbatch_size",
        5,
        {"train__microbatch_size": 5, "train__gradient_accumulation_steps": 2},
        "splits what train.gradient_accumulation_steps=2 splits too",
    ),
    (
        "train.microbatch_size",
        "auto",
        {"train__microbatch_size": "auto", "train__zero_stage": 3},
        "train.zero_stage=3 is for one that does not fit",
    ),
    (
        "train.capsule_ranks",
        2,
        {"model__kind": "em_capsnet", "train__capsule_ranks": 2, "train__num_workers": 2},
        "(capsnet, resnet_capsnet, conv_capsnet), and model.kind=em_capsnet has none",
    ),
    ("data.lanes", 7, {"data__lanes": 7}, "must divide train.global_batch_size=128"),
    (
        "train.num_workers",
        5,
        {"train__num_workers": 5, "launch__max_workers": 4},
        "exceeds launch.max_workers=4",
    ),
    *(
        (f"optim.{fields[0][0]}", fields[0][1], {f"optim__{name}": value for name, value in fields}, rule)
        for fields, rule in OPTIM_RULES
    ),
    ("model.num_labels", 10, {"model__num_labels": 10}, "must be below model.num_classes=10"),
    ("train.precision", "fp16", {"train__precision": "fp16", "train__device": "cpu"}, "is for GPUs"),
    (
        "routing.recompute",
        "none",
        {"routing__recompute": "none", "routing__backend": "streamed"},
        "is for autograd, and routing.backend=streamed has its own backward pass",
    ),
    (
        "routing.gradient",
        "last",
        {"routing__gradient": "last", "routing__backend": "fused"},
        "not in the kernels of routing.backend=fused",
    ),
    ("routing.backend", "fused", {"routing__backend": "fused", "train__device": "cpu"}, "needs a GPU"),
]


@pytest.mark.parametrize(("field", "value", "fields", "rule"), RULES)
def test_every_rule_names_field_and_value(field: str, value: object, fields: dict, rule: str) -> None:
    (found,) = problems(changed(**fields))
    assert (found.field, found.value) == (field, value)
    assert rule in found.rule
    assert found.fix
    assert "\n" not in str(found)


ALLOWED = [
    {"optim__kind": "sgd", "optim__momentum": 0.0, "optim__weight_decay": 0.1, "optim__warmup_steps": 9},
    {
        "optim__kind": "adamw",
        "optim__weight_decay": 0.1,
        "optim__schedule": "one_cycle",
        "optim__cycle_up": 0.5,
    },
    {"optim__schedule": "cosine", "optim__schedule_steps": 10, "optim__warmup_steps": 9},
    {"train__max_steps": 1, "launch__max_workers": 1},
    {"data__crop": 28},
    {"data__crop": 28, "data__resize": (28, 40)},
    {"data__shift": 27},
    {"model__image_size": (17, 40), "data__crop": (17, 40)},
    {"model__image_size": 24, "data__crop": (24, 24)},
    NORMALISED,
    {"data__resize": 28, "data__resize_area": (0.08, 1.0), "data__resize_ratio": (0.75, 1.333)},
    {"data__shift": 2, "data__rotation": 180.0, "data__scale": (0.5, 2.0), "data__translation": 27.5},
    {"data__mixup": 0.01, "train__num_workers": 3, "data__cutout": 27},
    {"model__image_size": 17},
    {"model__image_size": 9, "model__padding": "same", "data__shift": 0},
    {"data__standardise": True, "model__decoder": False},
    {"data__standardise": True, "model__kind": "baseline_cnn"},
    {"model__image_size": 9, "model__kind": "baseline_cnn", "model__dropout": 0.1},
    {"train__precision": "fp16", "train__device": "gpu"},
    {
        "train__global_batch_size": 9,
        "train__num_workers": 3,
        "train__gradient_accumulation_steps": 3,
        "data__lanes": 3,
    },
    {"train__name": "a.b_c-9"},
    {"train__microbatch_size": "auto", "train__zero_stage": 3, "train__engine": "ddp"},
    {"train__microbatch_size": 300, "train__num_workers": 2},
    {"model__num_labels": 9},
    {"routing__recompute": "iterations", "routing__gradient": "last"},
    {"routing__recompute": "none", "routing__backend": "reference"},
    {"routing__gradient": "last", "routing__backend": "streamed"},
    {"routing__backend": "fused", "train__device": "gpu"},
]


@pytest.mark.parametrize("fields", ALLOWED)
def test_what_the_rules_allow(fields: dict) -> None:
    config = changed(**fields)
    assert validate(config) is config


def test_all_problems_are_reported_at_once_and_survive_pickling() -> None:
    config = changed(train__name="a b", data__lanes=7, optim__learning_rate=-1.0, data__crop=24)
    with pytest.raises(ConfigError) as caught:
        validate(config)
    fields = {"optim.learning_rate", "train.name", "data.crop", "data.lanes"}
    assert {problem.field for problem in caught.value.problems} == fields
    assert len(str(caught.value).splitlines()) == len(fields)
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems


@pytest.mark.parametrize("section", SECTIONS)
def test_sections_are_frozen(section: str) -> None:
    part = getattr(Config(), section)
    name = next(iter(type(part).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(part, name, getattr(part, name))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(Config(), section, part)


@pytest.mark.parametrize("section", SECTIONS)
def test_unknown_fields_are_refused(section: str) -> None:
    stored = Config().model_dump()
    stored[section]["colour"] = 1
    with pytest.raises(ValidationError, match=rf"{section}\.colour"):
        Config.model_validate(stored)


def test_an_unknown_section_is_refused() -> None:
    with pytest.raises(ValidationError, match="tune"):
        Config.model_validate({"tune": {}})


@pytest.mark.parametrize(("section", "name", "value"), [
    ("routing", "backend", "votes"), ("model", "kind", "resnet"), ("train", "zero_stage", 4),
    ("data", "contrast", [1.0]), ("train", "epochs", 1.5),
])  # fmt: skip
def test_values_of_the_wrong_type_are_refused(section: str, name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=rf"{section}\.{name}"):
        Config.model_validate({section: {name: value}})


def test_json_round_trip() -> None:
    config = changed(data__contrast=(0.2, 1.8), train__max_steps=7, model__decoder_hidden=(3, 5))
    assert Config.model_validate_json(config.model_dump_json()) == config
    assert Config.model_validate(json.loads(json.dumps(config.model_dump()))) == config


@pytest.mark.parametrize(("size", "stored"), [(28, 28), ((28, 28), 28), ((32, 64), [32, 64])])
def test_a_size_is_one_number_or_two(size: object, stored: object) -> None:
    config = changed(model__image_size=size)
    assert json.loads(config.model_dump_json())["model"]["image_size"] == stored
    assert Config.model_validate_json(config.model_dump_json(), strict=True) == config
    assert image_shape(config.model) == (1, *sides(config.model.image_size))


@pytest.mark.parametrize("size", ["32", [32], [1, 2, 3], [3.5, 4], None, {"height": 3}])
def test_what_is_no_size_is_refused_in_one_line(size: object) -> None:
    content = json.dumps({"model": {"image_size": size}}).encode()
    with pytest.raises(ConfigError) as caught:
        parse_config(content)
    [problem] = caught.value.problems
    assert problem.field == "model.image_size"
    assert problem.rule.endswith("give one integer, or two: height and width")


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_is_described(section: str) -> None:
    fields = type(getattr(Config(), section)).model_fields
    assert [name for name, field in fields.items() if not (field.description or "").endswith(".")] == []


def test_a_bad_configuration_is_refused_without_torch_or_ray() -> None:
    program = """
import sys
from capsdist.config import Config, Train, problems
assert problems(Config(train=Train(epochs=0)))
print(sorted({"torch", "ray", "deepspeed", "numpy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
