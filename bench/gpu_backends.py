"""Which of the backends "cuda" and "triton" is faster: row by row, and for each kind of dictionary and f."""

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


def by_dictionary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, list[float]]]:
    """kind of dictionary -> f -> ratios, of the rows of loss and gradient where both were measured."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        measured = ratio(row) if row["task"] == "loss" else None
        if measured is not None:
            found.setdefault(row["dictionary"], {}).setdefault(row["num_features"], []).append(measured)
    return {kind: dict(sorted(of.items())) for kind, of in found.items()}


def preferred(of: Mapping[int, Sequence[float]]) -> list[int] | None:
    """[least, most] of the longest run of measured f at which cuda is ahead by `LEAST_GAIN`, None without any."""
    runs: list[list[int]] = [[]]
    for f, numbers in of.items():
        if _mean(numbers) >= LEAST_GAIN:
            runs[-1].append(f)
        else:
            runs.append([])
    longest = max(runs, key=len)
    return [longest[0], longest[-1]] if longest else None


def verdicts(record: Mapping[str, Any]) -> list[str]:
    """A line per kind of dictionary, then the entry for cuda/architectures.json; nothing where no row has both."""
    found = by_dictionary(record["rows"])
    if not found:
        return []
    lines = []
    for kind, of in found.items():
        numbers = [number for some in of.values() for number in some]
        mean, ahead = _mean(numbers), sum(number > 1 for number in numbers)
        faster, factor = (PAIR[0], mean) if mean >= 1 else (PAIR[1], 1 / mean)
        sizes = ", ".join(f"{_mean(some):.2f} at f = {f}" for f, some in of.items())
        lines.append(f"{kind}: {faster} is faster, {factor:.2f}x in the geometric mean, cuda in {ahead} of "
                     f"{len(numbers)} rows; cuda/triton {sizes}")  # fmt: skip
    ranges = {kind: preferred(of) for kind, of in found.items()}
    entry = {record["machine"].get("architecture"): {kind: run for kind, run in ranges.items() if run}}
    return [*lines, f'"preferred_over_triton" of cplearn_kernels/backends/cuda/architectures.json: {json.dumps(entry)}']


def _mean(numbers: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, numbers)) / len(numbers))
