"""Whether embeddings have collapsed: four measures against thresholds that are the same for every method.

The thresholds were fixed before the runs that they are applied to; docs/collapse.md argues for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

STD_SHARE = 0.5
"""Representation collapse: a smaller share than this of the 1/√f of an even spread."""
CLUSTERS_PER_CLASS = 2.0
"""Cluster collapse: fewer clusters in even use than this for each class ..."""
CLUSTER_SHARE = 0.5
"""... or than this share of the clusters that can be used, where that is less."""
RANK_SHARE = 0.25
"""Dimensional collapse: a smaller share than this of the dimensions."""
SCATTER = 0.1
"""Intracluster collapse: a smaller share than this of the variance within the components of a mixture of ten."""
SCATTER_COMPONENTS = 10


@dataclass(frozen=True)
class Verdict:
    """What is said of one collapse, and on what grounds."""

    collapse: str
    measure: str
    """Key of the summary."""
    value: float | None
    """None if the summary does not hold it."""
    threshold: float | None
    """Collapsed below it; None if not judged."""
    collapsed: bool | None
    """None if not judged."""
    why: str
    """Where the threshold comes from, or why there is no verdict; a clause."""


def judge(summary: Mapping[str, Any]) -> dict[str, Verdict]:
    """The verdict on each collapse, from a summary as `evaluate.judge` makes it.

    A collapse whose measure, or a count that its threshold needs, is missing or not finite is not judged: `collapsed`
    is None and `why` says what is missing. Likewise where the measure is below the threshold whatever the embeddings
    are, or never.
    """
    return {collapse: _verdict(summary, collapse, *rule) for collapse, rule in RULES.items()}


class _NotJudged(Exception):
    """The clause that says why."""


def _verdict(
    summary: Mapping[str, Any],
    collapse: str,
    measure: str,
    needs: tuple[str, ...],
    rule: Callable[..., tuple[float, str]],
) -> Verdict:
    value = summary.get(measure)
    try:
        for name in (measure, *needs):
            if summary.get(name) is None:
                raise _NotJudged(f"{name} is not known")
            if not math.isfinite(summary[name]):
                raise _NotJudged(f"{name} was {summary[name]}, which is no finite number")
        threshold, why = rule(*(summary[name] for name in needs))
    except _NotJudged as reason:
        return Verdict(collapse, measure, value, None, None, str(reason))
    return Verdict(collapse, measure, value, threshold, bool(value < threshold), why)


def _representation(f: int) -> tuple[float, str]:
    return STD_SHARE / math.sqrt(f), f"half of the 1/√f = {1 / math.sqrt(f):.4g} of an even spread over the sphere"


def _cluster(num_classes: int, num_clusters: int, samples: int) -> tuple[float, str]:
    most = min(num_clusters, samples)
    if most < 2:
        raise _NotJudged(f"{num_clusters} clusters and {samples} images leave no choice of a cluster")
    threshold = min(CLUSTERS_PER_CLASS * num_classes, CLUSTER_SHARE * most)
    if threshold == CLUSTERS_PER_CLASS * num_classes:
        return threshold, f"two clusters for each of the {num_classes} classes; at most {most:,} can be in use"
    return threshold, f"half of the {most:,} clusters that can be in use"


def _dimensional(f: int, samples: int) -> tuple[float, str]:
    most = min(f, samples)
    if RANK_SHARE * most <= 1:
        raise _NotJudged(f"a quarter of {most} dimensions is not above the 1 of a full collapse")
    return RANK_SHARE * most, f"a quarter of the {most} dimensions"


def _intracluster(f: int) -> tuple[float, str]:
    # Ten cells of equal variance leave at least 10^(-2/f) of it inside (Shannon's bound of quantisation).
    least = SCATTER_COMPONENTS ** (-2 / f)
    if least <= SCATTER * (1 + 1e-9):
        raise _NotJudged(f"ten components split any embeddings of {f} coordinates as finely as collapsed ones")
    return SCATTER, f"a tenth of the variance within ten clusters, where a round cloud has at least {least:.2g}"


RULES: dict[str, tuple[str, tuple[str, ...], Callable[..., tuple[float, str]]]] = {
    "representation": ("embedding_std", ("num_features",), _representation),
    "cluster": ("perplexity", ("num_classes", "num_clusters", "test_images"), _cluster),
    "dimensional": ("effective_rank", ("num_features", "test_images"), _dimensional),
    "intracluster": (f"mixture_scatter_{SCATTER_COMPONENTS}", ("num_features",), _intracluster),
}
"""For each collapse: its measure, the counts that its threshold depends on, and the threshold with its reason."""
