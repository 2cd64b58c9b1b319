"""The training loop: data, steps, metrics, validation, checkpoints. Knows torch only; runs without Ray.

Path of an image: a `Stream` (uint8, gathered ahead by a thread) -> device -> `Transform` -> `train_step`
(engine forward, losses, backward, update) -> metrics at every `log_every_steps` -> `evaluate` ->
`write_checkpoint`. Nothing but logging, validation and checkpoints waits for the GPU.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from capsdist.config import Config
from capsdist.data import Batch, Position
from capsdist.models import Output
from capsdist.train.checkpoint import Checkpoint, open_checkpoint, write_checkpoint
from capsdist.train.evaluate import Evaluation, evaluate_engine
from capsdist.train.finite import check_state, not_finite
from capsdist.train.health import health_row
from capsdist.train.metrics import Row
from capsdist.train.mfu import mfu_meter
from capsdist.train.parts import Parts, build_parts, start_row
from capsdist.train.phases import Keep, StepProfiler, no_phase
from capsdist.train.pictures import reconstruction_picture
from capsdist.train.schedule import learning_rate_at
from capsdist.train.speed import open_steps
from capsdist.train.splits import check_trained_classes
from capsdist.train.validations import Validations
from capsdist.train.window import Window

__all__ = ["Events", "Observe", "Picture", "Save", "run_training"]

Events = Callable[[Row], None]
"""Called on rank 0 with every event; README.md lists the rows."""

Save = Callable[[Callable[[Path | None], None], int, dict[str, float]], str | None]
"""Called on every rank as ``save(write, step, metrics)`` to decide where a checkpoint goes.

``write(folder)`` writes the files of rank 0 into `folder`. Every rank calls it, to send rank 0 what it holds;
on others `folder` is not used, and may be None. May return a name for the checkpoint, shown to people.
"""

Observe = Callable[[int, Tensor], None]
"""Called on every rank as ``observe(step, sample_ids)`` to see what it was trained on; for records and tests.

First with the step that training goes on from and no ids, then after every step with the ids (int64, on the
CPU) of this rank's real images in it.
"""

Picture = Callable[[str, np.ndarray, int], None]
"""Called on rank 0 as ``picture(name, pixels, step)`` with a picture, uint8 [H, W, 3]."""


def run_training(
    config: Config,
    *,
    rank: int,
    world_size: int,
    device: torch.device,
    events: Events,
    save: Save,
    resume_from: Path | None = None,
    init_from: Path | None = None,
    should_stop: Callable[[int], bool] | None = None,
    observe: Observe | None = None,
    picture: Picture | None = None,
    keep: Keep | None = None,
) -> Row:
    """Train as `config` says, test once at the end, and return the `end` row (on every rank).

    Every rank calls it with the same configuration; with several, torch.distributed is initialised. The
    number of torch threads is the caller's business, and so is checking the data's checksums.

    `resume_from`: a checkpoint folder that every rank can read; the run continues with the next sample and
    equals the uninterrupted one, bit for bit on a CPU with equally many ranks and threads.
    `init_from`: a checkpoint folder that rank 0 can read; a run that does not resume starts from its weights.
    `should_stop(step)` is asked on every rank after every step and must answer alike on all; on yes a
    checkpoint is saved and the run ends with `stopped` true. `observe` is called before that.
    `picture` gets the reconstructions of a few images at each validation, or at the test where there is none;
    `keep`, on every rank, the trace of `train.profile`.

    Raises:
        RunError: loss, gradients, weights or optimizer state are not finite; no process group; DeepSpeed
            cannot run here; one image does not fit in memory, with `train.microbatch_size` auto.
        DataError: a split that cannot be read, more classes than the network has, splits or a checkpoint
            that number them differently, or a checkpoint of other data.
        ConfigError: a global batch larger than the training split; weights to start from that do not fit.
        CheckpointError: see `open_checkpoint`.
    """
    parts = build_parts(
        config, rank=rank, world_size=world_size, device=device, init_from=init_from, resume_from=resume_from
    )
    try:
        loop = _Loop(parts, events=events, save=save, picture=picture, keep=keep)
        if resume_from is not None:
            loop.resume(open_checkpoint(resume_from))
        for line in filter(None, (parts.left_out, parts.stream.notice)):
            loop.note(line)
        return loop.run(should_stop or (lambda step: False), observe)
    finally:
        parts.close()


class _Loop:
    """State of a run between its events: counters, and sums of the metrics since the last log row."""

    def __init__(
        self, parts: Parts, *, events: Events, save: Save, picture: Picture | None, keep: Keep | None
    ) -> None:
        self.parts, self.config, self.family, self.device = parts, parts.config, parts.family, parts.device
        self.engine, self.stream, self.total_steps = parts.engine, parts.stream, parts.total_steps
        self.rank, self.world_size = parts.engine.rank, parts.engine.world_size
        self.data = parts.stream.index
        self._events, self._save, self._picture, self._keep = events, save, picture, keep
        self._profiler: StepProfiler | None = None
        self.step = 0  # optimizer steps done since the run began
        self.resumed_step = 0
        self.checkpoint_name: str | None = None
        self.saved = False  # is there a checkpoint to go on from?
        self.validations = Validations(self.config.train)
        self._stored_speed: Mapping[str, bool] = {}

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue after the last step of `checkpoint`."""
        position = Position.from_dict(checkpoint.position)
        self.stream.check_position(position)
        self.step = self.resumed_step = checkpoint.step
        self.saved = True
        check_trained_classes(checkpoint, self.data, self.parts.train_folder, self.note)
        self.engine.load(checkpoint.engine)
        self.validations.resume(checkpoint.metrics)
        self._stored_speed = checkpoint.speed

    def run(self, should_stop: Callable[[int], bool], observe: Observe | None) -> Row:
        """Do all steps that are left, and return the `end` row."""
        self._begin()
        if observe:
            observe(self.step, torch.empty(0, dtype=torch.int64))
        stopped, done = False, self.validations.end is not None
        with contextlib.ExitStack() as stack:
            if self.config.train.profile and self._keep:
                self._profiler = StepProfiler(self.config.train.profile, self.rank, self._keep)
                stack.callback(self._profiler.close)
            while self.step < self.total_steps and not (stopped or done):
                for batch in self.stream.epoch(*self.stream.steps.locate(self.step)):
                    self._step(batch)
                    if observe:
                        observe(self.step, batch.sample_ids[batch.weights > 0].cpu())
                    # asked on every rank, and void after the last step: that run is done
                    stopped = should_stop(self.step) and self.step < self.total_steps
                    done = self._after_step(stopped)
                    if self._profiler:
                        self._profiler.phase("data")
                    if stopped or done:
                        break
        if stopped and not done:
            return self._end(stopped, None if self.config.data.tests_apart else self.validations.last)
        if self.step < self.total_steps:
            self.note(f"ended early: {self.validations.end}")
        return self._end(False, self._test())

    def _step(self, batch: Batch) -> None:
        phase = self._profiler.phase if self._profiler else no_phase
        with health_row(self.parts, self.step + 1, self._emit):
            done = self._steps.run(batch, self.step, phase)
            if self._profiler:
                self._profiler.step()
            self._window.add(*done)
            self.step += 1

    def _after_step(self, stopped: bool) -> bool:
        """Log, validate and save, if this step is one for it; return whether the run is done."""
        train = self.config.train
        last = self.step == self.total_steps
        epoch_end = self.stream.steps.ends_epoch(self.step)
        validate = self.parts.validation_folder is not None and (
            last or _due(self.step, train.validate_every_steps, epoch_end)
        )
        save = last or stopped or _due(self.step, train.checkpoint_every_steps, epoch_end)
        may_save = last or epoch_end or self.stream.resumes_inside
        save, done = save and may_save, last
        # A checkpoint always comes with a row: the rows after it do not depend on what came before it.
        if validate or save or self._window.num_steps >= train.log_every_steps:
            self._log()
            if validate:
                self._validate()
                done |= may_save and self.validations.end is not None
            if save or done:
                self._checkpoint()
            self._open_window()
        return done

    def _begin(self) -> None:
        self._steps = open_steps(self.parts, self._stored_speed, self.note)
        self._mfu = mfu_meter(self.parts)
        speed, variant = self._steps.speed, str(self._steps.variant or "")
        self._send(start_row(self.parts, resumed_step=self.resumed_step, speed=speed, variant=variant))
        for line in self._steps.notes:
            self.note(line)
        self._began = time.perf_counter()
        self._train_s, self._num_trained = 0.0, 0
        self._open_window()

    def _open_window(self) -> None:
        """Begin to sum anew; what validation and checkpoints took counts to no window."""
        num_labels = self.config.model.num_labels
        self._window = Window(self.family, self.device, self.world_size, num_labels)

    def _log(self) -> None:
        """Emit the means over the window; waits for the device, and for the other ranks."""
        means = self._window.close()
        # fp16 skips steps that overflow by itself; the loss tells if that does not help
        norms = 0.0 if self.engine.precision == "fp16" else means.norms
        if not math.isfinite(means.losses["loss"] + norms):
            self._fail(f"loss={means.losses['loss']:g} with gradient norm {means.grad_norm:g}")
        self._train_s += means.seconds
        self._num_trained += means.num_images
        elapsed = time.perf_counter() - self._began
        self._emit(
            "train",
            **means.losses,
            **means.errors,
            learning_rate=learning_rate_at(self.step - 1, self.config.optim, self.total_steps),
            grad_norm=means.grad_norm,
            images_per_s=means.num_images / means.seconds,
            step_time_s=means.seconds / means.num_steps,
            **self._mfu(means.num_images / means.seconds),
            eta_s=elapsed / (self.step - self.resumed_step) * (self.total_steps - self.step),
            time_s=elapsed,
        )

    def _validate(self) -> Evaluation:
        folder, split = self.parts.validation_folder, self.config.data.validation_split
        assert folder is not None, "there is no validation"
        found = self._evaluate("validation", folder, f"validating on {split}", draw=True)
        self.validations.add(found, self.step)
        return found

    def _test(self) -> Evaluation | None:
        """Return the test of a run that is done: its last validation, if that was on the test split."""
        if self.parts.test_folder is None:
            return None
        if not self.config.data.tests_apart:
            return self.validations.last or self._validate()  # none: the checkpoint was already the last
        without = self.parts.validation_folder is None
        doing = f"testing on {self.config.data.test_split}"
        return self._evaluate("test", self.parts.test_folder, doing, draw=without)

    def _evaluate(self, kind: str, folder: str, doing: str, *, draw: bool) -> Evaluation:
        """Evaluate on the split in `folder` and emit a row of this kind; `draw`: hand on the picture."""

        def progress(done: int, total: int) -> None:
            self._emit("progress", doing=doing, done=done, total=total)

        found = evaluate_engine(
            self.engine,
            folder,
            self.config,
            progress=progress if self.rank == 0 else None,
            observe=self._draw if draw and self.rank == 0 and self._picture else None,
        )
        if not math.isfinite(found["loss"]):
            self._fail(f"{kind} loss={found['loss']:g}")
        self._emit(kind, **found, time_s=time.perf_counter() - self._began)
        return found

    def _draw(self, images: Tensor, output: Output) -> None:
        """Hand on the picture of the first images of an evaluation, where the network has a decoder."""
        if self._picture and output.reconstructions is not None:
            picture = reconstruction_picture(images, output.reconstructions)
            self._picture("reconstructions", picture, self.step)

    def _checkpoint(self) -> None:
        began = time.perf_counter()
        epoch, step = self.stream.steps.locate(self.step)  # after a whole epoch the next one's beginning
        metrics = self.validations.metrics()
        state = self.engine.state()
        check_state(
            state, self.config, self.step, saved=self.saved, world_size=self.world_size, device=self.device
        )
        checkpoint = Checkpoint(
            engine=state,
            step=self.step,
            epoch=epoch,
            position=self.stream.position(epoch, step).to_dict(),
            config=self.config,
            metrics=metrics,
            classes=self.data.classes,
            speed=self._steps.stored,
        )

        def write(folder: Path | None) -> None:
            if self.rank or folder is None:
                state.send()
            else:
                write_checkpoint(folder, checkpoint)

        self.checkpoint_name = self._save(write, self.step, metrics)
        self.saved = True
        self._emit("checkpoint", name=self.checkpoint_name, seconds=time.perf_counter() - began)

    def _end(self, stopped: bool, test: Evaluation | None) -> Row:
        """Emit the last row, with the figures of the `test`, None if there was none."""
        tested: Mapping[str, Any] = dict(test or {})
        optional = ("error_interval_percent", "label_error_percent", "almost_correct_percent")
        return self._emit(
            "end",
            run=self.config.train.name,
            test_split=self.config.data.test_split if self.parts.test_folder else "",
            stopped=stopped,
            error_percent=tested.get("error_percent"),
            **{name: tested[name] for name in optional if name in tested},
            loss=tested.get("loss"),
            num_images=tested.get("num_images"),
            images_per_s=self._num_trained / self._train_s if self._train_s else 0.0,
            checkpoint=self.checkpoint_name,
            wall_time_s=time.perf_counter() - self._began,
        )

    def _fail(self, what: str) -> NoReturn:
        raise not_finite(self.config, what, self.step, saved=self.saved)

    def note(self, text: str) -> None:
        """Emit a line for people."""
        self._emit("note", message=text)

    def _emit(self, kind: str, **values: Any) -> Row:
        epoch = self.stream.steps.epochs(self.step)
        row: Row = {"kind": kind, "step": self.step, "epoch": epoch, **values}
        return self._send(row)

    def _send(self, row: Row) -> Row:
        if self.rank == 0:
            self._events(row)
        return row


def _due(step: int, every: int | None, epoch_end: bool) -> bool:
    return epoch_end if every is None else step % every == 0
