"""Class capsules that cannot be split over ranks without losing something are refused."""

from __future__ import annotations

from torch import nn

from capsdist.errors import ShapeError
from capsdist.models.layers import ClassCapsules
from capsdist.routing.dynamic.parallel import check_splits

__all__ = ["check_plain", "check_splittable", "check_unshared"]

PARAMETERS = ("packed_weights", "bias", "log_priors")


def check_splittable(network: nn.Module, num_ranks: int) -> None:
    """Check that `parallelize` can split `network` over `num_ranks` ranks, which need not be there yet.

    Raises:
        ShapeError, ValueError: as `parallelize`.
    """
    wholes = [each for each in network.modules() if isinstance(each, ClassCapsules)]
    if not wholes:
        raise ValueError(f"{type(network).__name__} has no ClassCapsules to split; pass a network with some")
    for whole in wholes:
        check_plain(whole)
        if whole.num_children < num_ranks:
            raise ShapeError(
                f"{whole.num_children} children cannot be split over {num_ranks} ranks; use at most "
                f"{whole.num_children}"
            )
    check_unshared(network)


def check_plain(layer: ClassCapsules) -> None:
    """Raise ShapeError unless a new layer of the same options and values does what `layer` does."""
    check_splits(layer.routing)
    if type(layer) is not ClassCapsules:
        raise ShapeError(
            f"{type(layer).__name__} cannot be split over ranks, which compute as ClassCapsules; use that "
            "itself, and parametrize it afterwards"
        )
    if extras := _extras(layer):
        raise ShapeError(
            f"class capsules with {', '.join(extras)} cannot be split over ranks without losing that; "
            "add it afterwards"
        )


def check_unshared(network: nn.Module) -> None:
    """Raise ShapeError if class capsules hold a parameter that has another place too.

    A whole layer in several places is no such case.
    """
    places: dict[nn.Parameter, tuple[str, nn.Module]] = {}
    for prefix, module in network.named_modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            place = f"{prefix}.{name}"
            other, owner = places.setdefault(parameter, (place, module))
            if place != other and (isinstance(module, ClassCapsules) or isinstance(owner, ClassCapsules)):
                raise ShapeError(
                    f"{other!r} and {place!r} are one parameter, which cannot be split over ranks; "
                    "share whole layers, or give each its own"
                )


def _extras(layer: ClassCapsules) -> list[str]:
    """Return the names of what others have added to `layer`."""
    added = [*layer._parameters, *layer._buffers, *layer._modules, *(vars(layer).keys() & {"forward"})]
    hooks = [name for name, held in vars(layer).items() if name.endswith("_hooks") and held]
    of_parameters = [
        f"{name}.{kind}"
        for name, parameter in layer.named_parameters()
        for kind in ("_backward_hooks", "_post_accumulate_grad_hooks")
        if getattr(parameter, kind)
    ]
    return [*(name for name in added if name not in PARAMETERS), *hooks, *of_parameters]
