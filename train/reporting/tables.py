"""The tables of a report, one column for each run: rows of text, the first of them the head."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from train.evaluation.measures import COLLAPSE, LABELS, MIXTURES, QUALITY
from train.evaluation.verdicts import RULES, Verdict
from train.reporting.sources import Source

Rows = list[list[Any]]

LOOKS = {True: ("bad", "collapsed"), False: ("good", "not collapsed"), None: ("unknown", "not judged")}
"""Of a verdict: class in the style sheet, and words."""


def quality(sources: list[Source]) -> Rows:
    """How good the frozen features are, and what chance would give."""
    chance = _alike(sources, lambda s: number(1 / s.summary["num_classes"]) if "num_classes" in s.summary else None)
    by_chance = {"linear_probe": chance, "knn": chance, "nmi": "grows with the clusters in use", "kmeans_nmi": "near 0"}
    rows = [[label, *_cells(sources, name), by_chance.get(name, "0")] for name, label in QUALITY.items()]
    for column, source in enumerate(sources, 1):
        if not source.summary.get("linear_probe_converged", True):
            rows[0][column] += " (not converged)"
    return [["measure, on the test images", *_heads(sources), "by chance"], *rows]


def verdicts(sources: list[Source]) -> Rows:
    """For each collapse what is said of it: (class in the style sheet, words, grounds) for each run."""
    judged = [(source, source.verdicts()) for source in sources]
    rows = [[kind, *((*LOOKS[v[kind].collapsed], _ground(s, v[kind])) for s, v in judged)] for kind in RULES]
    return [["collapse", *_heads(sources, "verdict")], *rows]


def collapse(sources: list[Source]) -> Rows:
    """The measures of collapse, between what full collapse and full spread would give."""

    def most(key: str, bound: Callable[[Source], float | None]) -> str:
        """The largest value possible: at most as many as there are images."""
        bounds = ((bound(source), len(source.embeddings)) for source in sources)
        return f"{key} = {_joined(None if most is None else f'{min(most, rows):,}' for most, rows in bounds)}"

    codes = most("min(c, N)", lambda s: s.summary.get("num_clusters"))
    widths = _alike(sources, lambda s: f"{1 / math.sqrt(s.embeddings.shape[1]):.4f}")
    ends = {
        "embedding_std": ("0", f"1/√f = {widths}"),
        "codes_used": ("1", codes),
        "perplexity": ("1", codes),
        "effective_rank": ("1", most("min(f, N)", lambda s: s.embeddings.shape[1])),
        "effective_rank_features": (
            "1",
            most("min(width, N)", lambda s: None if s.features is None else s.features.shape[1]),
        ),
        "within_class_scatter": ("0", "1"),
    } | {name: ("0", "1") if "scatter" in name else ("very negative", "near 0") for name in MIXTURES}
    shown = COLLAPSE | {name: MIXTURES[name] for name in _measured(sources, MIXTURES)}
    rows = [[kind, label, *_cells(sources, name), *ends[name]] for name, (kind, label) in shown.items()]
    return [["collapse", "measure, on the test images", *_heads(sources), "fully collapsed", "fully spread"], *rows]


def missing(sources: list[Source]) -> list[str]:
    """What a table above calls not measured with the reason for each, as sentences."""
    shown = [*QUALITY, *COLLAPSE, *_measured(sources, MIXTURES)]
    found: dict[tuple[str, str], list[str]] = {}
    for source in sources:
        by_reason: dict[str, list[str]] = {}
        for name in shown:
            if source.summary.get(name) is None:
                by_reason.setdefault(source.why_absent(name), []).append(LABELS[name])
        if not source.history:
            by_reason.setdefault(source.why_absent("history"), []).append("loss and its terms, per epoch")
        for reason, names in by_reason.items():
            found.setdefault(("; ".join(names), reason), []).append(source.name)
    whose = {key: f"{', '.join(names)}: " if len(sources) > 1 else "" for key, names in found.items()}
    return [f"{whose[what, reason]}{what}: {reason}." for what, reason in found]


def time(sources: list[Source]) -> Rows:
    """Seconds, images per second and where the time of a step went; empty for sources that were not trained here."""
    names = [
        name
        for name in _union(source.summary for source in sources)
        if name.endswith("_of_step") or name in ("images_per_second", "seconds_training")
    ]
    rows = [[name.replace("_", " "), *_cells(sources, name, "–")] for name in names]
    return [["what", *_heads(sources)], *rows] if rows else []


def configuration(sources: list[Source]) -> Rows:
    """Every option; empty where nothing has options."""
    options = [source.config or {} for source in sources]
    rows = [[name, *(str(option.get(name, "–")) for option in options)] for name in _union(options)]
    return [["option", *_heads(sources)], *rows] if rows else []


def differing(rows: Rows) -> Rows:
    """The rows in which the runs differ, with the head; empty if there are none."""
    kept = [row for row in rows[1:] if len(set(row[1:])) > 1]
    return [rows[0], *kept] if kept else []


def introduction(source: Source) -> str:
    """One sentence on where a column's numbers come from."""
    images, f = len(source.embeddings), source.embeddings.shape[1]
    if source.config is None:
        classes = f", {len(source.classes)} classes" if source.classes else ""
        return f"{source.name}: an array of {images:,} embeddings of length {f}{classes}."
    get, clusters = source.config.get, source.summary.get("num_clusters")
    of_clusters = f", {clusters:,} clusters" if clusters is not None else ""
    return (
        f"{source.name}: {get('method')} on {get('dataset')}, {len(source.history)} of {get('epochs')} epochs of "
        f"{get('batch_size')} images per step, embeddings of length {f}{of_clusters}, seed {get('seed')}; judged on "
        f"{images:,} test images."
    )


def number(value: Any) -> str:
    """Four digits of a float, all of a whole number."""
    if isinstance(value, (bool, str)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _ground(source: Source, verdict: Verdict) -> str:
    """What a verdict rests on, as a sentence."""
    if verdict.collapsed is not None:
        label = LABELS[verdict.measure]
        return (
            f"{label[0].upper()}{label[1:]}: {number(verdict.value)}; collapsed below {number(verdict.threshold)}, "
            f"{verdict.why}."
        )
    needed = (verdict.measure, *RULES[verdict.collapse][1])
    reasons = [source.absent[name] for name in needed if name not in source.summary and name in source.absent]
    return f"{verdict.why}{': ' if reasons else ''}{'; '.join(dict.fromkeys(reasons))}."


def _cells(sources: list[Source], name: str, otherwise: str = "not measured") -> list[str]:
    values = [source.summary.get(name) for source in sources]
    return [otherwise if value is None else number(value) for value in values]


def _heads(sources: list[Source], single: str = "value") -> list[str]:
    return [single] if len(sources) == 1 else [source.name for source in sources]


def _measured(sources: list[Source], names: Iterable[str]) -> list[str]:
    return [name for name in names if any(name in source.summary for source in sources)]


def _alike(sources: list[Source], text: Callable[[Source], str | None]) -> str:
    """The texts of the sources that have one, once where they say the same."""
    return _joined(map(text, sources))


def _joined(texts: Iterable[str | None]) -> str:
    return " / ".join(text for text in dict.fromkeys(texts) if text is not None) or "?"


def _union(dictionaries: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for dictionary in dictionaries for name in dictionary))
