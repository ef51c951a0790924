"""Which of the backends "cuda" and "triton" is faster: row by row, and for each kind of dictionary."""

from __future__ import annotations

import json
import math
from typing import Any, Mapping, Sequence

from bench.gpu_bars import found_wrong
from bench.gpu_rows import LIBRARY
from bench.timing import ratios, spread

PAIR = ("cuda", "triton")
_COLUMNS = tuple(LIBRARY + name for name in PAIR)
# What `preferred_over_triton` asks for: a tie is not worth a change of who answers.
LEAST_GAIN = 1.05


def ratio(row: Mapping[str, Any]) -> float | None:
    """Logits/s of cuda over those of triton; None unless both were measured and neither was found wrong.

    The two take turns, so that it is the median of the rounds' ratios where they have as many rounds.
    """
    cuda, triton = (row["cells"].get(column, {}) for column in _COLUMNS)
    if "median" not in cuda or "median" not in triton or any(found_wrong(row, column) for column in _COLUMNS):
        return None
    if len(cuda["seconds"]) == len(triton["seconds"]):
        return spread(ratios(triton["seconds"], cuda["seconds"]))["median"]
    return triton["median"] / cuda["median"]


def by_dictionary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the rows of loss and gradient say for each kind of dictionary, over those where both were measured.

    Returns:
        kind -> `rows`, their number; `faster`, in how many cuda is; geometric `mean`, `min` and `max` of the ratio;
        `preferred`, whether cuda's mean is ahead by `LEAST_GAIN`.
    """
    found: dict[str, list[float]] = {}
    for row in rows:
        measured = ratio(row) if row["task"] == "loss" else None
        if measured is not None:
            found.setdefault(row["dictionary"], []).append(measured)
    result = {}
    for kind, numbers in found.items():
        mean = math.exp(sum(map(math.log, numbers)) / len(numbers))
        result[kind] = {"rows": len(numbers), "faster": sum(number > 1 for number in numbers), "mean": mean,
                        "min": min(numbers), "max": max(numbers), "preferred": mean >= LEAST_GAIN}  # fmt: skip
    return result


def verdicts(record: Mapping[str, Any]) -> list[str]:
    """A line per kind of dictionary, then the entry for cuda_architectures.json; nothing where no row has both."""
    found = by_dictionary(record["rows"])
    if not found:
        return []
    lines = []
    for kind, of in found.items():
        faster, factor = (PAIR[0], of["mean"]) if of["mean"] >= 1 else (PAIR[1], 1 / of["mean"])
        lines.append(f"{kind}: {faster} is faster, {factor:.2f}x in the geometric mean of {of['rows']} rows; cuda in "
                     f"{of['faster']} of them, {of['min']:.2f}x to {of['max']:.2f}x")  # fmt: skip
    entry = {record["machine"].get("architecture"): [kind for kind, of in found.items() if of["preferred"]]}
    return [*lines, f'"preferred_over_triton" of cplearn_kernels/backends/cuda_architectures.json: {json.dumps(entry)}']
