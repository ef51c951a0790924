"""Free embeddings, optimised under the loss: the settings of a point, the problem that it poses, and its optimum.

No network: both views are the same unit rows H of a parameter, so that nothing but the loss decides where they go. What
is compared, and why the numbers differ where they do: docs/embedding-theorem.md.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

import cplearn_kernels as cpk
from train.errors import InputError

DICTIONARIES = {"hadamard": cpk.HadamardDictionary, "rademacher": cpk.RademacherDictionary}
FIRST_BETA, ANNEALED = 1e-3, 0.5
"""beta grows geometrically from the first value to 1 over the first ANNEALED part of the steps. Rows are shared out
among the codes while beta is small; with beta = 1 from the start they stay where they fell, some codes with twice as
many as others."""
LEARNING_RATE = 0.1


@dataclass(frozen=True)
class Settings:
    """What the points of one results file have in common."""

    num_features: int = 64
    """f, the length of a row."""
    eps: float | None = None
    """Of the default temperature (None: min(1e-8, 1/(100 c)))."""
    num_rows: int | None = None
    """n of every point (None: 4 c as long as that is affordable, at least 256)."""
    steps: int | None = None
    """Of every point (None: 60 to 600, by the cost of one)."""
    seconds_per_point: float = 300.0
    """Beyond it a point's schedule is cut short, which its "steps" shows."""
    seed: int = 0
    """Seed of codes and first rows."""


def affordable_rows(num_codes: int) -> int:
    """Four rows per code while that is cheap, then fewer; below one per code from 2^14 codes on."""
    return min(4 * num_codes, 8192, max(256, (1 << 26) // num_codes))


def affordable_steps(num_rows: int, num_codes: int) -> int:
    """600, or as many as 6e9 logits allow, but no fewer than 60."""
    return min(600, max(60, int(6e9) // (num_rows * num_codes)))


def optimise(settings: Settings, kind: str, num_codes: int, say=lambda text: None) -> tuple[Tensor, dict]:
    """Minimise the loss over free embeddings.

    Returns:
        (unit rows H, float32 `(n, f)`; {"steps": done, "seconds": taken}).
    """
    dictionary, temperature = problem(settings, kind, num_codes)
    num_rows = settings.num_rows or affordable_rows(num_codes)
    steps = settings.steps or affordable_steps(num_rows, num_codes)
    generator = torch.Generator().manual_seed(settings.seed)
    rows = unit(torch.randn(num_rows, settings.num_features, generator=generator)).requires_grad_()
    # Gradients fall by orders of magnitude as rows saturate, far below Adam's usual eps = 1e-8: that, or a longer
    # memory of their squares (0.99), would stop the rows short of the optimum.
    optimiser = torch.optim.Adam([rows], betas=(0.9, 0.9), eps=1e-20)
    start = last = time.monotonic()
    done, progress = 0, 0.0
    while progress < 1:
        beta = FIRST_BETA ** max(0.0, 1 - progress / ANNEALED)
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (1 - progress) / (1 - ANNEALED))
        optimiser.zero_grad()
        h = unit(rows)
        cpk.cplearn_loss(h, h, dictionary, temperature=temperature, beta=beta, backend="cpu").backward()
        optimiser.step()
        with torch.no_grad():
            rows.copy_(unit(rows))
        done += 1
        now = time.monotonic()
        progress = max(done / steps, (now - start) / settings.seconds_per_point)
        if now - last > 2:
            last = now
            say(f"step {done} of {steps}, {now - start:.0f} s")
    return unit(rows.detach()), {"steps": done, "seconds": round(time.monotonic() - start, 1)}


def problem(settings: Settings, kind: str, num_codes: int) -> tuple[cpk.Dictionary, float]:
    """The dictionary and the temperature of a point. Raises InputError."""
    try:
        temperature = cpk.default_temperature(settings.num_features, num_codes, eps=settings.eps)
        return DICTIONARIES[kind](settings.num_features, num_codes, seed=settings.seed), temperature
    except ValueError as error:
        raise InputError(f"The point with {num_codes} codes cannot be set up: {error}.") from None


def unit(rows: Tensor) -> Tensor:
    """The rows, L2-normalised."""
    return torch.nn.functional.normalize(rows, dim=1)
