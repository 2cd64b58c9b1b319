"""What ails a network of capsules: layers that are starved, saturated or collapsed, and what to change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from capsdist.algorithms import find_algorithm
from capsdist.analysis.subject import Subject
from capsdist.config import Config
from capsdist.config.models import Routing, find_family
from capsdist.models.health import LIVE_LENGTH, SATURATED_LENGTH, LayerHealth, observed
from capsdist.train.step import losses_of

__all__ = ["Finding", "diagnose", "examine"]

STARVED_PERCENT = 10.0
"""Fewer live capsules than this: nine of ten then hand nothing on, and get next to no gradient, because the
slope of squash goes to 0 with the length."""
SATURATED_PERCENT = 50.0
"""More saturated lengths than this: most capsules then say that everything is present. A share is healthy:
of class capsules that of the right class is to be longer than 0.9 (paper, section 3). Stacks of 4 layers on
the digits of the quickstart err by 30 to 53 % where a routed layer is above this, by 9 to 10 % where none is.
A deeper stack may contradict it: of 6 layers, one with residual blocks errs by 11.8 % with five layers above
this, one with pose normalisation by 39.3 % with none.

Nothing limits the length that a convolution gives primary capsules, and the direction of a long pose still
learns: digits_deep errs by 3.2 % with most of them above 0.95. So a layer without routing is ill only if its
gradient has vanished too, see `STALLED_RATIO`."""
STALLED_RATIO = 1e-3
"""Norm of the gradient over that of the layer where it is largest, of a saturated layer without routing:
below this it learns next to nothing. The weights are left out, unlike in `VANISHING_RATIO`: larger weights
divide the gradient of a saturated layer by as much as they grow, so that the product would not show it, while
an optimizer's steps do not grow with them."""
UNDECIDED_ENTROPY = 0.9999
"""A relative entropy above this is that of a uniform coupling: of 10 parents a child's shares then differ by
2 % of a tenth or less."""
ONE_PARENT_SHARE = 0.9
"""One parent, or type, with more of all children than this leaves nothing to the others."""
VANISHING_RATIO = 1e-3
"""Norm of the gradient times norm of the weights, which is what a relative change of the weights does to the
loss, over that of the layer where it is largest: below this a layer learns next to nothing beside it."""

_REMEDIES = {
    "starved": (
        ("model", "pose_norm", "--model.pose-norm"),
        ("model", "residual", "--model.residual"),
        ("model", "capsule_bias", "--model.capsule-bias"),
        ("routing", "inverse_temperature", "a lower --routing.inverse-temperature"),
        ("loss", "absent_scaling", "--loss.absent-scaling classes (many classes)"),
        ("model", "capsule_types", "fewer layers"),
        ("optim", "learning_rate", "a lower --optim.learning-rate"),
    ),
    "saturated": (
        ("optim", "learning_rate", "a lower --optim.learning-rate"),
        ("optim", "max_grad_norm", "--optim.max-grad-norm 1"),
        ("model", "pose_norm", "--model.pose-norm"),
        ("model", "initialisation", "--model.initialisation default"),
        ("routing", "inverse_temperature", "a lower --routing.inverse-temperature"),
        ("routing", "iterations", "fewer --routing.iterations"),
    ),
    "undecided": (
        ("routing", "iterations", "more --routing.iterations, or 1, which is cheaper and no worse then"),
        ("model", "log_priors", "--model.log-priors"),
        ("routing", "variance_floor", "a lower --routing.variance-floor"),
        ("train", "epochs", "more --train.epochs"),
    ),
    "collapsed": (
        ("model", "capsule_dropout", "--model.capsule-dropout 0.1"),
        ("model", "log_priors", "--model.no-log-priors"),
        ("routing", "variance_floor", "a higher --routing.variance-floor"),
        ("optim", "learning_rate", "a lower --optim.learning-rate"),
        ("routing", "iterations", "fewer --routing.iterations"),
    ),
    "without gradient": (
        ("model", "residual", "--model.residual"),
        ("model", "pose_norm", "--model.pose-norm"),
        ("model", "capsule_types", "fewer layers"),
        ("optim", "learning_rate", "a lower --optim.learning-rate"),
    ),
}
"""By illness: section and field that a configuration must have, and what to try, the likeliest first."""


@dataclass(frozen=True)
class Finding:
    """An illness of a layer, a sentence about it, and what to try, as options of the command line."""

    layer: str
    illness: str
    words: str
    remedies: tuple[str, ...]

    def __str__(self) -> str:
        """Return it as people read it."""
        return f"{self.layer} is {self.illness}: {self.words}. Try {'; '.join(self.remedies)}."


def examine(subject: Subject) -> list[LayerHealth]:
    """Return the health of each capsule layer of a network, by a forward and a backward pass of its images.

    The network is in evaluation mode; its gradients are gone afterwards.
    """
    images, config = subject.images, subject.config
    seen, labels = images.seen, images.labels
    drawn = seen
    if config.model.draws_parts:  # of each label alone, which a split of images does not have
        drawn = seen[:, None].expand(-1, config.model.num_labels, -1, -1, -1)
    losses = losses_of(find_family(config.model.kind), config)
    with observed(subject.network) as found:
        losses(subject.network(seen, labels), drawn, labels)["loss"].mean().backward()
    layers = found.report()
    subject.network.zero_grad()
    return layers


def diagnose(layers: Sequence[LayerHealth], config: Config) -> list[Finding]:
    """Return what ails the layers of a network, in their order; remedies are those that `config` knows.

    A layer above a starved one that is undecided, or without gradient, is not named for it: that follows.
    Neither is a saturated one named as being without gradient.
    """
    learning = [layer for layer in layers if layer.grad_norm is not None]
    steepest = max((layer.grad_norm or 0.0 for layer in learning), default=0.0)
    best = max(map(_effect, learning), default=0.0)
    starved, findings = False, []
    for layer in layers:
        found = list(_found(layer, steepest, best))
        starved |= any(illness == "starved" for illness, _ in found)
        findings += [
            Finding(layer.name, illness, words, _known(illness, layer, config))
            for illness, words in found
            if not starved or illness not in ("undecided", "without gradient")
        ]
    return findings


def _effect(layer: LayerHealth) -> float:
    """Return what a relative change of the weights of a layer does to the loss."""
    return (layer.grad_norm or 0.0) * layer.weight_norm


def _found(layer: LayerHealth, steepest: float, best: float) -> Iterator[tuple[str, str]]:
    """Yield illness and words of one layer; steepest, best: the largest gradient and `_effect` of a layer."""
    gradient, live = layer.grad_norm, layer.live_percent
    if live is not None and live < STARVED_PERCENT:
        yield (
            "starved",
            f"{live:.1f} % of its {layer.num_capsules:,} capsules have a length (activation) "
            f"above {LIVE_LENGTH:g} in any of the images; the mean is {layer.mean_length:.2g}",
        )
    entropy, share = layer.relative_entropy, layer.largest_share
    stalled = gradient is not None and gradient < STALLED_RATIO * steepest
    saturated = (layer.saturated_percent or 0.0) > SATURATED_PERCENT and (stalled or entropy is not None)
    if saturated:
        yield (
            "saturated",
            f"{layer.saturated_percent:.1f} % of its lengths (activations) are above {SATURATED_LENGTH:g}, "
            "where a change of the weights hardly moves them",
        )
    if entropy is not None and layer.num_decisions > 0 and entropy > UNDECIDED_ENTROPY:
        yield "undecided", "every child gives all parents the same share, so that routing decides nothing"
    if share is not None and layer.num_choices > 1 and share > ONE_PARENT_SHARE:
        yield "collapsed", f"{100 * share:.1f} % of all children go to one of {layer.num_choices} parents"
    if gradient is not None and not saturated and _effect(layer) < VANISHING_RATIO * best:
        yield (
            "without gradient",
            f"its gradient has norm {gradient:.2g}; a relative change of its weights (norm "
            f"{layer.weight_norm:.2g}) changes the loss by less than a thousandth of that of another layer",
        )


def _known(illness: str, layer: LayerHealth, config: Config) -> tuple[str, ...]:
    """Return the remedies that a configuration takes, and of those about routing the ones of the layer."""
    unknown = set() if layer.relative_entropy is not None else {"iterations", "inverse_temperature"}
    if isinstance(config.routing, Routing):
        own = network = find_algorithm(config.routing.algorithm).reads
        if getattr(config.model, "capsule_types", ()):  # of layers below, which have dynamic routing
            below = find_algorithm("dynamic").reads
            network = own | below
            own = own if layer.name.partition(".")[0] == "class_capsules" else below
        unknown |= {"capsule_bias", "initialisation"} - network
        unknown |= {"iterations", "log_priors"} - own
    return tuple(
        words
        for section, field, words in _REMEDIES[illness]
        if hasattr(getattr(config, section), field)
        and field not in unknown
        and not _is_set(config, section, field, words)
    )


def _is_set(config: Config, section: str, field: str, words: str) -> bool:
    """Say whether an option is already as the words would have it."""
    value, words = getattr(getattr(config, section), field), words.partition(" (")[0]
    if isinstance(value, bool):
        return words.startswith("--") and value is not words.startswith("--model.no-")
    return words.startswith("--") and words.endswith(
        (f" {value}", f" {value:g}" if isinstance(value, float) else " ")
    )
