"""What several backends make in the same way of what they compute: a loss's terms, rows of NaN, the best of codes."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch


def loss_terms(
    scalars: torch.Tensor, prior_sum: torch.Tensor, total_codes: int, beta: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, invariance, prior) from what `Shard.code_sums` gives for all codes."""
    invariance, prior = math.log(total_codes) - scalars[0].mean(), prior_sum / 2
    return (prior + beta * invariance).to(dtype), invariance.to(dtype), prior.to(dtype)


def no_gradients(h: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """What stands for the gradients of a loss where none is needed."""
    return h.new_empty(0, dtype=dtype), h.new_empty(0, dtype=dtype)


def with_nan_rows(result: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """`result`, NaN in the rows in which `h` holds a NaN or an infinity: kernels promise nothing for these."""
    finite = torch.isfinite(h).all(dim=1)
    # On a GPU, looking would wait for the device.
    if result.device.type == "cpu" and bool(finite.all()):
        return result
    return result.masked_fill_(~finite.view(-1, *[1] * (result.dim() - 1)), torch.nan)


def best_of(scores: torch.Tensor, codes: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(scores, codes) of the `top_k` best of each row, best first, equal scores as they stand."""
    best = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :top_k]
    return scores.gather(1, best), codes.gather(1, best)


def best_of_chunks(chunks: Iterable[tuple[int, torch.Tensor]], top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`best_of` all codes, equal scores by index, from chunks of them in order: (first code, scores `(n, chunk)`)."""
    scores = codes = torch.empty(0)
    for start, part in chunks:
        index = torch.arange(start, start + part.shape[1], device=part.device).expand(part.shape[0], -1)
        # What was found earlier has the lower index and stays ahead among equals.
        if start > 0:
            part, index = torch.cat([scores, part], 1), torch.cat([codes, index], 1)
        scores, codes = best_of(part, index, top_k)
    return scores, codes
