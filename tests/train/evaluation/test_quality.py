"""train/evaluation/quality.py: cases whose answer is known, and chance level on shuffled labels."""

import pytest
import torch

from train.evaluation import quality


@pytest.fixture
def blobs():
    """Four well separated groups around orthogonal directions: train (200, 8), test (80, 8) and their labels."""
    generator = torch.Generator().manual_seed(0)
    centres = 5 * torch.eye(4, 8)

    def draw(n):
        labels = torch.arange(n) % 4
        return centres[labels] + 0.3 * torch.randn(n, 8, generator=generator), labels

    return *draw(200), *draw(80)


@pytest.mark.parametrize("judge", [quality.knn, lambda *a: quality.linear_probe(*a)[0]])
def test_separable_blobs_are_solved_and_shuffled_labels_are_not(blobs, judge):
    train_x, train_y, test_x, test_y = blobs
    assert judge(*blobs) == 1.0
    shuffled = train_y[torch.randperm(200, generator=torch.Generator().manual_seed(1))]
    assert judge(train_x, shuffled, test_x, test_y) < 0.6
    assert judge(train_x, train_y, test_x, (test_y + 1) % 4) == 0.0


def test_near_neighbours_outvote_many_far_ones():
    train_x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [-0.1, 1.0]])
    train_y, test_x = torch.tensor([1, 0, 0, 0]), torch.tensor([[1.0, 0.2]])
    assert quality.knn(train_x, train_y, test_x, torch.tensor([1]), neighbours=4) == 1.0
    assert quality.knn(train_x, train_y, test_x, torch.tensor([1]), neighbours=4, temperature=100.0) == 0.0


def test_knn_counts_directions_and_not_lengths():
    train_x, train_y = torch.tensor([[100.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    assert quality.knn(train_x, train_y, torch.tensor([[1.0, 2.0]]), torch.tensor([1]), neighbours=1) == 1.0


def test_probe_standardises_by_the_training_set_and_says_whether_it_converged(blobs):
    train_x, train_y, test_x, test_y = blobs
    scale, offset = torch.logspace(-4, 4, 8), torch.arange(8) * 100.0
    assert quality.linear_probe(train_x * scale + offset, train_y, test_x * scale + offset, test_y) == (1.0, True)
    # Test rows of one class only: standardised by themselves, they would lose what tells the class.
    assert quality.linear_probe(train_x, train_y, test_x[test_y == 2], test_y[test_y == 2]) == (1.0, True)
    assert quality.linear_probe(*blobs, max_iter=1)[1] is False


def test_probe_of_overlapping_classes_finds_the_best_cut():
    """Two overlapping classes in one dimension, 4,000 rows: the accuracy is that of the best cut, 84 %."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(4000) % 2
    x = (2.0 * y - 1)[:, None] + torch.randn(4000, 1, generator=generator)
    accuracy, converged = quality.linear_probe(x[:2000], y[:2000], x[2000:], y[2000:])
    assert accuracy == pytest.approx(0.8413, abs=0.02) and converged


def test_probe_of_one_class_says_that_class(blobs):
    train_x, _, test_x, test_y = blobs
    assert quality.linear_probe(train_x, torch.full((200,), 2), test_x, test_y) == (0.25, True)


def test_agreement_of_clusters():
    labels = torch.arange(400) % 4
    renamed = quality.cluster_agreement(labels, 7 - labels)
    assert renamed["nmi"] == pytest.approx(1) and renamed["ami"] == pytest.approx(1)
    assert quality.cluster_agreement(labels, torch.zeros(400, dtype=torch.int64))["nmi"] == pytest.approx(0)
    many = torch.randint(200, (400,), generator=torch.Generator().manual_seed(0))
    by_chance = quality.cluster_agreement(labels, many)
    assert by_chance["nmi"] > 0.2 and abs(by_chance["ami"]) < 0.05


def test_kmeans_finds_blobs_by_direction_and_not_by_length(blobs):
    _, _, x, y = blobs
    lengths = 10 ** torch.linspace(-2, 2, 80)[torch.randperm(80, generator=torch.Generator().manual_seed(0))]
    assert quality.kmeans_nmi(x * lengths[:, None], y, 4) == pytest.approx(1)
    shuffled = y[torch.randperm(80, generator=torch.Generator().manual_seed(1))]
    assert quality.kmeans_nmi(x, shuffled, 4) < 0.2
    # Two clusters can tell no more than half of four classes; equal rows nothing; fewer rows than classes are allowed.
    assert quality.kmeans_nmi(x, y, 2) < 0.85
    assert quality.kmeans_nmi(torch.ones(80, 3), y, 4) == pytest.approx(0)
    assert quality.kmeans_nmi(x[:3], y[:3], 10) == pytest.approx(1)


def test_views_agree_when_clusters_survive_and_not_by_chance():
    generator = torch.Generator().manual_seed(0)
    clusters = torch.randint(20, (500,), generator=generator)
    assert quality.view_agreement(torch.stack([clusters, clusters])) == pytest.approx(1)
    assert quality.view_agreement(torch.stack([clusters, 19 - clusters])) == pytest.approx(1)
    other = torch.randint(20, (500,), generator=generator)
    assert abs(quality.view_agreement(torch.stack([clusters, other]))) < 0.05
    half = torch.where(torch.arange(500) % 2 == 0, clusters, other)
    assert 0.1 < quality.view_agreement(torch.stack([clusters, half])) < 0.6


@pytest.mark.parametrize("clusters", [torch.zeros(50, dtype=torch.int64), torch.arange(50)])
def test_views_that_cannot_differ_do_not_agree(clusters):
    """All images in one cluster, or each in its own: scikit-learn calls both a perfect match."""
    from sklearn.metrics import adjusted_mutual_info_score

    assert adjusted_mutual_info_score(clusters.numpy(), clusters.numpy()) == pytest.approx(1)
    assert quality.view_agreement(torch.stack([clusters, clusters])) == 0.0
    assert quality.adjusted_mutual_information(torch.arange(50) % 5, clusters) == pytest.approx(0, abs=1e-9)
