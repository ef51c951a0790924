"""train/evaluation/collapse.py: embeddings collapsed in one way each, and embeddings that are not."""

import math

import numpy as np
import pytest
import torch

from train.evaluation import collapse

N, F = 4000, 16


@pytest.fixture
def spread():
    """Directions evenly spread over the sphere, (4000, 16)."""
    return torch.randn(N, F, generator=torch.Generator().manual_seed(0))


def test_spread_embeddings_reach_the_upper_ends(spread):
    labels = torch.arange(N) % 10
    assert collapse.embedding_std(spread) == pytest.approx(1 / math.sqrt(F), rel=0.02)
    assert collapse.effective_rank(spread) == pytest.approx(F, rel=0.01)
    assert collapse.within_class_scatter(spread, labels) > 0.99


def test_representation_collapse(spread):
    assert collapse.embedding_std(spread[:1].expand(N, -1)) < 1e-6
    assert collapse.embedding_std(spread[:1] + 0.01 * spread) < 0.1 / math.sqrt(F)
    # The length of an embedding does not count, only its direction.
    assert collapse.embedding_std(spread[:1] * spread[:, :1].abs()) < 1e-6


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_dimensional_collapse(rank):
    """Orthonormal columns: the effective rank is the rank exactly."""
    columns = torch.linalg.qr(torch.randn(N, rank, generator=torch.Generator().manual_seed(1)))[0]
    h = columns @ torch.eye(rank, F)
    assert collapse.effective_rank(h) == pytest.approx(rank, abs=1e-3)
    assert (collapse.singular_values(h) > 1e-3).sum() == rank


def test_effective_rank_of_known_singular_values():
    h = torch.diag(torch.tensor([3.0, 1.0, 0.0]))
    assert collapse.effective_rank(h) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert collapse.effective_rank(torch.zeros(4, 3)) == 0.0


def test_cluster_collapse():
    even, one, uneven = torch.arange(100) % 20, torch.zeros(100, dtype=torch.int64), torch.tensor([3, 3, 3, 9])
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    for clusters, counts, perplexity in (even, [5] * 20, 20), (one, [100], 1), (uneven, [3, 1], math.exp(entropy)):
        assert collapse.code_counts(clusters).tolist() == counts
        assert collapse.perplexity(collapse.code_counts(clusters)) == pytest.approx(perplexity)


def test_intracluster_collapse(spread):
    labels = torch.arange(N) % 4
    assert collapse.within_class_scatter(spread[labels], labels) < 1e-12
    assert collapse.within_class_scatter(spread[:1].expand(N, -1), labels) == 0.0
    # Two classes at ±e_1 and, within each, ±e_2 of equal size: exactly half of the variance lies within.
    h = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert collapse.within_class_scatter(h, torch.tensor([0, 0, 1, 1])) == pytest.approx(0.5)


def clusters(centres, spread, n=600):
    """n rows around the given centres (K, f), evenly, and the centre of each."""
    labels = torch.arange(n) % len(centres)
    noise = torch.randn(n, centres.shape[1], generator=torch.Generator().manual_seed(2))
    return centres[labels] + spread * noise, labels


def test_mixture_of_points_has_no_scatter_and_the_floor_as_entropy():
    h, _ = clusters(torch.eye(10), 0.0)
    for size in (10, 20):
        scatter, entropy = collapse.mixture(h, size)
        assert scatter < 1e-9 and entropy == pytest.approx(0.5 * math.log(collapse.VARIANCE_FLOOR), abs=1e-3)
    # Too few components must share points: of ten at equal distances, two hold a pair or more.
    assert collapse.mixture(h, 5)[0] > 0.4


def test_mixture_of_a_cloud_explains_no_more_than_it_must(spread):
    scatter, entropy = collapse.mixture(spread[:2000], 10)
    assert 10 ** (-2 / F) < scatter < 1 and -0.1 < entropy < 0
    # The same cloud around a far point is no cluster: neither the mean nor the size of the whole counts.
    far = spread[:2000] * 0.001 + torch.ones(F)
    assert collapse.mixture(far, 10)[0] > 10 ** (-2 / F) and abs(collapse.mixture(far, 10)[1]) < 0.1


@pytest.mark.parametrize("width", [0.02, 0.1, 0.2])
def test_mixture_recovers_clusters_of_a_known_extent(width):
    h, labels = clusters(torch.eye(10, 12), width)
    scatter, entropy = collapse.mixture(h, 10)
    true = collapse.within_class_scatter(h, labels)
    assert scatter == pytest.approx(true, rel=0.05)
    unit = torch.nn.functional.normalize(h, dim=1)
    within = torch.stack([unit[labels == k].var(0, unbiased=False) for k in range(10)])
    assert entropy == pytest.approx(float(0.5 * (within / unit.var(0, unbiased=False)).log().mean()), abs=0.05)
    # Ten clusters read as five, or grouped by something else, are another answer.
    assert collapse.mixture(h, 5)[0] > 1.3 * true and collapse.within_class_scatter(h, torch.arange(600) // 60) > 0.9


def test_mixture_is_not_misled_by_a_bad_start():
    """Rows for which one start of k-means puts two clusters together: a scatter of 0.19, not 0.09, and no verdict."""
    labels = np.arange(600) % 10
    rows = torch.from_numpy(np.eye(10)[labels] + 0.1 * np.random.default_rng(12).standard_normal((600, 10)))
    true = collapse.within_class_scatter(rows, torch.from_numpy(labels))
    assert collapse.mixture(rows, 10)[0] == pytest.approx(true, rel=0.05)


def test_mixture_measures_leave_out_components_without_rows_to_fill_them(spread):
    assert collapse.mixture_measures(spread[:49]) == {}
    assert set(collapse.mixture_measures(spread[:60])) == {"mixture_scatter_10", "mixture_entropy_10"}
    assert len(collapse.mixture_measures(spread[:250])) == 6


def test_mixture_measures_take_rows_from_everywhere_and_leave_the_generator_alone(monkeypatch):
    monkeypatch.setattr(collapse, "MIXTURE_ROWS", 200)
    monkeypatch.setattr(collapse, "MIXTURE_SIZES", (2,))
    # Sorted by cluster, as data sets are: the first 200 rows hold only two of the ten clusters.
    noise = 0.1 * torch.randn(1000, 10, generator=torch.Generator().manual_seed(0))
    h = torch.eye(10)[torch.arange(1000) // 100] + noise
    torch.manual_seed(5)
    found = collapse.mixture_measures(h)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1)) and found == collapse.mixture_measures(h)
    assert collapse.mixture(h[:200], 2)[0] < 0.3 and found["mixture_scatter_2"] > 0.7


def test_degenerate_embeddings_have_finite_measures(spread):
    equal = spread[:1].expand(100, -1)
    assert collapse.mixture(equal, 10) == (0.0, 0.0) and collapse.mixture(torch.zeros(20, 3), 4) == (0.0, 0.0)
    assert collapse.embedding_std(equal) < 1e-6 and collapse.effective_rank(equal) == pytest.approx(1)
    signs = torch.tensor([[1.0], [-2.0]]).repeat(50, 1)
    assert collapse.embedding_std(signs) == pytest.approx(1) and collapse.mixture(signs, 10)[0] < 1e-9
    assert collapse.effective_rank(signs) == pytest.approx(1)
    one = spread[:1]
    assert collapse.embedding_std(one) == 0 and collapse.effective_rank(one) == pytest.approx(1)
    assert collapse.mixture(one, 1) == (0.0, 0.0)


MEASURES = [
    collapse.embedding_std,
    collapse.effective_rank,
    collapse.singular_values,
    collapse.mixture_measures,
    lambda h: collapse.mixture(h, 1),
    lambda h: collapse.within_class_scatter(h, torch.zeros(len(h))),
]


@pytest.mark.parametrize("measure", MEASURES)
def test_what_is_no_finite_matrix_is_refused(measure, spread):
    for bad in (math.nan, math.inf):
        h = spread[:60].clone()
        h[[3, 7], 2] = bad
        with pytest.raises(ValueError, match="2 rows of 60 with numbers that are not finite"):
            measure(h)
    for shape in ((0, 4), (4, 0), (5,)):
        with pytest.raises(ValueError, match=r"expected \(N, f\)"):
            measure(torch.zeros(shape))
    measure(spread[:60])


def test_wrong_counts_are_refused(spread):
    for components in (0, 61):
        with pytest.raises(ValueError, match="expected 1 to the number of rows, 60"):
            collapse.mixture(spread[:60], components)
    for counts in (torch.tensor([]), torch.zeros(3), torch.tensor([3, -1])):
        with pytest.raises(ValueError, match="expected numbers of at least 0"):
            collapse.perplexity(counts)
