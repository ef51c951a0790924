"""How good frozen features are: linear probe, weighted k-NN, and agreement of clusters with classes and views."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor, nn


def linear_probe(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, max_iter: int = 3000
) -> tuple[float, bool]:
    """Test accuracy of logistic regression on features standardised by the training set, and whether it converged.

    Features are float `(N, width)`, labels int64 `(N,)`. L2 penalty of scikit-learn's default strength (C = 1), L-BFGS
    until no entry of the mean loss's gradient exceeds 1e-4 or `max_iter` steps are done. On features of a ResNet-8
    (20,000 x 128, condition number 175, and 9,600 when stretched) the accuracy on 10,000 images then was within 0.0004
    of that at 1e-5, a twelfth of its standard error, after three fifths of the steps or fewer.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    classes = train_y.unique()
    if len(classes) == 1:
        # Nothing to tell apart: the fit is exact, and it says that class of everything.
        return float((test_y == classes[0]).double().mean()), True
    mean, std = train_x.double().mean(0), train_x.double().std(0).clamp_min(1e-6)
    probe = LogisticRegression(tol=1e-4, max_iter=max_iter)
    with warnings.catch_warnings():
        # The result says whether it converged; a warning in the middle of a progress bar helps nobody.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(((train_x - mean) / std).numpy(), train_y.numpy())
    accuracy = float(probe.score(((test_x - mean) / std).numpy(), test_y.numpy()))
    return accuracy, bool(np.max(probe.n_iter_) < max_iter)


def knn(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, neighbours: int = 20, temperature: float = 0.1
) -> float:
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
    from sklearn.metrics import normalized_mutual_info_score

    return {
        "nmi": float(normalized_mutual_info_score(labels.numpy(), clusters.numpy())),
        "ami": adjusted_mutual_information(labels, clusters),
    }


def kmeans_nmi(features: Tensor, labels: Tensor, num_classes: int) -> float:
    """Normalised mutual information of the labels with k-means of the unit-length features, one cluster per class.

    Features are float `(N, width)`, labels int64 `(N,)`. A number of clusters that no method chooses makes methods
    comparable. The best of ten starts, of at most N clusters.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import normalized_mutual_info_score

    x = nn.functional.normalize(features.float(), dim=1).numpy()
    with warnings.catch_warnings():
        # Fewer distinct rows than clusters is what a collapse looks like.
        warnings.simplefilter("ignore", ConvergenceWarning)
        clusters = KMeans(min(num_classes, len(x)), n_init=10, random_state=0).fit(x).labels_
    return float(normalized_mutual_info_score(labels.numpy(), clusters))


def view_agreement(view_clusters: Tensor) -> float:
    """Adjusted mutual information between the clusters of two views of each image, int64 `(2, N)`.

    1 when clusters survive the augmentation, 0 when they agree no more than by chance, or say nothing because all
    images share one.
    """
    return adjusted_mutual_information(view_clusters[0], view_clusters[1])


def adjusted_mutual_information(a: Tensor, b: Tensor) -> float:
    """Mutual information of two labellings int64 `(N,)`, 0 at the level of chance and 1 when they are the same.

    scikit-learn's, except that labellings without anything to agree about have 0 and not 1: when one of them puts all
    samples together, or both put every sample by itself, any pairing of the samples gives the same table.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    sizes = [len(labelling.unique()) for labelling in (a, b)]
    if min(sizes) == 1 or min(sizes) == len(a):
        return 0.0
    return float(adjusted_mutual_info_score(a.numpy(), b.numpy()))
