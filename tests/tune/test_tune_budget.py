"""Workers x concurrency fit into what there is; what does not fit is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from capsdist.config import Config, Launch, Train
from capsdist.errors import ConfigError
from capsdist.launch.preflight import Machine
from capsdist.tune.budget import Budget, on_cluster, on_machine
from capsdist.tune.space import Search


def config_of(
    num_workers: int, *, device: str = "auto", cpus: float = 0.0, most: int | None = None
) -> Config:
    train = Train.model_validate({"num_workers": num_workers, "device": device})
    return Config(train=train, launch=Launch(cpus_per_worker=cpus, max_workers=most))


ON_MACHINE = [
    (config_of(1), None, Machine(2, 0), Budget(2, 1, "cpu", 1)),
    (config_of(2), None, Machine(2, 0), Budget(1, 2, "cpu", 1)),
    (config_of(1), 1, Machine(2, 0), Budget(1, 1, "cpu", 2)),
    (config_of(2), 2, Machine(9, 0), Budget(2, 2, "cpu", 2)),
    (config_of(1, cpus=3), None, Machine(8, 0), Budget(2, 1, "cpu", 3)),
    (config_of(2), None, Machine(16, 8), Budget(4, 2, "gpu", 2)),
    (config_of(2, device="cpu"), None, Machine(16, 8), Budget(8, 2, "cpu", 1)),
    (config_of(8), None, Machine(16, 3), Budget(1, 3, "gpu", 5)),  # as many workers as GPUs
]


@pytest.mark.parametrize(("config", "concurrency", "machine", "expected"), ON_MACHINE)
def test_on_this_machine(config, concurrency, machine, expected):
    budget = on_machine(config, Search(concurrency=concurrency), machine)
    assert budget == expected
    assert budget.concurrency * budget.num_workers * budget.cores <= machine.cores


ON_CLUSTER = [
    (config_of(2), None, {"CPU": 9.0}, Budget(4, 2, "cpu", 1)),
    (config_of(2), None, {"CPU": 9.0, "GPU": 4.0}, Budget(2, 2, "gpu", 1)),
    (config_of(2, most=20), None, {"CPU": 0.0}, Budget(10, 2, "cpu", 1)),
    (config_of(4), None, {"CPU": 2.0}, Budget(1, 4, "cpu", 1)),  # Ray waits for the cluster to grow
    (config_of(2, cpus=2), 1, {"CPU": 9.0}, Budget(1, 2, "cpu", 2)),
]


@pytest.mark.parametrize(("config", "concurrency", "resources", "expected"), ON_CLUSTER)
def test_on_a_cluster(config, concurrency, resources, expected):
    assert on_cluster(config, Search(concurrency=concurrency), resources) == expected


def test_more_trials_at_a_time_than_there_is_room_for_are_refused():
    with pytest.raises(
        ConfigError, match=r"search.concurrency=3: x 1 workers with 1 CPU .* 2 cores; set .* 2"
    ):
        on_machine(config_of(1), Search(concurrency=3), Machine(2, 0))
    with pytest.raises(
        ConfigError, match=r"search.concurrency=3: x 2 workers .* 4 workers; --launch.max-work"
    ):
        on_cluster(config_of(2, most=4), Search(concurrency=3), {"CPU": 99.0})


def test_a_trial_that_does_not_fit_alone_is_refused_as_a_run_is():
    with pytest.raises(ConfigError, match=r"train.num_workers=3: needs 3 cores"):
        on_machine(config_of(3), Search(), Machine(2, 0))


def test_a_trial_gets_its_share():
    config = Budget(2, 1, "cpu", 3).lay(config_of(4))
    assert (config.train.num_workers, config.train.device, config.launch.cpus_per_worker) == (1, "cpu", 3)
    assert str(Budget(2, 1, "gpu", 3)) == "2 at a time, 1 worker each with 3 CPU and 1 GPU"
    assert str(replace(Budget(1, 2, "cpu", 1))) == "1 at a time, 2 workers each with 1 CPU"
