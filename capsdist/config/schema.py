"""The configuration of a run: frozen pydantic models, unknown fields refused.

Every field carries its meaning, unit, range and source in the docstring under it, which is also the
help text of the command line. Ranges stand as `Bounds` beside the type and are checked by
`capsdist.config.rules`, which reports all problems of a configuration at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class Bounds:
    """Allowed range of a number: `ge <= value <= le`, `gt < value < lt`; None leaves an end open."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None


Count = Annotated[int, Bounds(ge=1)]
Positive = Annotated[float, Bounds(gt=0)]
NonNegative = Annotated[float, Bounds(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Model(_Section):
    """The network (paper, section 4 and figures 1 and 2)."""

    kind: Literal["capsnet", "baseline_cnn"] = "capsnet"
    """Capsule network, or the convolutional baseline of Table 1 (28x28 inputs, 35.4 M parameters)."""
    in_channels: Count = 1
    """Channels C of an image: 1 grey, 3 colour."""
    image_size: Annotated[int, Bounds(ge=9)] = 28
    """Height and width of an image as the network sees it, in pixels, after cropping."""
    num_classes: Annotated[int, Bounds(ge=2)] = 10
    """Classes, one output capsule each (J)."""
    conv_channels: Count = 256
    """Channels of the first convolution; paper: 256."""
    conv_kernel: Count = 9
    """Kernel size of the first convolution, stride 1, in pixels; paper: 9."""
    primary_types: Count = 32
    """Types of primary capsules, each a map of capsules; paper: 32, CIFAR-10: 64."""
    primary_dim: Count = 8
    """Dimensions D of a primary capsule; paper: 8."""
    primary_kernel: Count = 9
    """Kernel size of the primary capsules' convolution, in pixels; paper: 9."""
    primary_stride: Count = 2
    """Stride of the primary capsules' convolution, in pixels; paper: 2."""
    primary_coupling: bool = False
    """Primary capsules squash conv / types + bias (types + 1 with none_of_the_above); official code only."""
    padding: Literal["valid", "same"] = "valid"
    """Padding of both convolutions; paper: valid, official CIFAR-10 network: same."""
    class_dim: Count = 16
    """Dimensions E of a class capsule; paper: 16."""
    capsule_bias: bool = False
    """One learned bias per class capsule dimension, added before squash; official code only."""
    log_priors: bool = False
    """One learned logit per primary and class capsule to start routing from (section 2); else it is 0."""
    decoder: bool = True
    """Reconstruct the image from the class capsules (paper, section 4.1)."""
    decoder_hidden: tuple[int, int] = (512, 1024)
    """Units of the decoder's two hidden layers; paper: 512 1024."""
    initialisation: Literal["default", "truncated_normal"] = "default"
    """`default`: PyTorch's own for convolution, decoder (not in the paper); `truncated_normal`: official."""
    dropout: Annotated[float, Bounds(ge=0, lt=1)] = 0.5
    """Dropout before the last layer of the baseline CNN, a probability; the capsule network has none."""


class Routing(_Section):
    """Routing by agreement (paper, section 2, Procedure 1)."""

    iterations: Annotated[int, Bounds(ge=1, le=50)] = 3
    """Routing iterations r: r softmax passes; paper: 3."""
    none_of_the_above: bool = False
    """An extra column of zero logits that takes part in the softmax and is dropped; CIFAR-10 ("leaky")."""
    gradient: Literal["full", "last"] = "full"
    """Iterations that the gradient goes through: `full` all (paper); `last` one (some public code)."""
    recompute: Literal["streamed", "iterations", "none"] = "streamed"
    """What the backward pass builds again; with `iterations` and `none` autograd keeps the votes."""
    form: Literal["auto", "fused", "streamed", "reference"] = "auto"
    """How it is computed: `fused` on a GPU, `streamed` without votes, `reference` with; same numbers."""


class Loss(_Section):
    """Margin loss (paper, section 3) and reconstruction loss (section 4.1)."""

    m_plus: Annotated[float, Bounds(gt=0, lt=1)] = 0.9
    """Length that the capsule of a present class must reach; paper: 0.9."""
    m_minus: Annotated[float, Bounds(ge=0, lt=1)] = 0.1
    """Length that the capsule of an absent class may have; paper: 0.1."""
    downweight: NonNegative = 0.5
    """Weight lambda of absent classes; paper: 0.5."""
    margin_form: Literal["paper", "official"] = "paper"
    """`paper`: sum over classes; `official`: mean over classes of half of it, 20 times smaller for 10."""
    reconstruction_weight: NonNegative = 0.0005
    """Weight of the sum of squared pixel errors of the reconstruction; paper: 0.0005; 0 switches it off."""


class Data(_Section):
    """Where the images come from and how they are shown."""

    name: str = "mnist"
    """Name of the packed data set: a folder below `root` that holds one folder a split."""
    root: str = "data"
    """Folder of the packed data sets, as the data_prep scripts write it."""
    train_split: str = "train"
    """Split to train on."""
    test_split: str = "test"
    """Split to validate on."""
    lanes: Count = 8
    """Lanes that an epoch's order is cut into; divides `train.global_batch`, best not below the workers."""
    window: Count = 8192
    """Window of the shuffle inside a lane, in samples."""
    last_batch: Literal["short", "carry"] = "short"
    """Last step of an epoch: `short` has the images left; `carry` is filled from the next epoch; official."""
    shift: Annotated[int, Bounds(ge=0)] = 2
    """Random shift of training images up to this many pixels each way, zeros outside; paper: 2."""
    crop: Annotated[int, Bounds(ge=0)] = 0
    """Side of the random crop in training, central in testing, in pixels; 0: none; CIFAR-10: 24."""
    flip: bool = False
    """Mirror half of the training images left to right; CIFAR-10 official."""
    brightness: Annotated[float, Bounds(ge=0, le=255)] = 0.0
    """Random brightness change up to this many grey levels (of 255) each way; CIFAR-10 official: 63."""
    contrast: tuple[float, float] = (1.0, 1.0)
    """Range of the random contrast factor; CIFAR-10 official: 0.2 1.8."""
    standardise: bool = False
    """Per-image zero mean and unit variance; CIFAR-10 official. Otherwise pixels are in [0, 1]."""


class Optim(_Section):
    """Adam with exponentially decaying learning rate (paper, section 4)."""

    learning_rate: Positive = 1e-3
    """Learning rate at the first step; TensorFlow's Adam default, as in the paper."""
    beta1: Annotated[float, Bounds(ge=0, lt=1)] = 0.9
    """Adam's decay of the first moment."""
    beta2: Annotated[float, Bounds(ge=0, lt=1)] = 0.999
    """Adam's decay of the second moment."""
    epsilon: Positive = 1e-8
    """Adam's epsilon."""
    epsilon_placement: Literal["pytorch", "tensorflow"] = "pytorch"
    """Epsilon is added before (`tensorflow`; paper, official) or after (`pytorch`) the bias correction."""
    decay_rate: Annotated[float, Bounds(gt=0, le=1)] = 0.96
    """Learning rate = max(floor, learning_rate x decay_rate^(step / decay_steps)), continuous."""
    decay_steps: Count = 2000
    """Steps over which the rate decays by `decay_rate`; official: 2000."""
    learning_rate_floor: NonNegative = 1e-6
    """Smallest learning rate; official: 1e-6."""
    max_grad_norm: NonNegative = 0.0
    """Clip the global gradient norm to this; 0: no clipping, as in the paper."""


class Train(_Section):
    """One run of training."""

    name: str = "mnist"
    """Name of the run; starting the same name again continues it from its newest checkpoint."""
    storage: str = "runs"
    """Folder that holds one folder a run, shared by all machines of a cluster, or s3://bucket/prefix."""
    workers: Count = 1
    """Ray Train workers, one rank each."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Device of every worker; auto: gpu if the Ray cluster has one, else cpu."""
    epochs: Count = 10
    """Passes over the training split."""
    max_steps: int | None = None
    """Stop after this many optimizer steps even if epochs are left."""
    global_batch: Count = 128
    """Images an optimizer step over all workers; official: 128."""
    accumulation: Count = 1
    """Microbatches that a worker's share of a step is split into."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on a GPU or a CPU that multiplies bf16 in hardware; else fp32. Routing sums in fp32."""
    engine: Literal["auto", "ddp", "zero"] = "auto"
    """ddp: PyTorch DistributedDataParallel; zero: DeepSpeed ZeRO. auto: zero on several GPUs, else ddp."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage: 1 partitions optimizer state, 2 also gradients, 3 also parameters."""
    seed: Annotated[int, Bounds(ge=0, lt=2**31)] = 0
    """Seed of initialisation, data order and augmentation; equal seeds repeat a CPU run bit for bit."""
    validate_every_steps: int | None = None
    """Steps between validations; default: at the end of every epoch."""
    checkpoint_every_steps: int | None = None
    """Steps between checkpoints; default: at the end of every epoch. The last step always has one."""
    keep_checkpoints: Count = 2
    """Newest checkpoints kept in storage."""
    keep_best: Annotated[int, Bounds(ge=0)] = 1
    """Checkpoints of lowest validated error_percent kept besides; 0: none."""
    log_every_steps: Count = 10
    """Steps between two lines of metrics; validations and checkpoints begin anew."""


class Cluster(_Section):
    """What is asked of Ray, and how long to wait for it."""

    cpus_per_worker: NonNegative = 0.0
    """CPU cores of a worker, its torch threads without a GPU; 0: a local Ray's cores shared out, else 1."""
    max_workers: int | None = None
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


class Config(_Section):
    """A whole run: a preset plus overrides, resolved; stored in checkpoint, record and log."""

    preset: str = "custom"
    """Name of the preset this configuration started from."""
    model: Model = Model()
    """The network."""
    routing: Routing = Routing()
    """Routing by agreement."""
    loss: Loss = Loss()
    """Margin and reconstruction loss."""
    data: Data = Data()
    """Data set, order and augmentation."""
    optim: Optim = Optim()
    """Optimizer and schedule."""
    train: Train = Train()
    """One run of training."""
    cluster: Cluster = Cluster()
    """What is asked of Ray."""
