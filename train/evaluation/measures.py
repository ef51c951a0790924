"""What the measures in a run's summary are called, and which collapse each of them shows."""

from train.evaluation.collapse import MIXTURE_SIZES

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
_OF_MIXTURES = {
    "scatter": "share of the variance within the {} components of a mixture",
    "entropy": "entropy within the {} components of a mixture, less that of one Gaussian (nats per dimension)",
}
MIXTURES = {
    f"mixture_{kind}_{size}": ("intracluster", label.format(size))
    for kind, label in _OF_MIXTURES.items()
    for size in MIXTURE_SIZES
}
COUNTS = {
    "linear_probe_converged": "whether the probe's training reached its tolerance",
    "num_clusters": "clusters that there are",
    "test_images": "images measured",
    "num_features": "length of an embedding",
    "num_classes": "classes among the labels",
}
LABELS = QUALITY | {name: label for name, (_, label) in (COLLAPSE | MIXTURES).items()} | COUNTS
"""Every measure by its name in a summary."""
