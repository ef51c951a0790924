"""The tables of docs/scaling.md that follow from formulas and models: traffic by term, predictions, crossovers."""

from __future__ import annotations

from typing import Callable, Mapping

from bench import scaling_formulas as formulas
from bench.distributed_tables import markdown, power
from bench.scaling_formulas import hadamard
from bench.scaling_predictions import Times, fits, predict, simulate, smallest_codes

WORLDS = (8, 16, 64, 256, 1024)
CODES = (1 << 20, 1 << 24, 1 << 28, 1 << 30, 1 << 34)
FEATURES = (2048, 128)
FIXED_ROWS, ROWS_PER_RANK = 4096, 32
# Embeddings under bfloat16 autocast.
ELEMENT = 2

_FORMULAS = {
    "agreement": ("all-to-all on the CPU, or all-gather", "17 integers of every rank", "136 (R−1)"),
    "rows": ("two all-gathers, one per view", "embeddings as they are", "2 N f e (R−1)/R"),
    "best logits": ("all-reduce, maximum", "64-bit integer per row", "2 · 16 N (R−1)/R"),
    "sums": ("all-reduce, sum", "two float64 per row", "2 · 32 N (R−1)/R"),
    "scalars": ("all-reduce, sum", "S float64 per row, and the prior", "2 · (16 S N + 8) (R−1)/R"),
    "gradients": ("all-to-all", "float32 per element", "8 N f (R−1)/R"),
}


def rows_of(world: int) -> dict[str, int]:
    """N by name: the same on any number of ranks, and growing with it."""
    return {f"{FIXED_ROWS}": FIXED_ROWS, f"{ROWS_PER_RANK} R": ROWS_PER_RANK * world}


def sent_table(rate: float | None = None) -> str:
    """Every collective with its formula and two examples."""
    examples = (hadamard(4096, 2048, 1 << 24, 64, ELEMENT), hadamard(4096, 128, 1 << 24, 64, ELEMENT))
    counts = [formulas.sent(shape) for shape in examples]
    rows = [[term, *_FORMULAS[term], *(_bytes(sent[term]) for sent in counts)] for term in formulas.TERMS]
    rows.append(["all", "", "", "", *(_bytes(sum(sent.values())) for sent in counts)])
    return markdown(["when", "collective", "what", "bytes that a rank sends", "N = 4096, f = 2048, R = 64, bfloat16",
                     "f = 128"], rows)  # fmt: skip


def memory_table(rate: float | None = None) -> str:
    shapes = [hadamard(N, f, 1 << 24, 64, ELEMENT) for N, f in ((4096, 2048), (4096, 128), (32768, 2048))]
    found = [formulas.memory(shape) for shape in shapes]
    rows = [[what, *(_bytes(numbers[what]) for numbers in found)] for what in found[0]]
    return markdown(["on each rank", *(f"N = {shape.N}, f = {shape.f}" for shape in shapes)], rows)


def step_table(rate: float | None = None) -> str:
    """Milliseconds of a step, and the share that is work on codes."""
    rows = []
    for f in FEATURES:
        for which in rows_of(1):
            for world in WORLDS:
                N, cells = rows_of(world)[which], []
                for c in CODES:
                    shape = hadamard(N, f, c, world, ELEMENT)
                    cells.append(_step(predict(shape, rate=rate)) if fits(shape) else "–")
                rows.append([str(f), which, str(world), *cells])
    return markdown(["f", "N", "ranks R", *(f"c = {power(c)}" for c in CODES)], rows)


def parts_table(rate: float | None = None, c: int = 1 << 24) -> str:
    """Where the time goes at one c: each part, and what two other choices of collectives would make of it."""
    rows = []
    for f in FEATURES:
        for which in rows_of(1):
            for world in (8, 64, 1024):
                shape = hadamard(rows_of(world)[which], f, c, world, ELEMENT)
                t, nccl = predict(shape, rate=rate), predict(shape, rate=rate, agree_by="nccl")
                back = predict(shape, rate=rate, gradients_by="reduce-scatter")
                seconds = (t.agreement, nccl.agreement, t.waits, t.pass_1, t.reductions, t.rest, t.gradients,
                           back.gradients, t.small)  # fmt: skip
                rows.append([str(f), which, str(world), *map(_ms, seconds)])
    return markdown(["f", "N", "ranks R", "agreement over gloo", "over NCCL instead", "waiting for rows", "pass 1",
                     "three reductions", "pass 2", "gradients, all-to-all", "by reduce-scatter instead", "between"],
                    rows)  # fmt: skip


def overlap_table(rate: float | None = None, c: int = 1 << 24) -> str:
    """What the overlap of the second gather with pass 1 saves."""
    rows = []
    for f in FEATURES:
        for which in rows_of(1):
            for world in (8, 64, 1024):
                t = predict(hadamard(rows_of(world)[which], f, c, world, ELEMENT), rate=rate)
                saved = t.rows - t.waits
                rows.append([str(f), which, str(world), _ms(t.rows / 2), _ms(t.pass_1 / 2), _ms(saved),
                             f"{100 * saved / (t.all + saved):.1f} %"])  # fmt: skip
    return markdown(["f", "N", "ranks R", "gather of one view, ms", "pass 1 of one view, ms", "hidden, ms",
                     "of the step without"], rows)  # fmt: skip


def crossover_table(rate: float | None = None) -> str:
    """From how many codes on work takes at least half of the step."""
    over_nccl = {"agree_by": "nccl"}
    choices: Mapping[str, dict] = {"agreement over gloo": {}, "agreement over NCCL": over_nccl,
                                   "and gradients by reduce-scatter": {**over_nccl, "gradients_by": "reduce-scatter"}}
    rows = []
    for f in FEATURES:
        for which in rows_of(1):
            for world in WORLDS:
                N = rows_of(world)[which]
                found = [smallest_codes(N, f, world, rate=rate, **options) for options in choices.values()]
                rows.append([str(f), which, str(world), *("above 2^34" if c is None else power(c) for c in found)])
    return markdown(["f", "N", "ranks R", *choices], rows)


def straggler_table(rate: float | None = None, c: int = 1 << 28) -> str:
    """Closed formulas beside the simulation, with ranks of equal and of unequal speed."""
    rows = []
    for f in FEATURES:
        for world in WORLDS:
            shape = hadamard(FIXED_ROWS, f, c, world, ELEMENT)
            if fits(shape):
                closed = predict(shape, rate=rate).all
                even, uneven = simulate(shape, 0.0, rate=rate), simulate(shape, rate=rate)
                slower = f"{100 * (uneven / even - 1):.0f} %"
                rows.append([str(f), str(world), _ms(closed), _ms(even), _ms(uneven), slower])
    return markdown(["f", "ranks R", "formula, ms", "simulated", "simulated, work 5 % uneven", "slower"], rows)


def alternatives_table(rate: float | None = None) -> str:
    """Bytes, logits and memory of the plain ways, per rank and step."""
    rows = []
    for world, c in ((8, 1 << 20), (64, 1 << 24), (64, 1 << 30), (1024, 1 << 34)):
        shape = hadamard(FIXED_ROWS, 2048, c, world, ELEMENT)
        for name, numbers in formulas.alternatives(shape).items():
            rows.append([str(world), power(c), name, _bytes(numbers["sent"]), f"{numbers['logits']:.2g}",
                         _bytes(numbers["held"]) if numbers["held"] else "none"])  # fmt: skip
    return markdown(["ranks R", "c", "way", "sent by a rank", "logits of a rank", "p̄ held"], rows)


TABLES: Mapping[str, Callable[..., str]] = {
    "sent": sent_table, "memory": memory_table, "steps": step_table, "parts": parts_table, "overlap": overlap_table,
    "crossover": crossover_table, "stragglers": straggler_table, "alternatives": alternatives_table,
}  # fmt: skip


def _step(t: Times) -> str:
    return f"{_ms(t.all)} ({100 * t.share_of_work:.0f} %)"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f}" if seconds >= 0.0995 else f"{1e3 * seconds:.2g}"


def _bytes(number: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} B"
