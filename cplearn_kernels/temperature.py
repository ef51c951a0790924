"""The default temperature: the one at which a perfectly aligned embedding puts mass 1 - eps (c - 1) on its code."""

from __future__ import annotations

import math

from .options import Embedding
from .validation import check_embedding


def default_temperature(
    num_features: int,
    num_codes: int,
    *,
    embedding: Embedding = "l2",
    batch_size: int | None = None,
    eps: float | None = None,
) -> float:
    """Temperature of the CPLearn loss for an embedding.

    With `L = log((1 - eps (c - 1)) / eps)`, the lead of an embedding's own logit at the optimum:

    * "l2" (the paper: unit rows): `sqrt(f) / L`; logits are `L cos(h, w)`, whatever the batch size;
    * "tanh" (the authors' code): `f / (sqrt(n) L)` with n the global batch size; logits reach `sqrt(n) L`.

    Args:
        num_features: f >= 1.
        num_codes: c >= 1.
        embedding: "l2" or "tanh".
        batch_size: the global number of images in a training batch; needed by "tanh" alone.
        eps: the mass that each other code keeps, with `eps * c < 1`. Default: `min(1e-8, 1 / (100 c))`.

    Returns:
        A positive float.

    Raises:
        ValueError: an unknown embedding, a size below 1, "tanh" without batch_size, or eps outside (0, 1/c).

    Source: Sansone, Lebailly, Tuytelaars (ICML 2025); the authors' implementation for "tanh".

    Example:
        >>> round(default_temperature(128, 16384), 4)
        0.6142
    """
    check_embedding(embedding)
    for name, value in (("num_features", num_features), ("num_codes", num_codes)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if eps is None:
        eps = min(1e-8, 1 / (100 * num_codes))
    if not (eps > 0 and eps * num_codes < 1):
        raise ValueError(f"eps: expected 0 < eps and eps * num_codes < 1, got eps={eps} with num_codes={num_codes}")
    lead = math.log((1 - eps * (num_codes - 1)) / eps)
    if embedding == "l2":
        return math.sqrt(num_features) / lead
    if batch_size is None or batch_size < 1:
        raise ValueError(f"batch_size: the tanh embedding needs the global batch size (at least 1), got {batch_size}")
    return num_features / (math.sqrt(batch_size) * lead)
