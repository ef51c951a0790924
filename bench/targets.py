"""What the library has to reach, and the judging of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.timing import ratios, spread

LIBRARY = "library"
MEGABYTE = 1_000_000  # bytes, not 2**20
Verdict = dict[str, Any]  # text, required, measured, unit, spread (smallest and largest of the rounds, or None), met
# What was found of each implementation: "seconds", a number per round; "growth_bytes" and "peak_bytes" of a call.
Cells = Mapping[str, Mapping[str, Any]]

_TEXTS = {
    "speed": "at least {bound:g}x as fast as {against}",
    "rate": "at least {bound:.2g} logits per second",
    "time": "below {bound:g} s a call",
    "memory": "peak memory less than {bound:g} MB above {above}",
}
_UNITS = {"speed": "x", "rate": "logits/s", "time": "s", "memory": "MB"}


@dataclass(frozen=True)
class Target:
    """What the implementation `of` has to reach.

    Attributes:
        kind: "speed" (at least `bound` times as fast as `against`), "rate" (at least so many logits a second), "time"
            (below so many seconds a call; infinite: it runs) or "memory" (a peak less than so many megabytes above what
            was held before the call, inputs included, or above the peak of the case `against`: processes hold the same
            program, so their peaks differ by the calls').
    """

    kind: str
    bound: float
    against: str = ""
    of: str = LIBRARY

    def __str__(self) -> str:
        if self.kind == "time" and self.bound == float("inf"):
            return "runs"
        return _TEXTS[self.kind].format(bound=self.bound, against=self.against, above=self.against or "the inputs")

    def judge(self, cells: Cells, logits: int = 0) -> Verdict | None:
        """From what was found of a call over so many logits; None where something that it takes was not measured."""
        try:
            values = self._values(cells, logits)
        except KeyError:
            return None
        found = spread(values)
        met = found["median"] >= self.bound if self.kind in ("speed", "rate") else found["median"] < self.bound
        rounds = None if self.kind == "memory" else [found["min"], found["max"]]
        return judged(str(self), self.bound, found["median"], _UNITS[self.kind], rounds, met)

    def _values(self, cells: Cells, logits: int) -> list[float]:
        cell = cells[self.of]
        if self.kind == "memory":
            grown = cell["peak_bytes"] - cells[self.against]["peak_bytes"] if self.against else cell["growth_bytes"]
            return [grown / MEGABYTE]
        if self.kind == "speed":
            return ratios(cells[self.against]["seconds"], cell["seconds"])
        return [logits / taken if self.kind == "rate" else taken for taken in cell["seconds"]]


def judge_time_per_code(seconds: Mapping[int, Sequence[float]], within: float) -> Verdict:
    """Whether the time per code, by number of codes, is that with most codes, up to the fraction `within`."""
    per_code = {c: [taken / c for taken in seconds[c]] for c in seconds}
    off = {c: 100 * (spread(ratios(taken, per_code[max(seconds)]))["median"] - 1) for c, taken in per_code.items()}
    worst = max(off, key=lambda c: abs(off[c]))
    text = f"time per code, from {min(seconds)} codes, within {within:.0%} of that with the most"
    rounds, met = [min(off.values()), max(off.values())], abs(off[worst]) <= 100 * within
    return judged(text, 100 * within, off[worst], "%", rounds, met) | {"worst_at": worst}


def judged(text: str, required: float, measured: float, unit: str, rounds: list[float] | None, met: bool) -> Verdict:
    """What a target asked for and what was measured."""
    return {"text": text, "required": required, "measured": measured, "unit": unit, "spread": rounds, "met": met}


def missed(verdicts: Sequence[Verdict]) -> str:
    """One sentence for the targets that were missed; empty if all were met."""
    return "; ".join(f"missed: {it['text']}, measured {show(it)}" for it in verdicts if not it["met"])


def target_rows(verdicts: Sequence[Verdict]) -> list[dict[str, str]]:
    """A table's rows: what was asked, what was measured, whether that is enough."""
    return [{"target": it["text"], "measured": show(it), "met": "yes" if it["met"] else "NO"} for it in verdicts]


def show(verdict: Verdict) -> str:
    """What was measured, with its unit and the rounds' smallest and largest."""
    forms = {"x": "{:.3g}x", "MB": "{:.1f} MB", "%": "{:+.1f} %", "logits/s": "{:.2e}", "s": "{:.3g} s"}
    form = forms[verdict["unit"]].format
    rounds = "" if verdict["spread"] is None else " ({}..{})".format(*map(form, verdict["spread"]))
    return form(verdict["measured"]) + rounds
