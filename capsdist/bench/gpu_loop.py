"""Measure the training loop on a GPU as it runs: resident images, augmentation, the step in a CUDA graph.

Windows of the loop's own metrics are timed, with the one wait for the device that each row of metrics has.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any

import torch

from capsdist.bench.gpu_presets import FAMILY, patterns, preset_work, resident_batches, trial_batch
from capsdist.train.mfu import mfu_percent, model_flop, peak_flop_per_s
from capsdist.train.program import WARM_UP, cuda_graph
from capsdist.train.speed import VARIANTS, Variant, build_program, fastest, replay_seconds
from capsdist.train.step import losses_of, train_on
from capsdist.train.window import Window, WindowMeans

__all__ = ["GpuLoop", "loop_rows", "train_briefly"]

Row = dict[str, Any]
_ROUNDS = 5
_WINDOW_S = 1.0
_SUBJECTS = (
    ("mnist_paper", 128, (1, 3)),
    ("mnist_paper", 1024, (1, 3)),
    ("cifar10_official", 128, (3,)),
    ("cifar10_official", 512, (3,)),
)
_SMALL = (("mnist_paper", 2, (1,)), ("cifar10_official", 2, (1,)))


class GpuLoop:
    """The steps of a preset over a resident set of drawn images, in the variant that the trial finds fastest.

    eager: launched from Python one by one, as with `train.speed` plain.
    """

    def __init__(
        self, preset: str, num_images: int, iterations: int, device: str, *, eager: bool = False
    ) -> None:
        self.work = preset_work(preset, num_images=num_images, iterations=iterations, device=device)
        small = device == "cpu"
        images, labels = patterns(self.work, num_images * (4 if small else max(8, 16384 // num_images)))
        self.variant, self.notes = Variant(), []
        if not small and not eager:
            batch = trial_batch(self.work, images, labels)
            self.variant, self.notes = fastest(
                self.work, batch, VARIANTS, record=cuda_graph, seconds=replay_seconds
            )
        if self.variant.channels_last:
            self.work.engine.use_channels_last()
        record = (lambda run: run) if small else cuda_graph
        self._run: Any = build_program(self.work, self.variant, record)
        if eager:
            self._run = partial(train_on, self.work)
        self._batches = resident_batches(self.work, images, labels)
        self._step = 0

    @property
    def failure(self) -> str | None:
        """Why the graph could not be captured."""
        return getattr(self._run, "failure", None)

    def window(self, num_steps: int) -> WindowMeans:
        """Do steps, and return what a row of metrics would say of them."""
        window = Window(FAMILY, self.work.device, 1)
        for _ in range(num_steps):
            window.add(*self._run(next(self._batches), self._step))
            self._step += 1
        return window.close()

    def flop_per_image(self) -> float:
        """Return the model FLOP of a training step, an image."""
        losses, config = losses_of(FAMILY, self.work.config), self.work.config
        images = torch.empty(1, config.model.in_channels, config.model.image_size, config.model.image_size)
        return model_flop(
            self.work.engine.model, lambda *given: losses(*given)["loss"], images, torch.zeros(1).long()
        )


def loop_rows(device: str) -> Iterator[Row]:
    """Yield a row for each preset and batch: images a second, MFU, memory, and R = 3 over R = 1."""
    small = device == "cpu"
    name = torch.cuda.get_device_name() if not small else ""
    for preset, num_images, iterations in _SMALL if small else _SUBJECTS:
        if not small:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        loops = {r: GpuLoop(preset, num_images, r, device) for r in iterations}
        seconds = _seconds_per_step(loops, 1 if small else _ROUNDS)
        last = loops[iterations[-1]]
        row: Row = {
            "preset": preset,
            "num_images": num_images,
            "iterations": iterations[-1],
            "variant": str(last.variant),
            "images_per_s": num_images / seconds[iterations[-1]],
        }
        if failure := last.failure:
            row["error"] = failure
        if len(iterations) > 1:
            row["step_r3_over_r1"] = seconds[3] / seconds[1]
        if peak := peak_flop_per_s(name, "bf16"):
            row["mfu_percent"] = mfu_percent(last.flop_per_image(), row["images_per_s"], peak)
        if not small:
            row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            eager = GpuLoop(preset, num_images, iterations[-1], device, eager=True)
            row["eager_images_per_s"] = num_images / _seconds_per_step({0: eager}, _ROUNDS)[0]
            row["trial"] = "; ".join(last.notes)
        yield row


def _seconds_per_step(loops: dict[int, GpuLoop], rounds: int) -> dict[int, float]:
    """Return the median time of a step of each loop over windows of about a second, taken in turns."""
    num_steps = {}
    for key, loop in loops.items():
        found = loop.window(WARM_UP + 1)
        if rounds > 1:
            found = loop.window(20)
        num_steps[key] = max(1, int(_WINDOW_S * found.num_steps / found.seconds)) if rounds > 1 else 1
    times: dict[int, list[float]] = {key: [] for key in loops}
    for _ in range(rounds):
        for key, loop in loops.items():
            found = loop.window(num_steps[key])
            times[key].append(found.seconds / found.num_steps)
    return {key: median(found) for key, found in times.items()}


def train_briefly(device: str, num_steps: int = 300) -> Row:
    """Train on drawn images of ten classes, a pattern each under noise; return the error before and after."""
    small = device == "cpu"
    loop = GpuLoop("mnist_paper", 4 if small else 128, 3, device)
    first = loop.window(1 if small else 10)
    if not small:
        loop.window(num_steps - 40)
    last = loop.window(1 if small else 30)
    return {
        "num_steps": 2 if small else num_steps,
        "first_error_percent": first.errors["error_percent"],
        "error_percent": last.errors["error_percent"],
    }
