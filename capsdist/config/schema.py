"""The configuration of a run: frozen pydantic models, unknown fields refused.

Every field carries its meaning, unit, range and source in the docstring under it, which is also the
help text of the command line. Ranges stand as `Bounds` beside the type and are checked by
`capsdist.config.rules`, which reports all problems of a configuration at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, SerializeAsAny, ValidationInfo, field_validator

from capsdist.config.images import Size
from capsdist.config.models import CapsNetConfig, Family, NetworkConfig, find_family
from capsdist.config.sections import (
    END_OF_RUN,
    MAY_CHANGE,
    Bounds,
    Count,
    NonNegative,
    OptionalCount,
    Positive,
    Section,
)
from capsdist.config.stored import as_read


class Data(Section):
    """Where the images come from and how they are shown."""

    name: str = "mnist"
    """Name of the packed data set: a folder below `root` that holds one folder per split.
    With the reader webdataset it only names the split to validate on; "": do not validate."""
    root: Annotated[str, MAY_CHANGE] = "data"
    """Folder of the packed data sets, as the data_prep scripts write it."""
    train_split: str = "train"
    """Split to train on."""
    test_split: str = "test"
    """Split whose error is measured at the end of the run, and by `capsdist evaluate`."""
    validation_split: str | None = Field(default_factory=lambda data: data["test_split"])
    """Split to validate on during the run; None: no validation. Version 0.1 validated on `test_split`."""
    further_tests: Annotated[tuple[str, ...], MAY_CHANGE] = ()
    """Further splits, SET/SPLIT below `root`, on which a run is tested once it is done: affnist/test."""
    reader: Literal["packed", "webdataset"] = "packed"
    """Reads the training images: `packed` splits, or tar files of image files by the library webdataset."""
    urls: str = ""
    """Tar files for the reader webdataset: paths, s3:// or https:// URLs, 'https://host/{000..999}.tar'."""
    num_samples: OptionalCount = None
    """Images of an epoch for the reader webdataset: how many there are in all tar files."""
    classes: tuple[str, ...] = ()
    """Names of the classes for the reader webdataset; default: of the packed splits, or numbers."""
    resident: Annotated[Literal["auto", "never", "device", "shared"], MAY_CHANGE] = "auto"
    """Keep the training split in memory: of the `device`, `shared` by the workers of a node, or `never`;
    auto: blocks and recipes that take at most a quarter of the free memory; not encoded images, which would
    be decoded before the first step."""
    lanes: Count = 8
    """Lanes that an epoch's order is cut into; divides `train.global_batch_size`, at least the workers."""
    window: Count = 8192
    """Window of the shuffle inside a lane, in samples; for the reader webdataset its shuffle buffer."""
    last_batch: Literal["short", "carry"] = "short"
    """Last step of an epoch: `short` has the images left; `carry` is filled from the next epoch; official."""
    shift: Annotated[int, Bounds(ge=0)] = 2
    """Random shift of training images up to this many pixels each way, zeros outside; paper: 2."""
    decode_size: Annotated[Size, Bounds(ge=0)] = 0
    """Side, or height and width, to which encoded images are decoded; 0: the stored one, if all have one."""
    crop: Annotated[Size, Bounds(ge=0)] = 0
    """Side, or height and width, of the random crop in training, central in testing, after `resize` if both
    are set; 0: none; CIFAR: 24, smallNORB: 32."""
    flip: bool = False
    """Mirror half of the training images left to right; CIFAR-10 official."""
    resize: Annotated[Size, Bounds(ge=0)] = 0
    """Resize the largest central part of these proportions to this side, or height and width; 0: none;
    smallNORB: 48."""
    resize_area: tuple[float, float] = (1.0, 1.0)
    """In training resize a random part: range of its share of that part's area; ImageNet: 0.08 1."""
    resize_ratio: tuple[float, float] = (1.0, 1.0)
    """In training resize a random part: range of the factor of width over height; ImageNet: 0.75 1.333."""
    rotation: Annotated[float, Bounds(ge=0, le=180)] = 0.0
    """Random rotation of training images up to this many degrees each way, zeros outside."""
    translation: Annotated[float, Bounds(ge=0)] = 0.0
    """Random translation up to this many pixels each way, between pixels too, zeros outside."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the random factor of a training image's size, zeros outside."""
    shear: Annotated[float, Bounds(ge=0, lt=90)] = 0.0
    """Random shear of training images along their rows, up to this many degrees each way."""
    brightness: Annotated[float, Bounds(ge=0, le=255)] = 0.0
    """Random brightness change up to this many grey levels (of 255) each way; CIFAR-10 official: 63."""
    contrast: tuple[float, float] = (1.0, 1.0)
    """Range of the random contrast factor; CIFAR-10 official: 0.2 1.8."""
    standardise: bool = False
    """Per-image zero mean and unit variance; CIFAR-10 official. Otherwise pixels are in [0, 1]."""
    normalise_mean: tuple[float, ...] = ()
    """Means of the set's channels, in [0, 1]: subtracted; `capsdist verify --statistics` prints them."""
    normalise_std: tuple[float, ...] = ()
    """Standard deviations of the set's channels: what is left is divided by them."""
    cutout: Annotated[int, Bounds(ge=0)] = 0
    """Side of a square of zeros at a random place of training images, in pixels; 0: none."""
    mixup: Annotated[float, Bounds(ge=0, le=1000)] = 0.0
    """Mix each training image with another, by a weight from Beta(mixup, mixup); ImageNet: 0.2; 0: none."""

    @property
    def tests_apart(self) -> bool:
        """Whether the test split is read once, at the end of a run: False for a run that validates on it."""
        return self.validation_split != self.test_split

    @property
    def least_size(self) -> int | tuple[int, int]:
        """Size that stored images must have at least: that of the crop, unless they are resized before it."""
        return 0 if self.resize else self.crop

    @property
    def splits(self) -> dict[str, str]:
        """The packed splits that a run reads, by field: validation_split only where it is one of its own."""
        if self.reader != "packed" and not self.name:
            return {}
        found = {"train_split": self.train_split} if self.reader == "packed" else {}
        if self.validation_split is not None and self.tests_apart:
            found["validation_split"] = self.validation_split
        return {**found, "test_split": self.test_split}


class Optim(Section):
    """Optimizer, learning rate by step, average of the weights; default: Adam as in the paper, section 4."""

    kind: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimizer; adamw: Adam with decoupled weight decay (Loshchilov and Hutter 2019); paper: adam."""
    learning_rate: Positive = 1e-3
    """Largest learning rate, for exponential that of the first step; TensorFlow's Adam default, as in the
    paper."""
    beta1: Annotated[float, Bounds(ge=0, lt=1)] = 0.9
    """Adam's decay of the first moment."""
    beta2: Annotated[float, Bounds(ge=0, lt=1)] = 0.999
    """Adam's decay of the second moment."""
    epsilon: Positive = 1e-8
    """Adam's epsilon."""
    epsilon_placement: Literal["pytorch", "tensorflow"] = "pytorch"
    """Epsilon is added before (`tensorflow`; paper, official) or after (`pytorch`) the bias correction."""
    momentum: Annotated[float, Bounds(ge=0, lt=1)] = 0.9
    """Momentum of sgd; 0: none."""
    nesterov: bool = False
    """Nesterov's form of the momentum of sgd."""
    weight_decay: NonNegative = 0.0
    """Weight decay a step, of adamw times the learning rate, of sgd added to the gradient; not of biases,
    normalisation layers and parameters of one dimension."""
    schedule: Literal["exponential", "cosine", "one_cycle", "constant"] = "exponential"
    """Learning rate by step: exponential decay (paper), half a cosine or one_cycle to the floor, constant."""
    warmup_steps: Annotated[int, Bounds(ge=0)] = 0
    """Steps before the schedule begins, in which the learning rate rises linearly; not for one_cycle."""
    schedule_steps: Annotated[OptionalCount, END_OF_RUN] = None
    """Step after which cosine and one_cycle stay at the floor, warm-up included; default: the run's last.
    A run that is started again with more epochs must keep this number."""
    cycle_up: Annotated[float, Bounds(gt=0, lt=1)] = 0.3
    """Share of one_cycle in which the learning rate rises, linearly from the floor."""
    decay_rate: Annotated[float, Bounds(gt=0, le=1)] = 0.96
    """exponential: max(floor, learning_rate x decay_rate^(step / decay_steps)), continuous."""
    decay_steps: Count = 2000
    """Steps over which the exponential rate decays by `decay_rate`; official: 2000."""
    learning_rate_floor: NonNegative = 1e-6
    """Smallest learning rate of all schedules but constant; official: 1e-6."""
    max_grad_norm: NonNegative = 0.0
    """Clip the global gradient norm to this; 0: no clipping, as in the paper."""
    average_decay: Annotated[float, Bounds(ge=0, lt=1)] = 0.0
    """Decay a step of a moving average of the weights, which is evaluated and exported in their place, at
    step t at most (1 + t) / (10 + t); 0: no average."""


class Train(Section):
    """One run of training."""

    name: Annotated[str, MAY_CHANGE] = "mnist"
    """Name of the run; starting the same name again continues it from its newest checkpoint."""
    storage: Annotated[str, MAY_CHANGE] = "runs"
    """Folder that holds one folder per run, shared by all machines of a cluster, or s3://bucket/prefix."""
    num_workers: Annotated[Count, MAY_CHANGE] = 1
    """Ray Train workers, one rank each."""
    device: Annotated[Literal["auto", "cpu", "gpu"], MAY_CHANGE] = "auto"
    """Device of every worker; auto: gpu if the Ray cluster has one, else cpu."""
    epochs: Annotated[Count, END_OF_RUN] = 10
    """Passes over the training split."""
    max_steps: Annotated[OptionalCount, END_OF_RUN] = None
    """Stop after this many optimizer steps even if epochs are left."""
    stop_at_error: Annotated[float | None, Bounds(ge=0, le=100), END_OF_RUN] = None
    """End the run, tested, once a validated error_percent is at most this."""
    patience: Annotated[OptionalCount, END_OF_RUN] = None
    """End the run, tested, after this many validations in a row without a lower error_percent."""
    global_batch_size: Count = 128
    """Images an optimizer step over all workers; official: 128."""
    gradient_accumulation_steps: Annotated[Count, MAY_CHANGE] = 1
    """Microbatches that a worker's share of a step is split into."""
    microbatch_size: Annotated[int | Literal["auto"] | None, Bounds(ge=1), MAY_CHANGE] = None
    """Most images of a worker in one forward pass, in place of `gradient_accumulation_steps`; auto: the
    largest share, half, quarter... of a worker that fits in memory, tried before the first step."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on a GPU or a CPU that multiplies bf16 in hardware; else fp32. Routing sums in fp32."""
    speed: Annotated[Literal["auto", "plain"], MAY_CHANGE] = "auto"
    """auto: on one GPU a step is a CUDA graph, in the variant that a trial before the first step finds
    fastest; several GPUs, ZeRO, fp16 and networks that draw random numbers run eager. plain: eager."""
    engine: Annotated[Literal["auto", "ddp", "zero"], MAY_CHANGE] = "auto"
    """ddp: PyTorch DistributedDataParallel; zero: DeepSpeed ZeRO. auto: zero on several GPUs, else ddp."""
    zero_stage: Annotated[Literal[0, 1, 2, 3], MAY_CHANGE] = 1
    """DeepSpeed ZeRO stage: 1 partitions optimizer state, 2 also gradients, 3 also parameters."""
    capsule_ranks: Annotated[Count, MAY_CHANGE] = 1
    """Workers that share the weights of class capsules, each with its part; a divisor of `num_workers`."""
    recompute: Annotated[Literal["none", "blocks"], MAY_CHANGE] = "none"
    """`blocks`: keep only the input of each layer of convolutional capsules for the backward pass, which
    computes the rest again: one more forward pass of these layers, the same gradients."""
    seed: Annotated[int, Bounds(ge=0, lt=2**31)] = 0
    """Seed of initialisation, data order and augmentation; equal seeds repeat a CPU run bit for bit."""
    init_from: str | None = None
    """Run or checkpoint, path or s3:// URL, whose weights a new run starts from; of a run the newest."""
    init_best: bool = False
    """Of a run in `init_from`, start from the checkpoint with the lowest validated error_percent."""
    init_strict: bool = True
    """Refuse weights in `init_from` that do not fit the network; otherwise those are left out."""
    validate_every_steps: Annotated[OptionalCount, MAY_CHANGE] = None
    """Steps between validations on `data.validation_split`; default: at the end of every epoch."""
    checkpoint_every_steps: Annotated[OptionalCount, MAY_CHANGE] = None
    """Steps between checkpoints; default: at the end of every epoch. The last step always has one."""
    keep_checkpoints: Annotated[Count, MAY_CHANGE] = 2
    """Newest checkpoints kept in storage."""
    keep_best: Annotated[int, Bounds(ge=0), MAY_CHANGE] = 1
    """Checkpoints of lowest validated error_percent kept besides; 0: none, as without validation."""
    log_every_steps: Annotated[Count, MAY_CHANGE] = 10
    """Steps between two lines of metrics; validations and checkpoints begin anew."""
    health_every: Annotated[int, Bounds(ge=0), MAY_CHANGE] = 0
    """Steps between two rows about the health of capsule layers, as of `capsdist doctor`; 0: none."""
    profile: Annotated[int, Bounds(ge=0), MAY_CHANGE] = 0
    """Steps that torch's profiler traces, after 3 of warm-up, in profile/rank-R.json of the run; 0: none."""
    dry_run: Annotated[int, Bounds(ge=0), MAY_CHANGE] = 0
    """Only do this many steps, print their time and memory by phase, and leave no run behind; 0: train."""
    loggers: Annotated[tuple[str, ...], MAY_CHANGE] = ("jsonl", "tensorboard")
    """Where metrics go: jsonl, tensorboard, wandb, mlflow, or an import path package.module:CLASS."""


class Launch(Section):
    """What is asked of Ray, and how long to wait for it."""

    cpus_per_worker: NonNegative = 0.0
    """CPU cores of a worker, its torch threads without a GPU; 0: a local Ray's cores shared out, else 1."""
    max_workers: OptionalCount = None
    """Workers that the fully scaled cluster can hold; more are refused. Default: a local Ray's cores."""
    max_failures: Annotated[int, Bounds(ge=0)] = 3
    """Restarts from the newest checkpoint after a worker failed."""
    controller_failure_limit: Annotated[int, Bounds(ge=0)] = 5
    """Failed attempts to bring up all workers, `worker_start_timeout_s` each, before the run is given up."""
    worker_start_timeout_s: Positive = 60.0
    """Seconds to wait for all workers to start; longer than an autoscaled node needs to come up."""
    collective_timeout_s: Positive = 300.0
    """Seconds after which a collective operation that waits for a lost worker fails."""
    step_timeout_s: Annotated[float, Bounds(ge=0)] = 1800.0
    """Seconds without a step, a row or a checkpoint after which all workers are killed and started again from
    the newest checkpoint; more than a start, a validation and an upload take; 0 for no limit."""
    stop_timeout_s: Positive = 120.0
    """Seconds that a run asked to stop (Ctrl-C, SIGTERM, `ray job stop`) may take for its last checkpoint."""


class Config(Section):
    """A whole run: a preset plus overrides, resolved; stored in checkpoint, record and log.

    `model.kind` decides the types of `model`, `routing` and `loss`; see `capsdist.config.models`.
    """

    preset: Annotated[str, MAY_CHANGE] = "custom"
    """Name of the preset this configuration started from."""
    model: SerializeAsAny[NetworkConfig] = CapsNetConfig()
    """The network."""
    routing: SerializeAsAny[Section] = Field(default_factory=lambda data: _family(data).routing())
    """Routing by agreement."""
    loss: SerializeAsAny[Section] = Field(default_factory=lambda data: _family(data).loss())
    """What training minimises."""
    data: Data = Data()
    """Data set, order and augmentation."""
    optim: Optim = Optim()
    """Optimizer and schedule."""
    train: Train = Train()
    """One run of training."""
    launch: Annotated[Launch, MAY_CHANGE, Field(validation_alias=AliasChoices("launch", "cluster"))] = (
        Launch()
    )
    """What is asked of Ray."""

    @field_validator("model", "routing", "loss", "train", mode="wrap")
    @classmethod
    def _read_section(cls, value: Any, handler: Any, info: ValidationInfo) -> Any:
        """Read a section of any version as the type that the family gives it."""
        section = str(info.field_name)
        family = _family({"model": value} if section == "model" else info.data)
        shape: type[Section] = getattr(family, section, Train)  # `train` is of no family
        if isinstance(value, Mapping):
            value = as_read(section, shape, value)
        if info.mode == "json":  # of a file: types are strict, and a list stands for a tuple
            return shape.model_validate_json(json.dumps(value), strict=True)
        return shape.model_validate(value)


def _family(data: Mapping[str, Any]) -> Family:
    """Return the family that the section `model` in `data` names; the default's where it names none."""
    model = data.get("model")
    kind = model.get("kind") if isinstance(model, Mapping) else getattr(model, "kind", None)
    return find_family(kind if isinstance(kind, str) else CapsNetConfig().kind)
