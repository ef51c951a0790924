"""The tables of a report, one column for each run: quality, collapse with its verdicts, time, configuration."""

from __future__ import annotations

import math
from typing import Any, Callable

from train.evaluation.collapse import MIXTURE_SIZES
from train.evaluation.verdicts import RULES, Verdict
from train.reporting.page import Markup, escape, items, table
from train.reporting.sources import Source

QUALITY = {
    "linear_probe": "linear probe accuracy",
    "knn": "weighted k-NN accuracy",
    "nmi": "normalised mutual information of clusters and classes",
    "ami": "adjusted mutual information of clusters and classes",
    "kmeans_nmi": "normalised mutual information of k-means on the features, one mean a class, and classes",
    "view_agreement": "adjusted mutual information of the clusters of two views of each image",
}

COLLAPSE = {
    "embedding_std": ("representation", "standard deviation of unit-length embeddings"),
    "codes_used": ("cluster", "clusters used"),
    "perplexity": ("cluster", "perplexity of the assignments"),
    "effective_rank": ("dimensional", "effective rank of the embeddings (RankMe)"),
    "effective_rank_features": ("dimensional", "effective rank of the features"),
    "within_class_scatter": ("intracluster", "share of the variance within classes"),
}
MIXTURES = {
    f"mixture_{kind}_{k}": ("intracluster", text.format(k))
    for kind, text in (
        ("scatter", "share of the variance within the {} components of a mixture"),
        ("entropy", "entropy within the {} components of a mixture, less that of one Gaussian (nats per dimension)"),
    )
    for k in MIXTURE_SIZES
}

MISSING = "not measured"
LOOKS = {True: ("bad", "collapsed"), False: ("good", "not collapsed"), None: ("unknown", "not judged")}
"""Of a verdict: class in the style sheet, and words."""


def quality(sources: list[Source]) -> str:
    """How good the frozen features are."""

    def chance(source: Source) -> str | None:
        classes = source.summary.get("num_classes")
        return None if classes is None else number(1 / classes)

    by_chance = {
        "linear_probe": _alike(sources, chance),
        "knn": _alike(sources, chance),
        "nmi": "grows with the clusters in use",
        "ami": "0",
        "kmeans_nmi": "near 0",
        "view_agreement": "0",
    }
    rows = []
    for name, label in QUALITY.items():
        cells = [_cell(source, name) for source in sources]
        if name == "linear_probe":
            cells = [
                cell + ("" if source.summary.get("linear_probe_converged", True) else " (not converged)")
                for cell, source in zip(cells, sources)
            ]
        rows.append((label, *cells, by_chance[name]))
    return table(("measure, on the test images", *_heads(sources), "by chance"), rows)


def verdicts(sources: list[Source]) -> str:
    """What is said of each collapse, the measure and threshold it was judged by, and why."""
    judged = [source.verdicts() for source in sources]
    rows = []
    for kind in judged[0]:
        cells = []
        for source, verdict in zip(sources, (found[kind] for found in judged)):
            css, word = LOOKS[verdict.collapsed]
            cells.append(Markup(f'<b class="{css}">{word}</b><small>{escape(_ground(source, verdict))}</small>'))
        rows.append((kind, *cells))
    return table(("collapse", *_heads(sources, "verdict")), rows)


def collapse(sources: list[Source]) -> str:
    """The measures of collapse, between what full collapse and full spread would give."""

    def most(key: str, bound: Callable[[Source], float | None]) -> str:
        """The largest value possible: at most as many as there are images."""

        def text(source: Source) -> str | None:
            return None if bound(source) is None else f"{min(bound(source), len(source.embeddings)):,}"

        return f"{key} = {_alike(sources, text)}"

    codes = most("min(c, N)", lambda s: s.summary.get("num_clusters"))
    width = most("min(width, N)", lambda s: None if s.features is None else s.features.shape[1])
    spread = {
        "embedding_std": "1/√f = " + _alike(sources, lambda s: f"{1 / math.sqrt(s.embeddings.shape[1]):.4f}"),
        "codes_used": codes,
        "perplexity": codes,
        "effective_rank": most("min(f, N)", lambda s: s.embeddings.shape[1]),
        "effective_rank_features": width,
        "within_class_scatter": "1",
    }
    none = {"embedding_std": "0", "within_class_scatter": "0"}
    rows = [
        (kind, label, *(_cell(source, name) for source in sources), none.get(name, "1"), spread[name])
        for name, (kind, label) in COLLAPSE.items()
    ]
    rows += [
        (
            kind,
            label,
            *(_cell(source, name) for source in sources),
            *(("0", "1") if "scatter" in name else ("very negative", "near 0")),
        )
        for name, (kind, label) in MIXTURES.items()
        if any(name in source.summary for source in sources)
    ]
    return table(("collapse", "measure, on the test images", *_heads(sources), "fully collapsed", "fully spread"), rows)


def missing(sources: list[Source]) -> str:
    """What a table above calls not measured, and the reason for each; empty if nothing is."""
    labels = QUALITY | {name: label for name, (_, label) in (COLLAPSE | MIXTURES).items()}
    shown = [name for name in labels if name not in MIXTURES or any(name in source.summary for source in sources)]
    found: dict[tuple[str, str], list[str]] = {}
    for source in sources:
        by_reason: dict[str, list[str]] = {}
        for name in shown:
            if source.summary.get(name) is None:
                by_reason.setdefault(source.why_absent(name), []).append(labels[name])
        if not source.history:
            by_reason.setdefault(source.why_absent("history"), []).append("loss and its terms, per epoch")
        for reason, names in by_reason.items():
            found.setdefault(("; ".join(names), reason), []).append(source.name)
    texts = [
        f"{', '.join(names) + ': ' if len(sources) > 1 else ''}{what}: {reason}."
        for (what, reason), names in found.items()
    ]
    return f"<p>Not measured, and why:</p>{items(texts)}" if texts else ""


def time(sources: list[Source]) -> str:
    """Seconds, images per second and where the time of a step went; empty for sources that were not trained here."""
    names = [
        name
        for name in _union(source.summary for source in sources)
        if name.endswith("_of_step") or name in ("images_per_second", "seconds_training")
    ]
    if not names:
        return ""
    return table(
        ("what", *_heads(sources)),
        [(name.replace("_", " "), *(_cell(source, name, "–") for source in sources)) for name in names],
    )


def configuration(sources: list[Source]) -> str:
    """Every option; those in which the runs differ come first and by themselves. Empty where nothing has options."""
    if not any(source.config for source in sources):
        return ""
    rows = [
        (name, *(_option(source, name) for source in sources))
        for name in _union(source.config or {} for source in sources)
    ]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    head = ("option", *_heads(sources))
    first = f"<p>Options that differ:</p>{table(head, differing)}" if differing else ""
    return f"{first}<details><summary>All options</summary>{table(head, rows)}</details>"


def introduction(source: Source) -> str:
    """One sentence on where a column's numbers come from."""
    images, f = len(source.embeddings), source.embeddings.shape[1]
    if source.config is None:
        classes = f", {len(source.classes)} classes" if source.classes else ""
        return f"{source.name}: an array of {images:,} embeddings of length {f}{classes}."
    config = source.config
    clusters = source.summary.get("num_clusters")
    return (
        f"{source.name}: {config.get('method')} on {config.get('dataset')}, {len(source.history)} of "
        f"{config.get('epochs')} epochs of {config.get('batch_size')} images per step, embeddings of length {f}"
        + (f", {clusters:,} clusters" if clusters is not None else "")
        + f", seed {config.get('seed')}; judged on {images:,} test images."
    )


def number(value: Any) -> str:
    """Four digits of a float, all of a whole number."""
    if isinstance(value, (bool, str)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _ground(source: Source, verdict: Verdict) -> str:
    """What a verdict rests on, as a sentence."""
    if verdict.collapsed is not None:
        label = COLLAPSE[verdict.measure][1] if verdict.measure in COLLAPSE else MIXTURES[verdict.measure][1]
        return (
            f"{label[0].upper()}{label[1:]}: {number(verdict.value)}; collapsed below {number(verdict.threshold)}, "
            f"{verdict.why}."
        )
    measure, needs, _ = RULES[verdict.collapse]
    reasons = [
        source.absent[name] for name in (measure, *needs) if name not in source.summary and name in source.absent
    ]
    return f"{verdict.why}{': ' if reasons else ''}{'; '.join(dict.fromkeys(reasons))}."


def _cell(source: Source, name: str, otherwise: str = MISSING) -> str:
    return number(source.summary[name]) if source.summary.get(name) is not None else otherwise


def _option(source: Source, name: str) -> str:
    return "–" if source.config is None or name not in source.config else str(source.config[name])


def _heads(sources: list[Source], single: str = "value") -> list[str]:
    return [single] if len(sources) == 1 else [source.name for source in sources]


def _alike(sources: list[Source], text: Callable[[Source], str | None]) -> str:
    """The texts of the sources that have one, once where they say the same."""
    texts = dict.fromkeys(text(source) for source in sources)
    return " / ".join(found for found in texts if found is not None) or "?"


def _union(dictionaries) -> list[str]:
    return list(dict.fromkeys(name for dictionary in dictionaries for name in dictionary))
