"""The steps of a sharded loss, range after range in one process: what `distributed` does over ranks, without ranks."""

from __future__ import annotations

import math

import torch

from cplearn_kernels.distributed.loss import merge_row_sums
from cplearn_kernels.distributed.ranges import code_ranges


def loss_by_shards(
    module, h1, h2, dictionary, world, *, temperature, beta=1.0, prior="reverse_kl", prior_probs=None, need_grad=True
):
    """(loss, invariance, prior, grad1, grad2) as the backend's `cplearn_loss` gives them, from `world` ranges."""
    ranges = [codes for codes in code_ranges(dictionary, world) if codes is not None]
    shards = _with_row_sums(module, ranges, [h1, h2], temperature)
    parts = [
        shard.code_sums(beta, prior, None if prior_probs is None else _slice(prior_probs, codes), need_grad)
        for shard, codes in zip(shards, ranges, strict=True)
    ]
    scalars = torch.stack([part[0] for part in parts]).sum(0)
    invariance = math.log(dictionary.num_codes) - scalars[0].mean()
    prior_value = torch.stack([part[1] for part in parts]).sum() / 2
    loss = prior_value + beta * invariance
    if not need_grad:
        return loss, invariance, prior_value, None, None
    grad = torch.stack([shard.gradients(scalars).double() for shard in shards]).sum(0)
    return loss, invariance, prior_value, *grad.chunk(2)


def mean_assignment_by_shards(module, h, dictionary, world, *, temperature):
    """`(c,)`, range after range."""
    ranges = [codes for codes in code_ranges(dictionary, world) if codes is not None]
    shards = _with_row_sums(module, ranges, [h], temperature)
    return torch.cat([shard.mean_assignment() for shard in shards])


def _with_row_sums(module, ranges, views, temperature):
    shards = [module.Shard(codes, temperature, len(views)) for codes in ranges]
    found = [[shard.row_sums(view, h) for view, h in enumerate(views)] for shard in shards]
    best, others = (
        torch.stack([torch.cat([view[part] for view in of_shard]) for of_shard in found]) for part in (0, 1)
    )
    assert best.dtype == others.dtype == torch.float64
    for rank, shard in enumerate(shards):
        shard.combine(*merge_row_sums(best, others, rank, module.Shard.LOG_UNIT))
    return shards


def _slice(prior_probs, codes):
    return prior_probs[codes.first_code : codes.first_code + codes.num_codes]
