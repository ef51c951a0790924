"""The functions over many processes: rows are gathered, codes sharded over the ranks, sums combined (in progress)."""

from __future__ import annotations

import torch

from .dictionary import CodeRange, Dictionary


def code_ranges(dictionary: Dictionary, world: int) -> list[CodeRange | None]:
    """The codes cut into contiguous ranges of whole blocks, one per rank, as equal as blocks allow; None: no codes."""
    blocks = -(-dictionary.num_codes // dictionary.block_size)
    edges = [min(rank * blocks // world * dictionary.block_size, dictionary.num_codes) for rank in range(world + 1)]
    return [CodeRange(dictionary, a, b) if a < b else None for a, b in zip(edges, edges[1:], strict=False)]


def merge_row_sums(best: torch.Tensor, others: torch.Tensor, rank: int, unit: float):
    """`(best, others, mine)` of all codes from every rank's `(world, rows)` values: what the collectives compute."""
    top = best.max(0)
    owner = (best == top.values).to(torch.int8).argmax(0)  # the first of equals
    scale = ((best - top.values) * unit).exp()
    is_owner = torch.arange(best.shape[0], device=best.device)[:, None] == owner
    total = (others * scale + torch.where(is_owner, torch.zeros_like(scale), scale)).sum(0)
    return top.values, total, owner == rank
