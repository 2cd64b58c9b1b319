"""Ranges of tuples: of all numbers, or of each item."""

from __future__ import annotations

from typing import Annotated

import pytest

from capsdist.config import get_preset, problems, with_values
from capsdist.config.rules import section_problems
from capsdist.config.sections import Bounds, Count, Section


class Tuples(Section):
    counts: tuple[Count, ...] = (1,)
    whole: Annotated[tuple[int, ...], Bounds(ge=1)] = (1,)
    each: tuple[Count, Annotated[float, Bounds(lt=0)]] = (1, -1.0)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("counts", (3, 1), ""), ("counts", (), ""), ("counts", (3, 0, -3), "at least 1"),
        ("whole", (3, 1), ""), ("whole", (3, 0, -3), "at least 1"),
        ("each", (2, -2.0), ""), ("each", (0, -2.0), "at least 1"), ("each", (2, 2.0), "less than 0"),
    ],
)  # fmt: skip
def test_a_range_is_of_every_item_of_a_tuple(field: str, value: tuple, rule: str) -> None:
    found = [*map(str, section_problems("own", Tuples.model_validate({field: value})))]
    assert found == ([f"own.{field}={value!r}: must be {rule}; correct --own.{field}"] if rule else [])


@pytest.mark.parametrize("number", [0, -3])
def test_a_hidden_layer_has_a_capsule(number: int) -> None:
    config = with_values(get_preset("digits_inverted"), {"routing.hidden_capsules": (16, number)})
    (problem,) = problems(config)
    assert str(problem).startswith(f"routing.hidden_capsules=(16, {number}): must be at least 1; ")
