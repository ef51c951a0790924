"""What the backends for codes of ±1 share in Python: which dictionaries they serve, and the best codes out of chunks."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..dictionary import Dictionary


def unsupported(dictionary: Dictionary, max_features: int | None = None, max_codes: int | None = None) -> str | None:
    """Why a backend for ±1 codes cannot use those of `dictionary`, or None."""
    if dictionary.kind == "dense" and dictionary.signs is None:
        return "it serves a dense dictionary whose entries are all +1 or -1; this one has others"
    if max_features is not None and dictionary.num_features > max_features:
        return f"it serves up to {max_features} features, got {dictionary.num_features}"
    if max_codes is not None and dictionary.num_codes > max_codes:
        return f"it serves up to 2^{max_codes.bit_length() - 1} codes, got {dictionary.num_codes}"
    return None


def best_of_chunks(
    write_scores: Callable[[torch.Tensor, int], None], n: int, num_codes: int, chunk: int, top_k: int, device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scores, codes) of the `top_k` best codes, each `(n, top_k)`, best first, equal scores by index.

    Args:
        write_scores: fills a float32 `(n, m)` tensor with the scores of m codes from a given one on.
        chunk: codes whose scores are held at a time.
    """
    scores = torch.empty(n, 0, device=device)
    codes = torch.empty(n, 0, dtype=torch.int64, device=device)
    for start in range(0, num_codes, chunk):
        span = min(chunk, num_codes - start)
        part = torch.empty(n, span, device=device)
        write_scores(part, start)
        index = torch.arange(start, start + span, device=device).expand(n, -1)
        scores, codes = torch.cat([scores, part], 1), torch.cat([codes, index], 1)
        # A stable sort: what was found earlier has the lower index and stays ahead among equals.
        best = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :top_k]
        scores, codes = scores.gather(1, best), codes.gather(1, best)
    return scores, codes
