"""Dynamic routing between grids as it is written, votes and all: the reference, never optimised.

Shape letters: B images, N child positions, T child types, P parent positions, K places of a field, J parent
types, D child dimension, E parent dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from capsdist.ops import squash
from capsdist.routing.common.sharing import share
from capsdist.routing.dynamic.fields.call import FieldCall

__all__ = ["route_fields_reference"]


def route_fields_reference(call: FieldCall) -> Tensor:
    """Return the parent poses [B, P, J, E], by Procedure 1 of the paper, in the dtype of the arguments.

    Arguments: as `route_fields`. Cost: autograd keeps the votes, B K P T J E numbers, several times over.
    """
    options = call.options
    seen = functional.pad(call.child_poses, (0, 0, 0, 0, 0, 1))[:, call.fields.children]  # [B, K, P, T, D]
    votes = torch.einsum("bkptd,jedtk->bkptje", seen, call.unpacked)
    logits = votes.new_zeros(votes.shape[:-1])
    if call.log_priors is not None:
        logits = logits + call.log_priors.unflatten(0, (-1, call.fields.size)).transpose(0, 1)[:, None]
    parent_poses = None
    for _ in range(options.iterations):
        if parent_poses is not None:
            agreement = torch.einsum("bkptje,bpje->bkptj", votes, parent_poses)
            logits = logits + (agreement.detach() if options.gradient == "last" else agreement)
        coupling = share(logits, call.fields, call.competition, none_of_the_above=options.none_of_the_above)
        totals = torch.einsum("bkptj,bkptje->bpje", coupling, votes)
        parent_poses = squash(totals if call.bias is None else totals + call.bias)
    assert parent_poses is not None  # there is an iteration
    return parent_poses
