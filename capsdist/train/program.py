"""A training step as a program over static buffers, which a GPU captures once as a CUDA graph and replays.

A step of the MNIST network is some hundred kernels, which a GPU runs faster than Python launches them. What
changes from step to step is copied into buffers: the batch, the epochs of its images, and the learning rate
and other numbers of the update as one tensor. So nothing of the host enters the program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import torch
from torch import Tensor

from capsdist.routing.dynamic.fused.timing import no_collection
from capsdist.train.averages import share_at
from capsdist.train.engine.plain import PlainEngine
from capsdist.train.phases import Phase, no_phase
from capsdist.train.schedule import learning_rate_at
from capsdist.train.step import Work, add_gradients, transformed

if TYPE_CHECKING:
    from capsdist.data.batch import Batch, Partner

__all__ = ["WARM_UP", "Recorder", "Result", "StepProgram", "cuda_graph"]

Result: TypeAlias = "tuple[Tensor, Tensor]"
"""Sums of the metrics and gradient norm, as of `train_step`."""

Recorder: TypeAlias = "Callable[[Callable[[], Result]], Callable[[], Result]]"
"""Takes a call and returns one that does the same again: `cuda_graph`, or on a CPU the identity."""

WARM_UP = 3
"""Steps before the capture: optimizer, libraries and the search for kernels allocate what they keep."""


def cuda_graph(run: Callable[[], Result]) -> Callable[[], Result]:
    """Capture `run` on the current device, which does nothing there yet; return its replay.

    The results lie in memory of the graph: the next replay overwrites them. The capture is this thread's
    alone, since the thread that reads data allocates pinned memory; see `no_collection`.
    """
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with no_collection(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = run()

    def replay() -> Result:
        graph.replay()
        return result

    return replay


class StepProgram:
    """The steps of one rank: those of full batches from a recording, others eager. Call it as `train_on`.

    All steps take the same operations. The first `WARM_UP` full batches run eager, then `record` is called;
    where that fails, all further steps are eager, and `note` and `failure` say why. What a call returns is
    overwritten by the next call.

    Its engine may load a state before the first step only: the recording has the addresses of its tensors.
    The network draws no random numbers, which a recording could not seed (`draws_random_numbers`).

    Args:
        work: of a plain engine on one rank, not in fp16.
        record: see `Recorder`.
        compiled: parts of the network that run compiled in recorded steps, by their compiled calls.
        note: called with a line for people.
    """

    def __init__(
        self,
        work: Work,
        record: Recorder,
        compiled: Mapping[torch.nn.Module, Callable[..., object]] | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        engine = work.engine
        assert isinstance(engine, PlainEngine)
        self._work, self._engine, self._record = work, engine, record
        self._compiled, self._note = compiled or {}, note
        self._replay: Callable[[], Result] | None = None
        self._static: Batch | None = None
        self._num_warm = 0
        on_cpu = work.device.type == "cpu"
        self._dtype = torch.float64 if on_cpu else torch.float32  # as `step_from` takes them
        self._numbers = torch.zeros(3, dtype=self._dtype, device=work.device)
        self.failure: str | None = None

    @property
    def recorded(self) -> bool:
        """Whether there is a recording, which further steps of full batches replay."""
        return self._replay is not None

    def __call__(self, host_batch: Batch, step: int, phase: Phase = no_phase) -> Result:
        """Do optimizer step number `step` (the first is 0) on a batch."""
        self._set_numbers(step)
        if self.failure is not None or not self._is_full(host_batch):
            return self._run(host_batch.to(self._work.device), phase)
        if self._num_warm < WARM_UP:
            self._num_warm += 1
            with self._warming_up():
                return self._run(host_batch.to(self._work.device), phase)
        phase("forward")
        static = self._hold(host_batch)
        if self._replay is None:
            try:
                with self._compiling():
                    self._replay = self._record(lambda: self._run(static))
            except RuntimeError as error:  # of CUDA, or out of memory: nothing was computed
                self.failure = str(error).strip().partition("\n")[0]
                self._note(f"steps are eager from here on: the capture failed ({self.failure})")
                self._engine.clear_gradients()
                return self._run(static)
        return self._replay()

    def _run(self, batch: Batch, phase: Phase = no_phase) -> Result:
        """Do a step on a batch on the device, by the numbers in the buffer."""
        work = self._work
        batch, images = transformed(work, batch)
        sums = add_gradients(
            self._engine, batch, images, work.family, work.config, lambda microbatch: None, phase
        )
        phase("optimizer")
        return sums, self._engine.step_from(self._numbers)

    def _is_full(self, batch: Batch) -> bool:
        """Whether it has the size of the recording: `num_global`, which is captured, is then that size."""
        return len(batch.images) == batch.num_global == self._work.config.train.global_batch_size

    def _set_numbers(self, step: int) -> None:
        optim = self._work.config.optim
        rate = learning_rate_at(step, optim, self._work.total_steps)
        numbers = self._engine.next_numbers(rate, share_at(step, optim))
        host = torch.tensor(numbers, dtype=self._dtype, pin_memory=self._numbers.is_cuda)
        self._numbers.copy_(host, non_blocking=True)

    def _hold(self, batch: Batch) -> Batch:
        """Copy `batch` into the static one, which is made of the first."""
        static = self._static = self._static or _buffers(batch, self._work.device)
        for target, source in zip(_values(static), _values(batch), strict=True):
            assert isinstance(target, Tensor)
            if isinstance(source, Tensor):
                target.copy_(source, non_blocking=True)
            else:
                target.fill_(source)
        return static

    @contextmanager
    def _warming_up(self) -> Iterator[None]:
        """Run on a stream of its own: what libraries keep of the default one could not be captured."""
        with self._compiling():
            if not self._numbers.is_cuda:
                yield
                return
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                yield
            torch.cuda.current_stream().wait_stream(stream)

    @contextmanager
    def _compiling(self) -> Iterator[None]:
        """Have parts of the network run compiled; evaluation and short batches would compile them again."""
        try:
            for module, call in self._compiled.items():
                module._compiled_call_impl = call  # type: ignore[assignment]
            yield
        finally:
            for module in self._compiled:
                module._compiled_call_impl = None


def _values(samples: Batch | Partner) -> Iterator[Tensor | int]:
    """Yield what differs between batches of one size; the epoch is a number where all images share it."""
    yield from (samples.images, samples.labels, samples.sample_ids, samples.epoch)
    for name in ("weights", "parts"):
        if isinstance(value := getattr(samples, name, None), Tensor):
            yield value
    if partner := getattr(samples, "partner", None):
        yield from _values(partner)


_Samples = TypeVar("_Samples", "Batch", "Partner")


def _buffers(samples: _Samples, device: torch.device) -> _Samples:
    """Return tensors like those of `samples` on `device`, with an epoch for each image."""
    found = {name: value for name, value in vars(samples).items() if isinstance(value, Tensor)}
    found = {name: torch.empty_like(value, device=device) for name, value in found.items()}
    found["epoch"] = torch.empty_like(samples.sample_ids, device=device)
    if partner := getattr(samples, "partner", None):
        return replace(samples, **found, partner=_buffers(partner, device))
    return replace(samples, **found)
