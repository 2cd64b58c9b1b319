"""The cells of the depth curve, its rows, table and figure, and the depth that fails."""

from __future__ import annotations

import numpy as np
import pytest

from capsdist.analysis.depth import draw_depths
from capsdist.config import get_preset, problems
from capsdist.models import build_model
from capsdist.models.conv_capsnet import ConvCapsNet
from capsdist.tune.cells import Cell
from capsdist.tune.depth import REMEDIES, depth_cells, failing_depth, markdown, rows_of

DEPTHS = (1, 2, 4, 6)
BASE = get_preset("digits_stack")


def test_cells_differ_by_depth_and_one_remedy() -> None:
    cells = depth_cells(BASE, DEPTHS, tuple(REMEDIES))
    assert len({cell.name for cell in cells}) == len(cells) == 23  # no residual path past class capsules
    plain = {cell.depth: cell.config for cell in cells if cell.remedy == "none"}
    for cell in cells:
        assert problems(cell.config) == []
        model = cell.config.model
        changed = {
            f"model.{name}" for name, value in model if value != getattr(plain[cell.depth].model, name)
        }
        assert changed == REMEDIES[cell.remedy].keys()
    for cell in (cells[0], cells[-1]):
        network = build_model(cell.config.model, cell.config.routing)
        assert isinstance(network, ConvCapsNet)
        blocks = network.capsule_blocks
        assert len(blocks) + 1 == cell.depth
        assert all(block.residual for block in blocks) == (cell.remedy == "residual" or not blocks)


@pytest.mark.parametrize(("errors", "live", "expected"), [
    ({1: 4.0, 2: 5.0, 4: 51.0, 6: 90.0}, {}, 4),
    ({1: 4.0, 2: 5.0, 4: 6.0, 6: 7.0}, {2: 9.9}, 2),
    ({1: 4.0, 2: 50.0, 4: 6.0}, {4: 10.0}, None),
])  # fmt: skip
def test_the_least_depth_that_fails_is_named(
    errors: dict[int, float], live: dict[int, float], expected: int | None
) -> None:
    cells = depth_cells(BASE, DEPTHS, ("none",))
    outcomes = {
        cell.name: Cell(cell.name, "place", "finished", "", 226, errors[cell.depth], [1.0, 99.0])
        if cell.depth in errors
        else Cell(cell.name, "place", "failed", "killed")
        for cell in cells
    }
    found = {f"depth{depth}-none": live.get(depth, 80.0) for depth in errors}
    rows = rows_of(cells, outcomes, found, {"depth2-none": ["blocks.0.layer: starved"]})
    assert failing_depth(rows, "none") == expected
    assert failing_depth(rows, "norm") is None
    text = markdown(rows, "Depth")
    assert f"none: fails at {expected} layers" in text or (expected is None and "fails at no depth" in text)
    assert "| blocks.0.layer: starved |" in text
    assert ("failed killed" in text) == (len(errors) < 4)
    limits = {"error_percent": 50.0, "live_percent": 10.0}
    figure = draw_depths([row.to_dict() for row in rows], limits, "Depth")
    error, _ = figure.axes
    points = np.array([[depth, found] for depth, found in errors.items()])
    assert np.array_equal(np.asarray(error.lines[0].get_xydata()), points)
