"""train/evaluate.py: cases whose answer is known, and the same functions at chance level on shuffled labels."""

import pytest
import torch

from train import evaluate, methods
from train.backbones import ResNet8
from train.data import load


@pytest.fixture
def blobs():
    """Four well separated groups around orthogonal directions: train (200, 8), test (80, 8) and their labels."""
    generator = torch.Generator().manual_seed(0)
    centres = 5 * torch.eye(4, 8)

    def draw(n):
        labels = torch.arange(n) % 4
        return centres[labels] + 0.3 * torch.randn(n, 8, generator=generator), labels

    return *draw(200), *draw(80)


@pytest.mark.parametrize("judge", [evaluate.knn, lambda *a: evaluate.linear_probe(*a)[0]])
def test_separable_blobs_are_solved_and_shuffled_labels_are_not(blobs, judge):
    train_x, train_y, test_x, test_y = blobs
    assert judge(*blobs) == 1.0
    shuffled = train_y[torch.randperm(200, generator=torch.Generator().manual_seed(1))]
    assert judge(train_x, shuffled, test_x, test_y) < 0.6
    assert judge(train_x, train_y, test_x, (test_y + 1) % 4) == 0.0


def test_near_neighbours_outvote_many_far_ones():
    train_x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [-0.1, 1.0]])
    train_y, test_x = torch.tensor([1, 0, 0, 0]), torch.tensor([[1.0, 0.2]])
    assert evaluate.knn(train_x, train_y, test_x, torch.tensor([1]), neighbours=4) == 1.0
    assert evaluate.knn(train_x, train_y, test_x, torch.tensor([1]), neighbours=4, temperature=100.0) == 0.0


def test_knn_counts_directions_and_not_lengths():
    train_x, train_y = torch.tensor([[100.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    assert evaluate.knn(train_x, train_y, torch.tensor([[1.0, 2.0]]), torch.tensor([1]), neighbours=1) == 1.0


def test_probe_standardises_and_says_whether_it_converged(blobs, monkeypatch):
    train_x, train_y, test_x, test_y = blobs
    scale = torch.logspace(-4, 4, 8)
    assert evaluate.linear_probe(train_x * scale, train_y, test_x * scale + 0, test_y) == (1.0, True)
    import sklearn.linear_model as linear_model
    original = linear_model.LogisticRegression
    monkeypatch.setattr(linear_model, "LogisticRegression", lambda max_iter: original(max_iter=1))
    assert evaluate.linear_probe(*blobs)[1] is False


def test_agreement_of_clusters():
    labels = torch.arange(400) % 4
    renamed = evaluate.cluster_agreement(labels, 7 - labels)
    assert renamed["nmi"] == pytest.approx(1) and renamed["ami"] == pytest.approx(1)
    assert evaluate.cluster_agreement(labels, torch.zeros(400, dtype=torch.int64))["nmi"] == pytest.approx(0)
    many = torch.randint(200, (400,), generator=torch.Generator().manual_seed(0))
    by_chance = evaluate.cluster_agreement(labels, many)
    assert by_chance["nmi"] > 0.2 and abs(by_chance["ami"]) < 0.05


def test_encode_is_independent_of_the_batch_and_leaves_the_method_training(tiny_config):
    config = tiny_config()
    method = methods.build(config, ResNet8(config.widths, config.stem_stride)).train()
    images = load(config).test_images
    whole, pieces = evaluate.encode(method, images), evaluate.encode(method, images, batch_size=7)
    assert whole.features.shape == (60, 16) and whole.embeddings.shape == (60, 16) and whole.clusters.shape == (60,)
    assert torch.allclose(whole.features, pieces.features, atol=1e-5) and method.training
    assert whole.clusters.dtype == torch.int64 and 0 <= whole.clusters.min() and whole.clusters.max() < 64
