"""How good frozen features are: linear probe, weighted k-NN, and agreement of the clusters with the classes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from train import collapse
from train.config import Config
from train.data import Images


@dataclass(frozen=True)
class Encoded:
    """What a method makes of images: features `(N, width)`, embeddings `(N, f)`, clusters int64 `(N,)`, on the CPU."""

    features: Tensor
    embeddings: Tensor
    clusters: Tensor


def judge(config: Config, data: Images, method: nn.Module) -> tuple[dict[str, Any], Encoded]:
    """Every measure of a trained method, and its encoded test images.

    Probe and k-NN learn from the training images' features; everything else is measured on the test images.
    """
    train, test = encode(method, data.train_images), encode(method, data.test_images)
    train_y, test_y = data.train_labels.cpu(), data.test_labels.cpu()
    probe, converged = linear_probe(train.features, train_y, test.features, test_y)
    counts = collapse.code_counts(test.clusters)
    return {
        "linear_probe": probe,
        "linear_probe_converged": converged,
        "knn": knn(train.features, train_y, test.features, test_y, neighbours=config.knn_neighbours),
        **cluster_agreement(test_y, test.clusters),
        "codes_used": len(counts),
        "perplexity": collapse.perplexity(counts),
        "effective_rank": collapse.effective_rank(test.embeddings),
        "effective_rank_features": collapse.effective_rank(test.features),
        "embedding_std": collapse.embedding_std(test.embeddings),
        "within_class_scatter": collapse.within_class_scatter(test.embeddings, test_y),
        "test_images": len(test_y),
    }, test


@torch.no_grad()
def encode(method: nn.Module, images: Tensor, batch_size: int = 500) -> Encoded:
    """Encode images uint8 `(N, 3, 32, 32)` without augmentation; batch norm uses its running statistics."""
    was_training = method.training
    method.eval()
    features, embeddings, clusters = [], [], []
    for batch in images.split(batch_size):
        x = method.backbone(batch.float() / 255)
        h = method.head(x)
        features.append(x.float().cpu())
        embeddings.append(h.float().cpu())
        clusters.append(method.assign(h).cpu())
    method.train(was_training)
    return Encoded(torch.cat(features), torch.cat(embeddings), torch.cat(clusters))


def linear_probe(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> tuple[float, bool]:
    """Test accuracy of logistic regression on features standardised by the training set, and whether it converged.

    Features are float `(N, width)`, labels int64 `(N,)`. L2 penalty of scikit-learn's default strength (C = 1).
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, std = train_x.mean(0), train_x.std(0).clamp_min(1e-6)
    probe = LogisticRegression(max_iter=3000)
    with warnings.catch_warnings():
        # The result says whether it converged; a warning in the middle of a progress bar helps nobody.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(((train_x - mean) / std).numpy(), train_y.numpy())
    accuracy = float(probe.score(((test_x - mean) / std).numpy(), test_y.numpy()))
    return accuracy, bool(np.max(probe.n_iter_) < probe.max_iter)


def knn(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, neighbours: int = 20,
        temperature: float = 0.1) -> float:
    """Test accuracy of k nearest neighbours by cosine, each voting with weight exp(cosine / temperature).

    Features are float `(N, width)`, labels int64 `(N,)`. At most as many neighbours as there are training rows vote.
    """
    train_x, test_x = (nn.functional.normalize(x.float(), dim=1) for x in (train_x, test_x))
    classes, correct = int(train_y.max()) + 1, 0
    # 256 rows against 50,000 are 50 MB, so the full table of similarities is never needed.
    for x, y in zip(test_x.split(256), test_y.split(256)):
        similarity, index = (x @ train_x.T).topk(min(neighbours, len(train_x)), dim=1)
        votes = torch.zeros(len(x), classes).scatter_add_(1, train_y[index], (similarity / temperature).exp())
        correct += int((votes.argmax(1) == y).sum())
    return correct / len(test_y)


def cluster_agreement(labels: Tensor, clusters: Tensor) -> dict[str, float]:
    """`nmi` and `ami` between classes and clusters, both int64 `(N,)`.

    Normalised mutual information grows with the number of clusters even at random; the adjusted one subtracts that.
    """
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    a, b = labels.numpy(), clusters.numpy()
    return {"nmi": float(normalized_mutual_info_score(a, b)), "ami": float(adjusted_mutual_info_score(a, b))}
