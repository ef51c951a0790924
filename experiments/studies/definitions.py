"""What each study compares: its question, its arms, and the budget that all of them have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Options = dict[str, Any]
"""Fields of `Config` by name."""


@dataclass(frozen=True)
class Arm:
    """One setting of a study: the options in which it differs from the budget, and how many of the seeds it gets."""

    label: str
    options: Options
    seeds: int | None = None
    """Only the first so many seeds; None: all of them."""
    times_epochs: int = 1
    """How many times the budget's epochs."""


@dataclass(frozen=True)
class Study:
    """A question and the arms whose comparison answers it."""

    question: str
    baseline: str
    """Label of the arm from which the others' differences are taken, seed by seed."""
    arms: tuple[Arm, ...]


BUDGET: dict[str, Options] = {
    "small": dict(
        num_train=20000, num_test=5000, epochs=6, warmup_epochs=1, batch_size=128, stem_stride=2, precision="bfloat16"
    ),
    "paper": dict(),
}
"""Options that every arm shares. `small` is what fits on two CPU cores, `paper` the presets of `Config`."""


def _codes(count: int) -> Arm:
    return Arm(f"{count:,}", {"method": "cplearn", "num_codes": count})


MAIN = Arm("cplearn", {"method": "cplearn", "num_codes": 16384})


def _variant(label: str, seeds: int | None = None, **options: Any) -> Arm:
    return Arm(label, {**MAIN.options, **options}, seeds)


STUDIES: dict[str, Study] = {
    "collapses": Study(
        "Which method suffers which of the four collapses?",
        "cplearn",
        (
            MAIN,
            Arm("barlow_twins", {"method": "barlow_twins"}),
            # 0.0051 was tuned for 8192 coordinates: 8191 terms off the diagonal for each on it, and not 127.
            Arm("barlow_twins, λ 0.02", {"method": "barlow_twins", "barlow_lambda": 0.02}),
            Arm("swav", {"method": "swav"}),
        ),
    ),
    "codes": Study(
        "What do more codes bring?", "10", tuple(_codes(count) for count in (10, 128, 1024, 16384, 1 << 17, 1 << 20))
    ),
    "dictionaries": Study(
        "Does it matter whether the codes are Hadamard blocks or independent signs?",
        "hadamard",
        (_variant("hadamard"), _variant("rademacher", dictionary="rademacher")),
    ),
    "variants": Study(
        "What do the embedding, the prior's form and beta change?",
        "l2, reverse_kl, beta 0.25",
        (
            _variant("l2, reverse_kl, beta 0.25"),
            _variant("beta 0.1", seeds=1, beta=0.1),
            _variant("beta 0.5", seeds=1, beta=0.5),
            _variant("beta 1", beta=1.0),
            _variant("tanh", embedding="tanh"),
            _variant("cross_entropy", prior="cross_entropy"),
        ),
    ),
    "longer": Study(
        "What changes with four times the steps?",
        "cplearn, beta 0.25",
        tuple(
            Arm(label, options, seeds=1, times_epochs=4)
            for label, options in (
                ("cplearn, beta 0.25", MAIN.options),
                ("cplearn, 131,072 codes", {**MAIN.options, "num_codes": 1 << 17}),
                ("cplearn, beta 1", {**MAIN.options, "beta": 1.0}),
                ("barlow_twins, λ 0.02", {"method": "barlow_twins", "barlow_lambda": 0.02}),
                ("swav", {"method": "swav"}),
            )
        ),
    ),
}
