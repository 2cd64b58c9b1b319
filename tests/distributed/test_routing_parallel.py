"""Children split over ranks as compilers see them: the process group is found by its name."""

from __future__ import annotations

import torch
from capsule_runs import Setup, run_compiled


def test_a_step_with_split_children_compiles_whole(ranks) -> None:
    for eager, compiled in ranks(2).run(run_compiled, Setup(log_priors=True, seed=5)):
        assert eager.keys() == compiled.keys()
        for name, expected in eager.items():
            torch.testing.assert_close(compiled[name], expected)
