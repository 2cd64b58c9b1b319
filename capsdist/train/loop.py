"""The training loop: data, steps, metrics, validation, checkpoints. Knows torch only; runs without Ray.

Path of an image: `TrainStream` (uint8, gathered ahead by a thread) -> device -> `Transform` -> `train_step`
(engine forward, losses, backward, update) -> metrics at every `log_every_steps` -> `evaluate` ->
`write_checkpoint`. Nothing but logging, validation and checkpoints waits for the GPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from capsdist.config import Config
from capsdist.config.models import find_family
from capsdist.config.steps import total_steps
from capsdist.data import Batch, Position, TrainStream, Transform, read_index
from capsdist.models import build_model
from capsdist.train.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from capsdist.train.engine.build import build_engine
from capsdist.train.evaluate import Evaluation, evaluate
from capsdist.train.finite import check_state, not_finite
from capsdist.train.metrics import Row
from capsdist.train.optim import learning_rate_at
from capsdist.train.splits import check_splits, check_trained_classes, split_folders
from capsdist.train.step import metric_names, train_step

__all__ = ["Events", "Observe", "Save", "run_training"]

Events = Callable[[Row], None]
"""Called on rank 0 with every event; README.md lists the rows."""

Save = Callable[[Callable[[Path], None], int, dict[str, float]], str | None]
"""Called on every rank as ``save(write, step, metrics)`` to decide where a checkpoint goes.

``write(folder)`` writes the files; it is called where `folder` shall appear and does nothing on ranks other
than 0. May return a name for the checkpoint, which is shown to people.
"""


Observe = Callable[[int, Tensor], None]
"""Called on every rank as ``observe(step, sample_ids)`` to see what it was trained on; for records and tests.

First with the step that training goes on from and no ids, then after every step with the ids (int64, on the
CPU) of this rank's real images in it.
"""


def run_training(
    config: Config,
    *,
    rank: int,
    world_size: int,
    device: torch.device,
    events: Events,
    save: Save,
    resume_from: Path | None = None,
    should_stop: Callable[[int], bool] | None = None,
    observe: Observe | None = None,
) -> Row:
    """Train as `config` says, and return the `end` row (on every rank).

    Every rank calls it with the same configuration; with several, torch.distributed is initialised. The
    number of torch threads is the caller's business, and so is checking the data's checksums.

    `resume_from`: a checkpoint folder that every rank can read; the run continues with the next sample and
    equals the uninterrupted one, bit for bit on a CPU with equally many ranks and threads.
    `should_stop(step)` is asked on every rank after every step and must answer alike on all; on yes a
    checkpoint is saved and the run ends with `stopped` true. `observe` is called before that.

    Raises:
        RunError: loss, gradients, weights or optimizer state are not finite; no process group; DeepSpeed
            cannot run here.
        DataError: a split that cannot be read, more classes than the network has, splits or a checkpoint
            that number them differently, or a checkpoint of other data.
        ConfigError: a global batch larger than the training split.
        CheckpointError: see `read_checkpoint`.
    """
    loop = _Loop(config, rank=rank, world_size=world_size, device=device, events=events, save=save)
    try:
        if resume_from is not None:
            loop.resume(read_checkpoint(resume_from))
        return loop.run(should_stop or (lambda step: False), observe or (lambda step, sample_ids: None))
    finally:
        loop.engine.close()


class _Loop:
    """State of a run between its events: counters, and sums of the metrics since the last log row."""

    def __init__(
        self, config: Config, *, rank: int, world_size: int, device: torch.device, events: Events, save: Save
    ) -> None:
        data, train = config.data, config.train
        self.config, self.rank, self.world_size, self.device = config, rank, world_size, device
        self._events, self._save = events, save
        self.family = find_family(config.model.kind)
        self.train_folder, self.test_folder = split_folders(config)
        self.stream = TrainStream(
            self.train_folder,
            seed=train.seed,
            global_batch_size=train.global_batch_size,
            lanes=data.lanes,
            window=data.window,
            last_batch=data.last_batch,
            rank=rank,
            world_size=world_size,
            pin=device.type == "cuda",
        )
        self.data = self.stream.split.index
        check_splits(config, self.data, read_index(self.test_folder))
        self.transform = Transform(
            shift=data.shift,
            crop=data.crop,
            flip=data.flip,
            brightness=data.brightness,
            contrast=data.contrast,
            standardise=data.standardise,
            train=True,
        )
        torch.manual_seed(train.seed)
        model = build_model(config.model, config.routing)
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.engine = build_engine(config, model, rank=rank, world_size=world_size, device=device)
        self.total_steps = total_steps(config, self.data.num_samples)
        self.step = 0  # optimizer steps done since the run began
        self.resumed_step = 0
        self.checkpoint_name: str | None = None
        self.saved = False  # is there a checkpoint to go on from?
        self.validation: Evaluation | None = None
        self.validated_step = 0

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue after the last step of `checkpoint`."""
        position = Position.from_dict(checkpoint.position)
        self.stream.check_position(position)
        self.step = self.resumed_step = checkpoint.step
        self.saved = True
        check_trained_classes(checkpoint, self.data, self.train_folder, self._note)
        self.engine.load(checkpoint.engine)

    def run(self, should_stop: Callable[[int], bool], observe: Observe) -> Row:
        """Do all steps that are left, and return the `end` row."""
        self._begin()
        observe(self.step, torch.empty(0, dtype=torch.int64))
        stopped = False
        while self.step < self.total_steps and not stopped:
            for batch in self.stream.epoch(*self.stream.steps.locate(self.step)):
                self._step(batch.to(self.device))
                observe(self.step, batch.sample_ids[batch.weights > 0])
                # asked on every rank, and void after the last step: that run is done
                stopped = should_stop(self.step) and self.step < self.total_steps
                self._after_step(stopped)
                if stopped or self.step == self.total_steps:
                    break
        if self.validation is None and not stopped:  # the checkpoint was already the last
            self._validate()
        return self._end(stopped)

    def _step(self, batch: Batch) -> None:
        images = self.transform(batch.images, batch.sample_ids, self.config.train.seed, batch.epoch)
        sums, self._grad_norm = train_step(self.engine, batch, images, self.family, self.config, self.step)
        self._sums += sums
        self.step += 1
        self._window_steps += 1

    def _after_step(self, stopped: bool) -> None:
        """Log, validate and save, if this step is one for it."""
        train = self.config.train
        last = self.step == self.total_steps
        epoch_end = self.stream.steps.ends_epoch(self.step)
        validate = last or _due(self.step, train.validate_every_steps, epoch_end)
        save = last or stopped or _due(self.step, train.checkpoint_every_steps, epoch_end)
        # A checkpoint always comes with a row: the rows after it do not depend on what came before it.
        if validate or save or self._window_steps >= train.log_every_steps:
            self._log()
            if validate:
                self._validate()
            if save:
                self._checkpoint()
            self._open_window()

    def _begin(self) -> None:
        train = self.config.train
        self._emit(
            "start",
            run=train.name,
            preset=self.config.preset,
            data=self.config.data.name,
            test_split=self.config.data.test_split,
            model=self.config.model.kind,
            network=self.family.title,
            num_parameters=self.num_parameters,
            precision=self.engine.precision,
            engine=self.engine.name,
            device=_device_name(self.device),
            world_size=self.world_size,
            torch_threads=torch.get_num_threads(),
            global_batch_size=train.global_batch_size,
            steps_per_epoch=self.stream.steps.before(1),
            total_steps=self.total_steps,
            resumed_step=self.resumed_step,
        )
        self._began = time.perf_counter()
        self._train_s, self._num_trained = 0.0, 0
        self._open_window()

    def _open_window(self) -> None:
        """Begin to sum anew; what validation and checkpoints took counts to no window."""
        self._sums = torch.zeros(len(metric_names(self.family)), dtype=torch.float64, device=self.device)
        self._grad_norm = torch.zeros(())
        self._window_steps = 0
        self._window_began = time.perf_counter()

    def _log(self) -> None:
        """Emit the means over the window; waits for the device, and for the other ranks."""
        # the norm is summed as well, so that all ranks find the same
        sums = _summed(torch.cat([self._sums, self._grad_norm.to(self._sums).view(1)]), self.world_size)
        norms, total = sums.pop(), dict(zip(metric_names(self.family), sums, strict=True))
        seconds = time.perf_counter() - self._window_began
        num = total["num_images"]
        grad_norm = float(self._grad_norm)
        # fp16 skips steps that overflow by itself; the loss tells if that does not help
        if not math.isfinite(total["loss"] + (0.0 if self.engine.precision == "fp16" else norms)):
            self._fail(f"loss={total['loss'] / num:g} with gradient norm {grad_norm:g}")
        self._train_s += seconds
        self._num_trained += int(num)
        elapsed = time.perf_counter() - self._began
        left = self.total_steps - self.step
        self._emit(
            "train",
            **{name: total[name] / num for name in self.family.loss_names},
            error_percent=100.0 * total["num_wrong"] / num,
            learning_rate=learning_rate_at(self.step - 1, self.config.optim),
            grad_norm=grad_norm,
            images_per_s=num / seconds,
            step_time_s=seconds / self._window_steps,
            eta_s=elapsed / (self.step - self.resumed_step) * left,
            time_s=elapsed,
        )

    def _validate(self) -> None:
        train = self.config.train
        self.engine.model.eval()
        self.validation = evaluate(
            self.engine.forward,
            self.test_folder,
            self.config,
            device=self.device,
            batch_size=-(-train.global_batch_size // (self.world_size * train.gradient_accumulation_steps)),
            rank=self.rank,
            world_size=self.world_size,
            progress=self._validating if self.rank == 0 else None,
        )
        self.engine.model.train()
        if not math.isfinite(self.validation["loss"]):
            self._fail(f"validation loss={self.validation['loss']:g}")
        self.validated_step = self.step
        self._emit("validation", **self.validation, time_s=time.perf_counter() - self._began)

    def _validating(self, done: int, total: int) -> None:
        self._emit("progress", doing=f"validating on {self.config.data.test_split}", done=done, total=total)

    def _checkpoint(self) -> None:
        began = time.perf_counter()
        epoch, step = self._position()
        metrics: dict[str, float] = {}
        if self.validation:
            metrics = {
                "error_percent": self.validation["error_percent"],
                "loss": self.validation["loss"],
                "validated_step": self.validated_step,
            }
        state = self.engine.state()
        check_state(
            state,
            self.config,
            self.step,
            saved=self.saved,
            world_size=self.world_size,
            device=self.device,
        )
        checkpoint = Checkpoint(
            engine=state,
            step=self.step,
            epoch=epoch,
            position=self.stream.position(epoch, step).to_dict(),
            config=self.config,
            metrics=metrics,
            classes=self.data.classes,
        )

        def write(folder: Path) -> None:
            if self.rank == 0:
                write_checkpoint(folder, checkpoint)

        self.checkpoint_name = self._save(write, self.step, metrics)
        self.saved = True
        self._emit("checkpoint", name=self.checkpoint_name, seconds=time.perf_counter() - began)

    def _end(self, stopped: bool) -> Row:
        return self._emit(
            "end",
            run=self.config.train.name,
            test_split=self.config.data.test_split,
            stopped=stopped,
            error_percent=self.validation and self.validation["error_percent"],
            loss=self.validation and self.validation["loss"],
            num_images=self.validation and self.validation["num_images"],
            images_per_s=self._num_trained / self._train_s if self._train_s else 0.0,
            checkpoint=self.checkpoint_name,
            wall_time_s=time.perf_counter() - self._began,
        )

    def _position(self) -> tuple[int, int]:
        """Epoch and steps done inside it; after a whole epoch the next one's beginning."""
        return self.stream.steps.locate(self.step)

    def _fail(self, what: str) -> NoReturn:
        raise not_finite(self.config, what, self.step, saved=self.saved)

    def _note(self, text: str) -> None:
        self._emit("note", message=text)

    def _emit(self, kind: str, **values: Any) -> Row:
        epoch = self.stream.steps.epochs(self.step)
        row: Row = {"kind": kind, "step": self.step, "epoch": epoch, **values}
        if self.rank == 0:
            self._events(row)
        return row


def _due(step: int, every: int | None, epoch_end: bool) -> bool:
    return epoch_end if every is None else step % every == 0


def _summed(values: Tensor, world_size: int) -> list[float]:
    if world_size > 1:
        dist.all_reduce(values)
    return values.tolist()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
