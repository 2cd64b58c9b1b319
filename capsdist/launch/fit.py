"""One `TorchTrainer.fit` in a thread, while the main thread shows rows and waits for signals."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal import constants
from ray.train.v2.api.config import LoggingConfig

from capsdist.config import Config
from capsdist.launch.events import FailureReporter, open_event_channel
from capsdist.launch.fitting import FitThread
from capsdist.launch.group import GroupConfig
from capsdist.launch.preflight import Placement, storage_for_ray
from capsdist.launch.session import API_ADDRESS
from capsdist.launch.signals import StopSignals, grace_period_s
from capsdist.launch.watch import Watchdog
from capsdist.launch.worker import Fault, Job, Observer, train_worker
from capsdist.runs.files import open_files
from capsdist.runs.locks import Lock
from capsdist.runs.rundir import run_place
from capsdist.train.metrics import Row

__all__ = ["cluster_resources", "fit"]

_WAIT_S = 0.5  # between two looks into the event channel
_PATIENCE_S = 45.0  # without a sign of life from the workers


def fit(
    config: Config,
    placement: Placement,
    show: Callable[[Row], None],
    signals: StopSignals,
    lock: Lock,
    fault: Fault | None = None,
    observer: Observer | None = None,
) -> Row | None:
    """Train and return rank 0's last row, or None if a signal ended the run before a last checkpoint.

    `show` gets every row, in the calling thread.

    Raises:
        RunError: another process has taken the run over.
        ray.train.TrainingFailedError, ray.exceptions.RayError: as Ray's `fit`.
    """
    channel = open_event_channel()
    job = Job(
        config=config.model_dump(mode="json"),
        threads=placement.threads,
        channel=channel,
        fault=fault,
        observer=observer,
    )
    thread = FitThread(_trainer(config, placement, job).fit)
    patience = time.monotonic() + _PATIENCE_S
    watchdog = Watchdog(channel, config.launch.step_timeout_s, open_files(run_place(config)), show)

    def show_rows() -> None:
        nonlocal patience
        for row in ray.get(channel.take.remote()):
            show(row)
            patience = math.inf

    with signals.training() as stop_event:
        thread.start()
        while thread.is_alive() and not stop_event.is_set():
            lock.check()
            show_rows()
            watchdog.look()
            if time.monotonic() > patience:
                message = f"still waiting for {placement}; the cluster has {cluster_resources()} now"
                show({"kind": "status", "message": message})
                patience = math.inf
            stop_event.wait(_WAIT_S)
        if thread.is_alive():
            limit_s = grace_period_s(config.launch.stop_timeout_s) if ray.get(channel.stop.remote()) else 0.0
            if limit_s:
                last = (
                    "a last checkpoint"
                    if config.data.reader == "packed"
                    else "it resumes where an epoch ended"
                )
                show({"kind": "note", "message": f"stopping: {last}, within {limit_s:g} s"})
            deadline = time.monotonic() + limit_s
            while thread.is_alive() and time.monotonic() < deadline:
                show_rows()
                thread.join(_WAIT_S)
    if thread.is_alive():
        return None
    show_rows()
    return thread.result().return_value


def cluster_resources() -> str:
    """Return what the cluster has now, in words."""
    have = ray.cluster_resources()
    return f"{have.get('CPU', 0):g} CPU and {have.get('GPU', 0):g} GPU"


def _trainer(config: Config, placement: Placement, job: Job) -> TorchTrainer:
    # An actor of Ray Train asks whether the controller lives, and ends the workers if it does not. Another
    # Ray of this machine would say that there is no such controller.
    constants.ENV_VARS_TO_PROPAGATE.add(API_ADDRESS)
    resources: dict[str, float] = {"CPU": placement.cores}
    if placement.device == "gpu":
        resources["GPU"] = 1
    return TorchTrainer(
        train_worker,
        train_loop_config=vars(job),
        torch_config=GroupConfig(
            backend="nccl" if placement.device == "gpu" else "gloo",
            timeout_s=int(config.launch.collective_timeout_s),
        ),
        scaling_config=ScalingConfig(
            num_workers=placement.num_workers,
            use_gpu=placement.device == "gpu",
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=config.train.name,
            storage_path=storage_for_ray(config.train.storage),
            failure_config=FailureConfig(
                max_failures=config.launch.max_failures,
                controller_failure_limit=config.launch.controller_failure_limit,
            ),
            callbacks=[FailureReporter(job.channel)],
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
