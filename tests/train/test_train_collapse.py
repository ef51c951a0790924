"""train/collapse.py: embeddings collapsed in one way each, and embeddings that are not."""

import math

import pytest
import torch

from train import collapse

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
    even, one = torch.arange(100) % 20, torch.zeros(100, dtype=torch.int64)
    assert collapse.code_counts(even).tolist() == [5] * 20
    assert collapse.perplexity(collapse.code_counts(even)) == pytest.approx(20)
    assert collapse.code_counts(one).tolist() == [100] and collapse.perplexity(collapse.code_counts(one)) == pytest.approx(1)
    uneven = torch.tensor([3, 3, 3, 9])
    assert collapse.code_counts(uneven).tolist() == [3, 1]
    assert collapse.perplexity(collapse.code_counts(uneven)) == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


def test_intracluster_collapse(spread):
    labels = torch.arange(N) % 4
    assert collapse.within_class_scatter(spread[labels], labels) < 1e-12
    assert collapse.within_class_scatter(spread[:1].expand(N, -1), labels) == 0.0
    # Two classes at ±e_1 and, within each, ±e_2 of equal size: exactly half of the variance lies within.
    h = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert collapse.within_class_scatter(h, torch.tensor([0, 0, 1, 1])) == pytest.approx(0.5)
