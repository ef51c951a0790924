"""What the library has to reach, and the judging of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.timing import ratios, spread

LIBRARY = "library"
MEGABYTE = 1_000_000  # bytes, not 2**20
Verdict = dict[str, Any]  # text, required, measured, unit, spread (smallest and largest of the rounds, or None), met


@dataclass(frozen=True)
class Speed:
    """The library is at least `at_least` times as fast as the implementation `against`."""

    against: str
    at_least: float

    def judge(self, seconds: Mapping[str, Sequence[float]], logits: int) -> Verdict | None:
        """From the seconds per round of each implementation; None where `against` was not measured."""
        if self.against not in seconds:
            return None
        found = spread(ratios(seconds[self.against], seconds[LIBRARY]))
        text = f"at least {self.at_least:g}x as fast as {self.against}"
        met = found["median"] >= self.at_least
        return judged(text, self.at_least, found["median"], "x", [found["min"], found["max"]], met)


@dataclass(frozen=True)
class Rate:
    """The library gets through at least this many logits per second."""

    at_least: float

    def judge(self, seconds: Mapping[str, Sequence[float]], logits: int) -> Verdict:
        """From the seconds per round of each implementation and the logits of one call."""
        found = spread([logits / taken for taken in seconds[LIBRARY]])
        text, met = f"at least {self.at_least:.1e} logits per second", found["median"] >= self.at_least
        return judged(text, self.at_least, found["median"], "logits/s", [found["min"], found["max"]], met)


@dataclass(frozen=True)
class Memory:
    """The library's peak is less than `below_megabytes` above that of the case `baseline`.

    Without a baseline: above what the process held before the call, inputs included.
    """

    below_megabytes: float
    baseline: str | None = None

    def judge(self, found: Mapping[str, int], of_baseline: Mapping[str, int] | None = None) -> Verdict:
        """From the outcomes of memory probes. Processes hold the same program: their peaks differ by the calls'."""
        grown = found["growth_bytes"] if of_baseline is None else found["peak_bytes"] - of_baseline["peak_bytes"]
        text = f"peak memory less than {self.below_megabytes:g} MB above {self.baseline or 'the inputs'}"
        megabytes = grown / MEGABYTE
        return judged(text, self.below_megabytes, megabytes, "MB", None, megabytes < self.below_megabytes)


@dataclass(frozen=True)
class TimePerCode:
    """The library's time per code with each of `num_codes` codes is that with the last, up to the fraction `within`."""

    num_codes: tuple[int, ...]
    within: float

    def judge(self, seconds: Mapping[int, Sequence[float]]) -> Verdict:
        """From the seconds per round by number of codes, all of them having taken turns."""
        per_code = {c: [taken / c for taken in seconds[c]] for c in self.num_codes}
        last = per_code[self.num_codes[-1]]
        off = {c: 100 * (spread(ratios(taken, last))["median"] - 1) for c, taken in per_code.items()}
        worst = max(off, key=lambda c: abs(off[c]))
        text = f"time per code, from {self.num_codes[0]} codes, within {self.within:.0%} of that with the most"
        found = judged(text, 100 * self.within, off[worst], "%", [min(off.values()), max(off.values())],
                           abs(off[worst]) <= 100 * self.within)  # fmt: skip
        return found | {"worst_at": worst}


def missed(verdicts: Sequence[Verdict]) -> str:
    """One sentence for the targets that were missed; empty if all were met."""
    return "; ".join(f"missed: {it['text']}, measured {show(it)}" for it in verdicts if not it["met"])


def target_rows(verdicts: Sequence[Verdict]) -> list[dict[str, str]]:
    """A table's rows: what was asked, what was measured, whether that is enough."""
    return [{"target": it["text"], "measured": show(it), "met": "yes" if it["met"] else "NO"} for it in verdicts]


def show(verdict: Verdict) -> str:
    """What was measured, with its unit and the rounds' smallest and largest."""
    form = {"x": "{:.3g}x", "MB": "{:.1f} MB", "%": "{:+.1f} %", "logits/s": "{:.2e}"}[verdict["unit"]].format
    rounds = "" if verdict["spread"] is None else " ({}..{})".format(*map(form, verdict["spread"]))
    return form(verdict["measured"]) + rounds


def judged(text: str, required: float, measured: float, unit: str, rounds: list[float] | None, met: bool) -> Verdict:
    """What a target asked for and what was measured."""
    return {"text": text, "required": required, "measured": measured, "unit": unit, "spread": rounds, "met": met}
