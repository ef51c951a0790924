"""Checks of what a caller hands in: one sentence per error, naming what was given and what was expected."""

from __future__ import annotations

import math

import torch

from .dictionary import Dictionary
from .options import BACKENDS, DTYPES, EMBEDDINGS, PRIORS, ROWS


def check_embeddings(name: str, h: torch.Tensor, dictionary: Dictionary) -> None:
    """Raise unless `h` is a non-empty floating-point `(n, num_features)` tensor on the dictionary's device."""
    if not isinstance(dictionary, Dictionary):
        raise TypeError(f"dictionary: expected a Dictionary of this library, got {type(dictionary).__name__}")
    if not isinstance(h, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor of shape (n, {dictionary.num_features}), got {type(h).__name__}")
    if h.dtype not in DTYPES:
        raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, got {h.dtype}")
    if h.dim() != 2 or h.shape[1] != dictionary.num_features:
        raise ValueError(
            f"{name}: expected shape (n, {dictionary.num_features}) to fit the dictionary, got {tuple(h.shape)}"
        )
    if h.shape[0] == 0:
        raise ValueError(f"{name}: expected at least one row, got an empty batch of shape {tuple(h.shape)}")
    if dictionary.weight is not None and dictionary.weight.device != h.device:
        raise ValueError(
            f"{name} is on {h.device} but the dictionary's weight is on {dictionary.weight.device}: "
            "expected one device (see dictionary.to)"
        )


def check_pair(h1: torch.Tensor, h2: torch.Tensor) -> None:
    """Raise unless both views have the same shape, dtype and device."""
    for what in ("shape", "dtype", "device"):
        first, second = getattr(h1, what), getattr(h2, what)
        if first != second:
            if what == "shape":
                first, second = tuple(first), tuple(second)
            raise ValueError(f"h1 and h2: expected the same {what}, got {first} and {second}")


def check_temperature(temperature: float) -> float:
    """The temperature as a float; raise unless it is a positive finite number."""
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
        raise TypeError(f"temperature: expected a number, got {type(temperature).__name__}")
    if not 0 < temperature < math.inf:  # no math.isfinite: the compiler cannot trace it on a symbolic float
        raise ValueError(f"temperature: expected a positive finite number, got {temperature}")
    return float(temperature)


def check_beta(beta: float) -> float:
    """The weight of the invariance term as a float; raise unless it is a finite number >= 0."""
    if isinstance(beta, bool) or not isinstance(beta, (int, float)):
        raise TypeError(f"beta: expected a number, got {type(beta).__name__}")
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta: expected a finite number >= 0, got {beta}")
    return float(beta)


def check_prior(prior: str, prior_probs: torch.Tensor | None, num_codes: int) -> None:
    """Raise unless the prior's name is known and `prior_probs`, if any, is a float tensor of shape `(num_codes,)`."""
    if prior not in PRIORS:
        raise ValueError(f"prior: expected one of {PRIORS}, got {prior!r}")
    if prior_probs is None:
        return
    if not isinstance(prior_probs, torch.Tensor) or prior_probs.dtype not in DTYPES:
        got = prior_probs.dtype if isinstance(prior_probs, torch.Tensor) else type(prior_probs).__name__
        raise TypeError(f"prior_probs: expected a floating-point tensor of shape ({num_codes},), got {got}")
    if tuple(prior_probs.shape) != (num_codes,):
        raise ValueError(f"prior_probs: expected shape ({num_codes},), got {tuple(prior_probs.shape)}")


def check_prior_values(prior: str, prior_probs: torch.Tensor) -> None:
    """Raise unless `prior_probs` is a distribution, and positive everywhere under reverse_kl. Reads the values."""
    smallest = float(prior_probs.min())
    if not smallest >= 0:
        raise ValueError(f"prior_probs: expected probabilities >= 0, got a smallest value of {smallest}")
    if prior == "reverse_kl" and smallest == 0:
        raise ValueError("prior_probs: reverse_kl needs q_j > 0 for every code, got a zero (cross_entropy allows it)")
    total = float(prior_probs.sum(dtype=torch.float64))
    # Half precision can miss 1 by its rounding of every entry; anything further off is not a distribution.
    tolerance = 1e-2 if prior_probs.dtype in (torch.float16, torch.bfloat16) else 1e-4
    if not abs(total - 1) <= tolerance:
        raise ValueError(f"prior_probs: expected a sum of 1, got {total}")


def check_top_k(top_k: int, num_codes: int) -> None:
    """Raise unless 1 <= top_k <= num_codes."""
    if isinstance(top_k, bool) or not isinstance(top_k, int):
        raise TypeError(f"top_k: expected an integer, got {top_k!r}")
    if not 1 <= top_k <= num_codes:
        raise ValueError(f"top_k: expected 1 <= top_k <= {num_codes} (num_codes), got {top_k}")


def check_embedding(embedding: str) -> None:
    """Raise unless the embedding's name is known."""
    if embedding not in EMBEDDINGS:
        raise ValueError(f"embedding: expected one of {EMBEDDINGS}, got {embedding!r}")


def check_backend(backend: str | None) -> None:
    """Raise unless `backend` is None or the name of one."""
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend: expected None or one of {BACKENDS}, got {backend!r}")


def check_rows(rows: str) -> None:
    """Raise unless `rows` names how a batch lies on the ranks."""
    if rows not in ROWS:
        raise ValueError(f"rows: expected one of {ROWS}, got {rows!r}")
