"""What each function of this backend does with a chunk of codes: logits, pass 1, and sums of codes that keep digits.

A BLAS adds the terms of a float32 product in an order of its own, and how much it loses depends on that. What counts
most is therefore not left to it: a row's best logit is formed again in float64, its best code is set aside, and
products over many codes are cut into pieces that are added in float64.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...dictionary import Dictionary

# Elements that the arrays of one chunk may have together; about 16 MiB each in float32.
_CHUNK_ELEMENTS = 1 << 22
# A product adds up so many terms at most in an order of the library's own. Products over codes are made of such pieces
# in float64; logits, of which there are many, in the dtype of the computation.
_PIECE_OF_CODES = 512
_PIECE_OF_FEATURES = 32
# Elsewhere each piece is a launch, which costs more than its arithmetic.
_PIECE_OF_FEATURES_ON_DEVICES = 512


class RowSums:
    """Pass 1: each row's best logit m, its code, and the sum of exp(s - m) over the other codes.

    Kept apart, because `1 + tiny` and one rounded log-sum-exp both cost the digits that count near the optimum.

    Attributes:
        scaled: the rows divided by the temperature.
        code, best_code: the index of each row's best code, `(n,)`, and the code itself, `(n, f)`.
        top: its logit as the product gave it, so that no lead `s - top` exceeds 0.
        best: the same logit formed in float64. Near the optimum all of a row's terms go with its error.
        others: the sum of exp(s - best) over the other codes, in float64.
    """

    def __init__(self, scaled: Tensor, dictionary: Dictionary, rows: int | None = None) -> None:
        self.scaled = scaled
        self.top = scaled.new_full((scaled.shape[0],), -math.inf)
        self.code = torch.zeros_like(self.top, dtype=torch.int64)
        self.best_code = torch.zeros_like(scaled)
        others = torch.zeros_like(self.top, dtype=precise(scaled.device))
        for start, _, codes in chunks(scaled, dictionary, rows):
            s = logits(scaled, codes)
            value, index = s.max(1)
            moved = value > self.top
            top = torch.where(moved, value, self.top)
            share = (s - top[:, None]).exp_()
            column = index[:, None]
            share.scatter_(1, column, share.gather(1, column).masked_fill(moved[:, None], 0))
            before = torch.where(moved, (others + 1) * (self.top - top).to(others).exp(), others)
            others = before + share.sum(1)
            self.code = torch.where(moved, index + start, self.code)
            self.best_code = torch.where(moved[:, None], codes[:, index].T, self.best_code)
            self.top = top
        exact_best = (scaled.to(others) * self.best_code.to(others)).sum(1)
        # Where even 1 is less than a unit of the product's logits nothing can be mended; the results stay finite.
        error = (self.top.to(others) - exact_best).clamp(-1, 1)
        self.best, self.others = self.top.to(others) - error, others * error.exp()


class Assignments:
    """Pass 2: probabilities by chunks of codes, from the sums of pass 1 over all codes.

    Args:
        parts: the rows divided by the temperature, in the parts of pass 1: a product of another shape may round another
            way.
        top, best, others: as in `RowSums`, over all codes.
        code: the index of each row's best code, -1 where it is not among these codes.
    """

    def __init__(self, parts: Sequence[Tensor], top: Tensor, best: Tensor, others: Tensor, code: Tensor) -> None:
        self._parts, self._top, self.code = parts, top, code
        # log p of the best code, and p itself.
        self.best_log_p = -others.log1p()
        self.best_p = 1 / (1 + others)
        error = (top.to(best) - best).clamp(-1, 1)
        self._best_lead = -error.to(top)
        self._log_scale = error + self.best_log_p
        self._scale = self._log_scale.exp().to(top)[:, None]

    def lead(self, start: int, stop: int, codes: Tensor) -> Tensor:
        """`s - top` of the codes from `start` to `stop`; exact for a row's best code."""
        parts = [logits(part, codes) for part in self._parts]
        lead = (parts[0] if len(parts) == 1 else torch.cat(parts)).sub_(self._top[:, None])
        here, column = self.place(start, stop)
        return lead.scatter_(1, column, torch.where(here, self._best_lead, lead.gather(1, column)[:, 0])[:, None])

    def log(self, lead: Tensor, shift: float = 0.0) -> Tensor:
        """`log p + shift`: with the logarithm of the number of codes, small where p is near uniform."""
        return lead + (self._log_scale + shift).to(lead)[:, None]

    def probabilities(self, lead: Tensor) -> Tensor:
        """p, in the place of `lead`."""
        return lead.exp_().mul_(self._scale)

    def place(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(which rows have their best code among these, its column in the chunk or any, `(n, 1)`)."""
        here = (self.code >= start) & (self.code < stop)
        return here, (self.code - start).clamp(0, stop - start - 1)[:, None]

    def set_aside(self, start: int, stop: int, weights: Tensor, at_best: Tensor) -> Tensor:
        """Zero the weights of best codes in this chunk; `at_best` with these weights in their places, in its dtype."""
        here, column = self.place(start, stop)
        found = weights.gather(1, column)[:, 0]
        weights.scatter_(1, column, found.masked_fill(here, 0)[:, None])
        return torch.where(here, found.to(at_best), at_best)


def logits(scaled: Tensor, codes: Tensor) -> Tensor:
    """`s = scaled @ codes`, piece by piece of the features.

    Added up in one go, f terms cost up to f roundings of the size of the sum; so it is f / piece of that size, and
    f of the size that a piece's sum has.
    """
    piece = _PIECE_OF_FEATURES if scaled.device.type == "cpu" else _PIECE_OF_FEATURES_ON_DEVICES
    first, *others = zip(scaled.split(piece, 1), codes.split(piece), strict=True)
    s = first[0] @ first[1]
    for part, code in others:
        s.addmm_(part, code)
    return s


def add_products(total: Tensor, weights: Tensor, codes: Tensor) -> None:
    """Add `sum_j weights_ij w_j` over the chunk's codes to `total`, `(n, f)` in float64."""
    for weight, code in zip(weights.split(_PIECE_OF_CODES, 1), codes.split(_PIECE_OF_CODES, 1), strict=True):
        total += weight @ code.T


def chunks(scaled: Tensor, dictionary: Dictionary, rows: int | None = None) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (start, stop, codes) over all codes; chunks are powers of two, so they cut no Hadamard block askew.

    `rows`: how many rows meet a chunk, if others than those of `scaled`.
    """
    size = max(256, _CHUNK_ELEMENTS // ((rows or scaled.shape[0]) + dictionary.num_features))
    size = 1 << (size.bit_length() - 1)
    for start in range(0, dictionary.num_codes, size):
        stop = min(start + size, dictionary.num_codes)
        yield start, stop, dictionary.to_dense(start, stop, dtype=scaled.dtype, device=scaled.device)


def scaled_rows(h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    """`h / temperature` in the dtype of the computation: float64 where float32 would not reach the tolerances.

    * float64 inputs;
    * few features: many codes are equal and share a row's mass, so that gradients are small differences of large
      sums; products over so few features cost next to nothing;
    * logits that can exceed 60 in size: a float32 product of 300 is off by 1e-5 and more. Looking at the values would
      make a GPU wait, so this is done on the CPU alone; elsewhere the error at such logits is up to 5e-5.
    """
    wide = h.dtype == torch.float64 or (h.shape[1] <= 16 and h.device.type != "mps")
    if not wide and h.device.type == "cpu":
        code_norm = h.shape[1] ** 0.5 if dictionary.weight is None else dictionary.weight.norm(dim=0).max().item()
        wide = h.norm(dim=1, dtype=torch.float32).max().item() * code_norm / temperature > 60
    return h.to(torch.float64 if wide else torch.float32) / temperature


def precise(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


@contextlib.contextmanager
def exact(h: Tensor) -> Iterator[None]:
    """No autograd and no autocast: the products below must keep the precision that the caller was promised."""
    with torch.no_grad(), torch.autocast(h.device.type, enabled=False):
        yield
