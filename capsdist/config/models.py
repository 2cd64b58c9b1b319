"""Network families: a configuration class per family, and the description that other modules use.

`model.kind` names the family: a built-in name, or the import path ``package.module:OBJECT`` of a `Family`. It
decides the types of the sections `model`, `routing` and `loss`, so that no section has fields that the
network does not read. This module imports no torch; the functions of a family import it when they build.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from capsdist.config.images import Size
from capsdist.config.sections import MAY_CHANGE, Bounds, Count, NonNegative, Section
from capsdist.importing import find

if TYPE_CHECKING:
    from torch import Tensor, nn

    from capsdist.config.cost import Cost
    from capsdist.errors import Problem

__all__ = [
    "BUILT_IN", "BaselineCNNConfig", "CapsNetConfig", "CapsuleConfig", "Family", "Loss", "NetworkConfig",
    "NoOptions", "PoolingCNNConfig", "Routing", "find_family",
]  # fmt: skip

BUILT_IN = {
    "capsnet": "capsdist.models.registry:CAPSNET",
    "baseline_cnn": "capsdist.models.registry:BASELINE_CNN",
    "pooling_cnn": "capsdist.models.registry:POOLING_CNN",
    "resnet_capsnet": "capsdist.models.registry:RESNET_CAPSNET",
    "conv_capsnet": "capsdist.models.registry:CONV_CAPSNET",
    "em_capsnet": "capsdist.models.registry:EM_CAPSNET",
    "transforming_autoencoder": "capsdist.models.registry:TRANSFORMING_AUTOENCODER",
}
"""Import paths of the families that have a name."""


class NoOptions(Section):
    """A section that a family does not have."""


class NetworkConfig(Section):
    """What every network has; a family adds its own fields in a subclass, and sets the default of `kind`."""

    kind: str
    """Family of networks: a built-in name, or the import path package.module:OBJECT of a Family."""
    from_data: bool = False
    """Take in_channels, image_size, num_classes, num_labels and decoder_separate from the training split."""
    in_channels: Count = 1
    """Channels C of an image: 1 grey, 3 colour."""
    image_size: Annotated[Size, Bounds(ge=9)] = 28
    """Height and width of an image as the network sees it, in pixels, after cropping; one number for both."""
    num_classes: Annotated[int, Bounds(ge=2)] = 10
    """Classes, one output capsule each (J)."""
    num_labels: Count = 1
    """Labels of an image; MultiMNIST: 2."""

    @property
    def draws_parts(self) -> bool:
        """Whether reconstructions are [B, K, C, H, W], to be compared with the image of each label alone."""
        return False

    @property
    def known_shift(self) -> int:
        """Pixels each way by which the copy of each image that is to be drawn is shifted; 0: no copies."""
        return 0


class CapsuleConfig(NetworkConfig):
    """What every network of primary and class capsules has; the defaults are the paper's (section 4)."""

    primary_types: Count = 32
    """Types of primary capsules, each a map of capsules; paper: 32, CIFAR-10: 64."""
    primary_dim: Count = 8
    """Dimensions D of a primary capsule; paper: 8."""
    primary_kernel: Count = 9
    """Kernel size of the primary capsules' convolution; paper: 9."""
    primary_stride: Count = 2
    """Stride of the primary capsules' convolution; paper: 2."""
    padding: Literal["valid", "same"] = "valid"
    """Padding of the convolutions; paper: valid, official CIFAR-10 network: same."""
    class_dim: Count = 16
    """Dimensions E of a class capsule; paper: 16."""
    capsule_bias: bool = False
    """One learned bias per class capsule dimension, added before squash; official code only, where it starts
    at 0.1. Read by dynamic, grouped, average."""
    log_priors: bool = False
    """One learned logit per child and class capsule to start routing from (section 2); else it is 0. The
    algorithm attention adds it to the coupling. Read by dynamic, attention, grouped."""
    decoder: bool = True
    """Reconstruct the image from the class capsules (paper, section 4.1)."""
    decoder_hidden: tuple[int, int] = (512, 1024)
    """Units of the decoder's two hidden layers; paper: 512 1024."""
    decoder_separate: bool = False
    """Draw each of two labels by itself, from its capsule alone (paper, section 6); needs pairs (recipes)."""

    @property
    def draws_parts(self) -> bool:
        """With decoder_separate, unless there is no decoder."""
        return self.decoder and self.decoder_separate


class CapsNetConfig(CapsuleConfig):
    """The capsule network (paper, section 4 and figures 1 and 2)."""

    kind: str = "capsnet"
    """Family of networks: a built-in name, or the import path package.module:OBJECT of a Family."""
    conv_channels: Count = 256
    """Channels of the first convolution; paper: 256."""
    conv_kernel: Count = 9
    """Kernel size of the first convolution, stride 1, in pixels; paper: 9."""
    primary_coupling: bool = False
    """Primary capsules squash conv / types + bias (types + 1 with none_of_the_above); official code only.
    Read by dynamic."""
    initialisation: Literal["default", "truncated_normal"] = "default"
    """`default`: PyTorch's own for convolution, decoder (not in the paper); `truncated_normal`: official.
    Read by dynamic."""


class BaselineCNNConfig(NetworkConfig):
    """The convolutional baseline of Table 1: 35.4 M parameters for 28x28 images."""

    kind: str = "baseline_cnn"
    """Family of networks: a built-in name, or the import path package.module:OBJECT of a Family."""
    conv_channels: Annotated[tuple[int, int, int], Bounds(ge=1)] = (256, 256, 128)
    """Channels of the three convolutions; paper: 256 256 128."""
    dense_units: Annotated[tuple[int, int], Bounds(ge=1)] = (328, 192)
    """Units of the two dense layers before the last one; paper: 328 192."""
    dropout: Annotated[float, Bounds(ge=0, lt=1)] = 0.5
    """Dropout before the last layer, a probability."""


class PoolingCNNConfig(NetworkConfig):
    """The convolutional baseline with pooling of section 6: 24.6 M parameters for 36x36 images."""

    kind: str = "pooling_cnn"
    """Family of networks: a built-in name, or the import path package.module:OBJECT of a Family."""
    conv_channels: Annotated[tuple[int, int], Bounds(ge=1)] = (512, 256)
    """Channels of the two convolutions; paper: 512 256."""
    dense_units: Count = 1024
    """Units of the dense layer between convolutions and scores; paper: 1024."""


class Routing(Section):
    """Routing by agreement (paper, section 2, Procedure 1), or another algorithm for class capsules."""

    algorithm: str = "dynamic"
    """Routing algorithm of class capsules: dynamic, attention, inverted, heinsen, grouped, the controls
    average and fully_connected, or the import path package.module:OBJECT of an Algorithm. Each option names
    the algorithms that read it, and is refused with others."""

    iterations: Annotated[int, Bounds(ge=1, le=50)] = 3
    """Routing iterations r: r softmax passes; paper: 3. Read by dynamic, inverted, heinsen, grouped."""
    none_of_the_above: bool = False
    """An extra column of zero logits that takes part in the softmax and is dropped; CIFAR-10 ("leaky").
    Read by dynamic, grouped."""
    gradient: Literal["full", "last"] = "full"
    """Iterations that the gradient goes through: `full` all (paper); `last` one (some public code).
    Read by dynamic, grouped."""
    recompute: Annotated[Literal["streamed", "iterations", "none"], MAY_CHANGE] = "streamed"
    """What the backward pass builds again; with `iterations` and `none` autograd keeps the votes.
    Read by dynamic, grouped."""
    backend: Annotated[Literal["auto", "fused", "streamed", "reference"], MAY_CHANGE] = "auto"
    """How it is computed: `fused` on a GPU, `streamed` without votes, `reference` with; same numbers.
    Read by dynamic, attention, inverted, heinsen, grouped, average."""
    groups: Count = 1
    """Groups of child capsule types that grouped routing routes by themselves; divides their number.
    Read by grouped."""
    hidden_capsules: tuple[Count, ...] = ()
    """Capsules of further layers under the class capsules, one number a layer, of class_dim dimensions.
    Read by inverted."""
    concurrent: bool = False
    """All layers of hidden_capsules make a routing pass at once, instead of one layer after another. Read by
    inverted."""


class Loss(Section):
    """Margin loss (paper, section 3) and reconstruction loss (section 4.1)."""

    m_plus: Annotated[float, Bounds(gt=0, lt=1)] = 0.9
    """Length that the capsule of a present class must reach; paper: 0.9."""
    m_minus: Annotated[float, Bounds(ge=0, lt=1)] = 0.1
    """Length that the capsule of an absent class may have; paper: 0.1."""
    absent_weight: NonNegative = 0.5
    """Weight lambda of absent classes; paper: 0.5."""
    absent_scaling: Literal["none", "classes"] = "none"
    """`classes`: absent_weight x 9 / (classes - 1), so that all absent classes weigh as much as 9 do."""
    margin_reduction: Literal["paper", "official"] = "paper"
    """`paper`: sum over classes; `official`: mean over classes of half of it, 20 times smaller for 10."""
    reconstruction_weight: NonNegative = 0.0005
    """Weight of the sum of squared pixel errors of the reconstruction; paper: 0.0005; 0 switches it off."""


@dataclass(frozen=True)
class Family:
    """A family of networks.

    Attributes:
        title: what people call it, in the first line of a run.
        model, routing, loss: types of these sections of a configuration.
        build: ``build(model, routing)`` returns the network, in training mode. Its forward pass takes images
            [B, C, H, W], and labels while training, and returns a `capsdist.models.Output`. With
            `NetworkConfig.known_shift` it takes the shifts in place of labels, [B, 2], in evaluation too.
        losses: ``losses(output, images, labels, loss)`` returns named losses per image, [B] each, at least
            fp32. ``"loss"`` is what training minimises; the others are reported only. images: as the network
            saw them; with `NetworkConfig.draws_parts` those of the labels alone, [B, K, C, H, W], with
            `NetworkConfig.known_shift` their shifted copies. labels:
            int64 [B], or floating [B, J], probabilities of the classes, where training mixes images.
        loss_names: the names that `losses` returns.
        classifies: whether scores are of classes. If not, runs have no error_percent, and commands about
            classes refuse them.
        problems: ``problems(config)`` returns what types and ranges of single fields cannot say.
        multi_label_losses: as `losses`, for `model.num_labels` above 1; labels: int64 [B, K], up to K labels
            of each image, -1 where it has fewer, or floating [B, J], multi-hot or in between. None: images
            have one label.
        loss_at: ``loss_at(loss, step, total_steps)`` returns the section `loss` of an optimizer step, whose
            number begins with 0, of so many; outside of training `loss` itself counts. None: no change.
        cost: ``cost(model, routing)`` returns what the layers cost (`capsdist.config.cost.Cost`), for
            `capsdist plan`, or raises ConfigError where it cannot say. None: it cannot price the family.
        activations: whether scores are activations of class capsules, as of EM routing, and not the lengths
            of their poses.
        has_blocks: whether its networks have an attribute `recompute_blocks`, which `train.recompute` sets.
        source: who published it, a line of Markdown, for the card of an exported network: authors, title with
            its address, year. "": nobody, as of a control.
    """

    title: str
    model: type[NetworkConfig]
    build: Callable[[Any, Any], nn.Module]
    losses: Callable[[Any, Tensor, Tensor, Any], dict[str, Tensor]]
    loss_names: tuple[str, ...] = ("loss",)
    classifies: bool = True
    routing: type[Section] = NoOptions
    loss: type[Section] = NoOptions
    problems: Callable[[Any], Iterable[Problem]] = lambda config: ()
    multi_label_losses: Callable[[Any, Tensor, Tensor, Any], dict[str, Tensor]] | None = None
    loss_at: Callable[[Any, int, int], Any] | None = None
    cost: Callable[[Any, Any], Cost] | None = None
    activations: bool = False
    has_blocks: bool = False
    source: str = ""


@functools.cache
def find_family(kind: str) -> Family:
    """Return the family that `kind` names.

    Raises:
        ConfigError: it is no built-in name and no import path of a `Family`.
    """
    return find(kind, BUILT_IN, Family, field="model.kind", thing="a family of networks")
