"""train/evaluation/verdicts.py: edges of the thresholds, one collapse at a time, and what cannot be judged."""

import math

import pytest
import torch

from train.evaluation import collapse, verdicts

N, F, CLASSES = 600, 32, 10
COUNTS = {"num_features": F, "num_clusters": 1000, "num_classes": CLASSES, "test_images": N}
SOUND = COUNTS | {"embedding_std": 0.17, "perplexity": 100.0, "effective_rank": 30.0, "mixture_scatter_10": 0.9}
EDGES = [
    ("representation", "embedding_std", 0.5 / math.sqrt(F)),
    ("cluster", "perplexity", 20.0),
    ("dimensional", "effective_rank", F / 4),
    ("intracluster", "mixture_scatter_10", 0.1),
]


def collapsed(summary):
    return [name for name, verdict in verdicts.judge(summary).items() if verdict.collapsed]


@pytest.mark.parametrize("name, measure, threshold", EDGES)
def test_collapsed_begins_just_below_the_threshold(name, measure, threshold):
    assert collapsed(SOUND) == []
    assert collapsed(SOUND | {measure: threshold}) == []
    assert collapsed(SOUND | {measure: math.nextafter(threshold, 0)}) == [name]
    verdict = verdicts.judge(SOUND)[name]
    assert (verdict.collapse, verdict.measure, verdict.value) == (name, measure, SOUND[measure])
    assert verdict.threshold == pytest.approx(threshold) and verdict.collapsed is False


def test_thresholds_follow_the_counts():
    def threshold(name, **changes):
        return verdicts.judge(SOUND | changes)[name].threshold

    assert threshold("representation", num_features=128) == pytest.approx(0.5 / math.sqrt(128))
    assert threshold("dimensional", num_features=128) == 32 and threshold("dimensional", test_images=20) == 5
    assert threshold("cluster", num_classes=100) == 200
    # Where two clusters per class cannot be told from even use, half of the clusters that can be used.
    assert threshold("cluster", num_clusters=16) == 8 and threshold("cluster", test_images=30) == 15
    assert threshold("cluster", num_clusters=20) == 10 and threshold("cluster", num_clusters=40) == 20
    assert collapsed(SOUND | {"num_clusters": 20, "perplexity": 19.9}) == []


def shapes():
    """Embeddings (N, F), their clusters, and the collapses that they show."""
    generator = torch.Generator().manual_seed(0)
    cloud = torch.randn(N, F, generator=generator)
    centres, many = torch.eye(10, F), torch.arange(N) % 200
    tenth, turned = torch.arange(N) % 10, torch.linalg.qr(torch.randn(F, F, generator=generator))[0]
    return {
        "cloud": (cloud, many, []),
        "one point": (cloud[:1] + 1e-3 * cloud, many, ["representation", "dimensional"]),
        # In a direction of its own: along the axes, dead coordinates also lower the mean standard deviation.
        "few dimensions": (cloud[:, :6] @ turned[:6], many, ["dimensional"]),
        "few coordinates": (cloud * (torch.arange(F) < 6), many, ["representation", "dimensional"]),
        "few clusters in use": (cloud, tenth, ["cluster"]),
        # Ten loose clusters whose noise has twice the length of their centres.
        "loose clusters": (centres[tenth] + 0.35 * cloud, many, []),
        # Ten points span ten dimensions, more than a quarter of the 32: only the inside of the clusters is lost.
        "ten points": (centres[tenth] + 1e-3 * cloud, many, ["intracluster"]),
        "everything": (cloud[:1].expand(N, -1), torch.zeros(N, dtype=torch.int64), [name for name, *_ in EDGES]),
    }


@pytest.mark.parametrize("name", list(shapes()))
def test_each_shape_shows_its_collapses_and_no_others(name):
    h, clusters, expected = shapes()[name]
    summary = {
        "embedding_std": collapse.embedding_std(h),
        "effective_rank": collapse.effective_rank(h),
        "perplexity": collapse.perplexity(collapse.code_counts(clusters)),
        "mixture_scatter_10": collapse.mixture(h, 10)[0],
    }
    assert collapsed(summary | COUNTS) == expected


@pytest.mark.parametrize("missing", [*(measure for _, measure, _ in EDGES), "num_clusters"])
@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_is_missing_or_not_finite_is_not_judged(missing, value):
    found = verdicts.judge(SOUND | {missing: value})
    unjudged = [verdict for verdict in found.values() if verdict.collapsed is None]
    assert len(unjudged) == 1 and missing in unjudged[0].why and unjudged[0].threshold is None
    without = {name: number for name, number in SOUND.items() if name != missing}
    assert [v.collapse for v in verdicts.judge(without).values() if v.collapsed is None] == [unjudged[0].collapse]


POINTLESS = [("cluster", "num_clusters", 1), ("cluster", "test_images", 1), ("dimensional", "num_features", 4)]
POINTLESS += [("intracluster", "num_features", f) for f in (1, 2)]


@pytest.mark.parametrize("name, count, value", POINTLESS)
def test_where_the_measure_could_say_one_thing_only_nothing_is_said(name, count, value):
    assert verdicts.judge(SOUND | {count: value})[name].collapsed is None
    assert verdicts.judge({})[name].collapsed is None
