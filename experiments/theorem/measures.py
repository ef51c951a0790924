"""How far unit rows are from what lemma and theorem say of the optimum."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import cplearn_kernels as cpk
from experiments.theorem.optimum import unit

CODES_AT_ONCE, ROWS_AT_ONCE = 1 << 15, 1024


def measure(h: Tensor, dictionary: cpk.Dictionary, temperature: float) -> dict:
    """Compare unit rows `(n, f)` with what lemma and theorem say of the optimum; every value a plain number or None."""
    n, c, f = h.shape[0], dictionary.num_codes, dictionary.num_features
    own = cpk.assign(h, dictionary, backend="cpu")[1][:, 0]
    uses = torch.bincount(own, minlength=c)
    codes = torch.empty(n, f)
    frame = torch.zeros(f, f, dtype=torch.float64)
    for start in range(0, c, CODES_AT_ONCE):
        part = dictionary.to_dense(start, min(c, start + CODES_AT_ONCE))
        here = (own >= start) & (own < start + CODES_AT_ONCE)
        codes[here] = unit(part.T[own[here] - start])
        frame += (part @ part.T).double()
    others, competitor = _competitors(h, own, codes, dictionary, temperature)
    others_at_code, _ = _competitors(codes, own, codes, dictionary, temperature)
    floor = math.log(c / min(n, c))
    loss, terms = cpk.cplearn_loss(h, h, dictionary, temperature=temperature, return_terms=True, backend="cpu")
    at_codes = cpk.cplearn_loss(codes, codes, dictionary, temperature=temperature, backend="cpu")
    within, between = block_cosines(h, own)
    return {
        "floor": floor, "loss_above_floor": loss.item() - floor, "loss_above_floor_on_codes": at_codes.item() - floor,
        "prior": terms["prior"].item(), "prior_floor": math.log(c / n) if n < c else 0.0,
        "max_p_mean": (1 / (1 + others)).mean().item(), "max_p_min": (1 / (1 + others)).min().item(),
        "max_p_on_codes": (1 / (1 + others_at_code)).mean().item(),
        "max_p_predicted": predicted_max_p(dictionary, temperature),
        "cosine_own_code": (h * codes).sum(1).mean().item(),
        "cosine_code_less_competitors": (h * unit(codes - competitor)).sum(1).mean().item(),
        "codes_used": int((uses > 0).sum()), "fewest_rows": int(uses.min()), "most_rows": int(uses.max()),
        "codes_with_even_use": int(((uses == n // c) | (uses == -(-n // c))).sum()) if n >= c else None,
        "deviation": deviation(h), "deviation_of_codes": deviation(codes),
        "deviation_of_dictionary": ((frame / c - torch.eye(f)).norm() / math.sqrt(f)).item(),
        "deviation_expected": math.sqrt(f / min(n, c)),
        "cosine_within": within, "cosine_between": between,
    }  # fmt: skip


def deviation(h: Tensor) -> float:
    """‖(f/n) HᵀH − I‖_F / sqrt(f) of unit rows `(n, f)`: 0 for a tight frame, sqrt(f − 1) when all rows are one."""
    n, f = h.shape
    product = h.double().T @ h.double() * (f / n)
    return ((product - torch.eye(f)).norm() / math.sqrt(f)).item()


def block_cosines(h: Tensor, own: Tensor) -> tuple[float | None, float | None]:
    """Mean |cos| of pairs of different rows of unit `h` of the same code, and of different codes; None without pairs.

    HHᵀ sorted by code is block-diagonal where the first is 1 and the second 0.
    """
    n = len(h)
    total = inside = 0.0
    for start in range(0, n, ROWS_AT_ONCE):
        part = (h[start : start + ROWS_AT_ONCE] @ h.T).abs().double()
        total += part.sum().item()
        inside += part[own[start : start + ROWS_AT_ONCE, None] == own].sum().item()
    of_themselves = (h * h).sum().item()
    same = int((torch.bincount(own).double() ** 2).sum()) - n
    different = n * n - n - same
    return ((inside - of_themselves) / same if same else None, (total - inside) / different if different else None)


def predicted_max_p(dictionary: cpk.Dictionary, temperature: float) -> float:
    """max p of a row that sits on a code, from the geometry of the dictionary alone.

    With `L = sqrt(f)/temperature` the own logit, a code of independent signs adds `exp(L cos)`, of mean cosh(L/f)^f,
    and an orthogonal one (the rest of a Hadamard block, when f is a power of two) exactly 1.
    """
    f, c = dictionary.num_features, dictionary.num_codes
    own = math.sqrt(f) / temperature
    whole = isinstance(dictionary, cpk.HadamardDictionary) and f & (f - 1) == 0
    orthogonal = min(f, c) - 1 if whole else 0
    # cosh^f overflows at low temperatures.
    log_mean = f * (own / f + math.log1p(math.exp(-2 * own / f)) - math.log(2)) - own
    return 1 / (1 + orthogonal * math.exp(-own) + (c - 1 - orthogonal) * math.exp(log_mean))


def _competitors(h: Tensor, own: Tensor, codes: Tensor, dictionary, temperature: float) -> tuple[Tensor, Tensor]:
    """Mass of all codes but the own, in units of the own's, `(n,)`, and their mean, unit codes weighted by p, `(n, f)`.

    In float64 and without the own code's term: near the optimum 1 − p is far below what float32 can take from 1.
    """
    n, f = h.shape
    root = math.sqrt(f)
    logit = (h.double() * codes.double()).sum(1) * (root / temperature)
    mass, mean = torch.zeros(n, dtype=torch.float64), torch.zeros(n, f, dtype=torch.float64)
    for start in range(0, dictionary.num_codes, CODES_AT_ONCE):
        part = dictionary.to_dense(start, min(dictionary.num_codes, start + CODES_AT_ONCE), dtype=torch.float64)
        for first in range(0, n, ROWS_AT_ONCE):
            rows = slice(first, first + ROWS_AT_ONCE)
            weight = torch.exp(h[rows].double() @ part / temperature - logit[rows, None])
            here = ((own[rows] >= start) & (own[rows] < start + part.shape[1])).nonzero()[:, 0]
            weight[here, own[rows][here] - start] = 0
            mass[rows] += weight.sum(1)
            mean[rows] += weight @ part.T / root
    return mass, (mean / mass.clamp_min(torch.finfo(torch.float64).tiny)[:, None]).float()
