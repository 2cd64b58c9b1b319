"""What only a GPU can show of the training loop: the captured step equals the eager one, and nobody waits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from capsdist.bench.gpu_loop import GpuLoop
from capsdist.bench.gpu_presets import PresetWork, patterns, preset_work, resident_batches, trial_batch
from capsdist.data.batch import Batch
from capsdist.train.program import WARM_UP, Recorder, StepProgram, cuda_graph
from capsdist.train.speed import VARIANTS, build_program, fastest, replay_seconds
from capsdist.train.step import train_on

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

NUM_STEPS, BATCH, SHORT = 1000, 32, 20


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Kernels that add up in one order, where there are such."""
    before = torch.backends.cudnn.deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = before


def work_of(num_images: int = BATCH) -> PresetWork:
    """The MNIST network with a schedule that moves within the test, TensorFlow's epsilon and averages."""
    work = preset_work("mnist_paper", num_images=num_images, iterations=3, device="cuda")
    optim = work.config.optim
    optim.decay_steps, optim.decay_rate, optim.average_decay, optim.max_grad_norm = 100, 0.7, 0.99, 1.0
    engine = type(work.engine)(
        work.engine.model, optim, rank=0, world_size=1, device=work.device, precision="bf16"
    )
    return replace(work, engine=engine)


def batches(work: PresetWork) -> Iterator[Batch]:
    """Full batches, and in between short ones as at the end of an epoch."""
    for number, batch in enumerate(resident_batches(work, *patterns(work, 4096)), 1):
        yield batch
        if number % 49 == 0:
            parts = (value[:SHORT] for value in (batch.images, batch.labels, batch.weights, batch.sample_ids))
            yield Batch(*parts, SHORT, batch.epoch)


def trained(record: Recorder, num_steps: int = NUM_STEPS) -> tuple[Tensor, dict[str, Tensor]]:
    """The sums of all steps, and the state after them."""
    work = work_of()
    program = StepProgram(work, record)
    rows = []
    for step, batch in zip(range(num_steps), batches(work), strict=False):
        sums, norm = program(batch, step)
        rows.append(torch.cat([sums, norm.double().view(1)]))
    assert program.failure is None
    assert program.recorded
    state = work.engine.state().read()
    return torch.stack(rows).cpu(), state.model | state.optimizer


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def test_1000_steps_of_the_graph_equal_eager_ones(deterministic: None) -> None:
    """To the bit where two eager runs are equal to the bit; else not further apart than ten times these."""
    sums, state = trained(lambda run: run)
    again, other = trained(lambda run: run)
    found, captured = trained(cuda_graph)
    assert found.isfinite().all()
    if largest_difference(state, other) == 0 and torch.equal(sums, again):
        assert torch.equal(found, sums)
        assert largest_difference(captured, state) == 0
        return
    assert largest_difference(captured, state) <= 10 * largest_difference(state, other)
    assert (found[:20] - sums[:20]).abs().max() <= 10 * (again[:20] - sums[:20]).abs().max() + 1e-6


def test_its_steps_are_those_of_plain_eager_training() -> None:
    """Whose learning rate and epsilon are floats of 64 bits."""
    work = work_of()
    rows = [
        train_on(work, batch, step)[0].cpu() for step, batch in zip(range(20), batches(work), strict=False)
    ]
    torch.testing.assert_close(trained(cuda_graph, 20)[0][:, :-1], torch.stack(rows), rtol=0.02, atol=0.5)


def test_no_step_waits_for_the_gpu_between_two_rows() -> None:
    loop = GpuLoop("mnist_paper", 64, 3, "cuda")
    loop.window(WARM_UP + 1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):  # of the row at the end, which shows the check
            loop.window(200)  # several chunks of the resident set
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loop._step == WARM_UP + 1 + 200


def test_all_variants_compute_the_same_step_and_the_trial_leaves_no_trace() -> None:
    firsts = []
    for variant in VARIANTS:
        work = work_of()
        if variant.channels_last:
            work.engine.use_channels_last()
        program = build_program(work, variant, cuda_graph)
        rows = [
            program(batch, step)[0].clone()
            for step, batch in zip(range(8), resident_batches(work, *patterns(work, 512)), strict=False)
        ]
        firsts.append(torch.stack(rows).cpu())
        assert program.recorded, f"{variant}: {program.failure}"
    for found in firsts[1:]:
        torch.testing.assert_close(found, firsts[0], rtol=0.05, atol=1.5)
    work = work_of()
    before, generator = work.engine.state().read(), torch.cuda.get_rng_state()
    batch = trial_batch(work, *patterns(work, 512))
    _, notes = fastest(work, batch, VARIANTS, record=cuda_graph, seconds=replay_seconds)
    assert notes[-1].startswith("time of a step: nchw")
    after = work.engine.state().read()
    assert largest_difference(before.model | before.optimizer, after.model | after.optimizer) == 0
    assert torch.equal(generator, torch.cuda.get_rng_state())
