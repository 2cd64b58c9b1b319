"""What Ray and the loop cost over bare PyTorch, in one run: blocks of steps of both in turns.

A run is launched as users do it, with one worker that has all cores. Beside it waits a process that imports
no Ray: the same network, loss and optimizer on one batch that lies ready, and nothing else. After every block
of the run's steps, `Blocks` (an `Observer`) in the worker asks that process for a block of its own, during
which all processes of Ray are stopped (SIGSTOP), the worker included: what Ray does in the background is paid
by the run alone. Data, augmentation, metrics, a row of them in each block, and the event channel belong to
the run; validation and checkpoints do not.

    overhead = time of a block of the run / mean time of the two bare blocks around it - 1
    background cores = CPU time of all processes of Ray but the worker, over the time of the run's blocks
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from capsdist.bench.scaling_workers import training_config
from capsdist.console import Log
from capsdist.errors import RunError
from capsdist.statistics import mean_interval
from capsdist.storage.temporary import temporary_folder

if TYPE_CHECKING:
    from torch import Tensor

    from capsdist.config import Config

__all__ = ["Blocks", "bare_loop", "bare_process", "overhead_figures", "overheads", "stopped"]

_STEPS, _WARM = 6, 2  # of a block; blocks that are not counted


def overhead_figures(
    num_blocks: int, *, log: Log, preset: str = "mnist_paper", num_images: int = 128, steps: int = _STEPS
) -> dict[str, float]:
    """Return the overhead in percent: the mean over `num_blocks` pairs, and the ends of its 95 % interval.

    `ray_background_cores` is what other processes than the worker take of its cores.

    Raises:
        CapsdistError: as `launch`; RunError: fewer than 2 blocks, the run was stopped, or the bare process
            ended.
    """
    from capsdist.launch.launcher import launch  # late: it imports Ray
    from capsdist.launch.preflight import this_machine
    from capsdist.launch.session import names_cluster

    if num_blocks < 2:
        raise RunError(f"{num_blocks} pair of blocks has no interval; set --blocks to at least 2")
    if names_cluster():  # its workers are no descendants of this process
        log("loop_overhead_percent: left out, RAY_ADDRESS names a cluster; unset it")
        return {}
    threads = this_machine().cores
    with temporary_folder() as folder:
        config = training_config(
            folder, preset, num_images, name="overhead", storage=str(folder / "runs"),
            max_steps=steps * (num_blocks + _WARM) + 1, log_every_steps=steps, loggers=("jsonl",),
            checkpoint_every_steps=10**9,
        )  # fmt: skip
        address, times = str(folder / "bare"), folder / "times.json"
        with bare_process(config, address, steps, threads) as bare:
            blocks = Blocks(address, str(times), steps, os.getpid(), bare)
            if (done := launch(config, display=lambda row: None, observer=blocks)).status != "done":
                raise RunError(f"the run that is measured ended as {done.status!r}; start it again")
        found = json.loads(times.read_text())
    ratios = overheads(found["run"][_WARM:], found["bare"][_WARM:])
    mean, lower, upper = mean_interval(ratios)
    run_s, bare_s = (statistics.median(found[name][_WARM:]) / steps for name in ("run", "bare"))
    background = (found["background"][-1] - found["background"][_WARM]) / sum(found["run"][_WARM:])
    log(f"a step of the run {1e3 * run_s:.1f} ms, bare {1e3 * bare_s:.1f} ms, {len(ratios)} pairs of blocks")
    return {
        "loop_overhead_percent": mean,
        "loop_overhead_lower_percent": lower,
        "loop_overhead_upper_percent": upper,
        "overhead_num_blocks": len(ratios),
        "ray_background_cores": background,
    }


def overheads(run: Sequence[float], bare: Sequence[float]) -> list[float]:
    """Return the overhead of each block of the run in percent.

    bare[i] was before run[i], and bare[i + 1] after it.
    """
    return [100 * (2 * seconds / (bare[i] + bare[i + 1]) - 1) for i, seconds in enumerate(run)]


@dataclass
class Blocks:
    """An `Observer`: after every `steps` steps have the bare process do a block; write the times at the end.

    address: of the bare process's socket; times: file to write to; driver: process whose descendants are
    stopped, all but `bare`.
    """

    address: str
    times: str
    steps: int
    driver: int
    bare: int
    _seconds: dict[str, list[float]] = field(
        default_factory=lambda: {"run": [], "bare": [], "background": []}
    )
    _began: float = 0.0

    def __call__(self, rank: int, step: int, sample_ids: Tensor) -> None:
        """Take the time of a block that is done."""
        if step % self.steps:
            return
        if step:
            self._seconds["run"].append(time.perf_counter() - self._began)
        answer = self._ask()
        for name, seconds in answer.items():
            self._seconds[name].append(seconds)
        Path(self.times).write_text(json.dumps(self._seconds))
        self._began = time.perf_counter()

    def _ask(self) -> dict[str, float]:
        """Return the seconds of a bare block, and of CPU time that the background has had so far."""
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(self.address)
            line.sendall(
                json.dumps({"driver": self.driver, "bare": self.bare, "worker": os.getpid()}).encode()
            )
            line.shutdown(socket.SHUT_WR)
            return json.loads(line.makefile("rb").read())


def bare_loop(config: dict[str, Any], address: str, steps: int, threads: int) -> None:
    """In a process of its own: do a block of bare steps for everyone who connects to the socket `address`."""
    import torch

    from capsdist.config import Config

    torch.set_num_threads(threads)
    step = _bare_step(Config.model_validate(config))
    for _ in range(steps):
        step()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        while True:
            line, _ = server.accept()
            with line:
                asked = json.loads(line.makefile("rb").read())
                with stopped(asked["driver"], asked["bare"]) as processes:
                    background = sum(_cpu_s(each) for each in processes if each.pid != asked["worker"])
                    start = time.perf_counter()
                    for _ in range(steps):
                        step()
                    seconds = time.perf_counter() - start
                line.sendall(json.dumps({"bare": seconds, "background": background}).encode())


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system


def _bare_step(config: Config) -> Any:
    """Return an optimizer step as anyone writes it in PyTorch, on one batch of random images."""
    import torch

    from capsdist.config import image_shape
    from capsdist.config.models import find_family
    from capsdist.models import build_model

    torch.manual_seed(config.train.seed)
    model, num = build_model(config.model, config.routing), config.train.global_batch_size
    images = torch.rand(num, *image_shape(config.model))
    labels = torch.arange(num) % config.model.num_classes
    losses, optim = find_family(config.model.kind).losses, config.optim
    optimizer = torch.optim.Adam(
        model.parameters(),
        lr=optim.learning_rate,
        betas=(optim.beta1, optim.beta2),
        eps=optim.epsilon,
        fused=True,
    )

    def step() -> None:
        loss = losses(model(images, labels), images, labels, config.loss)["loss"].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


@contextlib.contextmanager
def stopped(driver: int, *spared: int) -> Iterator[list[psutil.Process]]:
    """Stop all descendants of the process `driver` but `spared`, yield them, let them go on at the end."""
    keep = {os.getpid(), *spared}
    processes = [each for each in psutil.Process(driver).children(recursive=True) if each.pid not in keep]
    try:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def bare_process(config: Config, address: str, steps: int, threads: int) -> Iterator[int]:
    """Run `bare_loop` in a new process until the context ends; yield its id once it listens.

    Raises:
        RunError: it ends before.
    """
    arguments = (config.model_dump(mode="json"), address, steps, threads)
    process = get_context("spawn").Process(target=bare_loop, args=arguments, daemon=True)
    process.start()
    try:
        while not Path(address).exists():
            if not process.is_alive():
                raise RunError(
                    f"the process of bare steps ended with exit code {process.exitcode}; start it again"
                )
            time.sleep(0.05)
        assert process.pid is not None
        yield process.pid
    finally:
        process.kill()
        process.join()
