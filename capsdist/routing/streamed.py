"""Routing by agreement without votes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from capsdist.ops import squash, squash_backward

__all__ = ["route_streamed"]

_CHUNK = 16


def route_streamed(child_poses: Tensor, packed_weights: Tensor, iterations: int = 3, *,
                   bias: Tensor | None = None, none_of_the_above: bool = False) -> Tensor:
    """First version: chunked over the batch."""
    return _Route.apply(child_poses, packed_weights, bias, iterations, none_of_the_above)


def _coupling(logits: Tensor, none: bool) -> Tensor:
    if none:
        return torch.cat((logits, torch.zeros_like(logits[:1]))).softmax(0)[:-1]
    return logits.softmax(0)


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(ctx, child_poses, packed_weights, bias, iterations, none):
        dtype = torch.float64 if child_poses.dtype == torch.float64 else torch.float32
        num_parents, dim_parent, dim_child, num_children = packed_weights.shape
        with torch.autocast(child_poses.device.type, enabled=False):
            poses = child_poses.to(dtype).transpose(1, 2).contiguous()
            w = packed_weights.to(dtype).flatten(2)
            batch = len(poses)
            totals = poses.new_empty(iterations, num_parents, batch, dim_parent)
            first = poses.flatten(1) @ w.flatten(0, 1).T
            totals[0] = first.view(batch, num_parents, dim_parent).transpose(0, 1) / (num_parents + none)
            b = 0 if bias is None else bias.to(dtype)[:, None]
            totals[0] += b
            for start in range(0, batch, _CHUNK):
                u = poses[start:start + _CHUNK]
                v = 0
                for t in range(1, iterations):
                    v = v + squash(totals[t - 1, :, start:start + _CHUNK])
                    g = (v @ w).view(num_parents, -1, dim_child, num_children)
                    c = _coupling((g * u).sum(2), none)
                    totals[t, :, start:start + _CHUNK] = (c[:, :, None] * u).flatten(2) @ w.mT + b
            out = squash(totals[-1]).transpose(0, 1).to(child_poses.dtype)
        ctx.save_for_backward(child_poses, packed_weights, totals)
        ctx.none, ctx.bias_dtype = none, None if bias is None else bias.dtype
        return out.contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        child_poses, packed_weights, totals = ctx.saved_tensors
        dtype, none = totals.dtype, ctx.none
        num_parents, dim_parent, dim_child, num_children = packed_weights.shape
        with torch.autocast(child_poses.device.type, enabled=False):
            poses = child_poses.to(dtype).transpose(1, 2).contiguous()
            w = packed_weights.to(dtype).flatten(2)
            grad = grad.to(dtype).transpose(0, 1)
            d_poses, d_w = torch.zeros_like(poses), torch.zeros_like(w)
            d_totals = torch.zeros_like(totals)
            for start in range(0, len(poses), _CHUNK):
                chunk = slice(start, start + _CHUNK)
                u = poses[chunk]
                states = squash(totals[:-1, :, chunk]).cumsum(0)
                d_state = 0
                for t in reversed(range(len(totals))):
                    dv = d_state + grad[:, chunk] if t == len(totals) - 1 else d_state
                    ds = d_totals[t, :, chunk] = squash_backward(totals[t, :, chunk], dv)
                    if t == 0:
                        break
                    v = states[t - 1]
                    g = (v @ w).view(num_parents, -1, dim_child, num_children)
                    h = (ds @ w).view(num_parents, -1, dim_child, num_children)
                    c = _coupling((g * u).sum(2), none)
                    dc = (h * u).sum(2)
                    db = c * (dc - (c * dc).sum(0))
                    d_poses[chunk] += (c[:, :, None] * h + db[:, :, None] * g).sum(0)
                    cu, dbu = (c[:, :, None] * u).flatten(2), (db[:, :, None] * u).flatten(2)
                    d_w += ds.mT @ cu + v.mT @ dbu
                    d_state = d_state + dbu @ w.mT
            share = 1 / (num_parents + none)
            ds = d_totals[0].transpose(0, 1).flatten(1) * share
            d_poses += (ds @ w.flatten(0, 1)).view_as(d_poses)
            d_w += (ds.T @ poses.flatten(1)).view_as(d_w)
            d_bias = None if ctx.bias_dtype is None else d_totals.sum((0, 2)).to(ctx.bias_dtype)
        return (d_poses.transpose(1, 2).to(child_poses.dtype),
                d_w.view_as(packed_weights).to(packed_weights.dtype), d_bias, None, None)
