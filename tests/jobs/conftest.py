"""One Ray for all tests of this folder, and one tiny data set."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1] / "data"))
import job_helpers


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the packed data set `tiny`."""
    root = tmp_path_factory.mktemp("data")
    job_helpers.write_tiny(root)
    return root


@pytest.fixture(scope="session")
def short_tmp() -> Iterator[Path]:
    """A folder with a short path: Ray's sockets below it have at most 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="r"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_cluster(short_tmp: Path) -> Iterator[None]:
    """A Ray with 2 CPUs in this process, which `launch` joins as it would a cluster."""
    from capsdist.launch.session import prepare_ray

    assert "RAY_ADDRESS" not in os.environ, "unset RAY_ADDRESS: the tests start a Ray of their own"
    prepare_ray()
    import ray
    import ray.cloudpickle

    from faults.script import send_by_value

    ray.cloudpickle.register_pickle_by_value(job_helpers)
    send_by_value()
    ray.init(
        "local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False,
        logging_level=logging.ERROR, _temp_dir=str(short_tmp),
        _system_config={"metrics_report_interval_ms": 500},  # 10 s by default
    )  # fmt: skip
    yield
    ray.shutdown()
