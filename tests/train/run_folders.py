"""Finished runs for the tests of the report, written file by file: no test has to train."""

import json
from pathlib import Path

import numpy as np

N, F, CLASSES = 60, 8, ["cat", "dog", "ship"]
CONFIG = {"dataset": "digits", "epochs": 2, "batch_size": 32, "seed": 0, "prior": "reverse_kl", "lr": 0.005}
SUMMARY = json.loads("""{
"linear_probe": 0.9125, "linear_probe_converged": true, "knn": 0.8625, "nmi": 0.5125, "ami": 0.4125,
"kmeans_nmi": 0.3125, "view_agreement": 0.2125, "codes_used": 3, "perplexity": 3.125, "num_clusters": 64,
"effective_rank": 7.125, "effective_rank_features": 3.75, "embedding_std": 0.3475, "within_class_scatter": 0.9525,
"mixture_scatter_10": 0.6125, "mixture_entropy_10": -0.4125, "test_images": 60, "num_features": 8, "num_classes": 3,
"images_per_second": 12.5, "seconds_training": 3.5, "loss_fraction_of_step": 0.25,
"levels": {"log c": 4.16, "floor": 0.69}}""")
METRICS = """{"epoch": 1, "step": 3, "lr": 0.1, "loss": 4.0, "prior": 1.0, "invariance": 3.0}
{"epoch": 2, "step": 6, "lr": 0.1, "loss": 3.0, "prior": 2.0, "invariance": 2.0}
"""


def labels() -> np.ndarray:
    """int64 (N,): cat, dog, ship, cat, ..."""
    return np.arange(N) % len(CLASSES)


def spread(seed: int = 0) -> np.ndarray:
    """Embeddings float32 (N, F) without any structure."""
    return np.random.default_rng(seed).normal(size=(N, F)).astype(np.float32)


def collapsed() -> np.ndarray:
    """Embeddings float32 (N, F) that are one point for each class."""
    return np.eye(F, dtype=np.float32)[labels()]


def write_run(folder: Path, embeddings: np.ndarray, *, method="cplearn", summary=(), config=()) -> Path:
    """The files of a finished run in `folder`, which is made; keywords replace single values. Returns the folder."""
    folder.mkdir(parents=True)
    clusters = labels() * 7
    known = dict(labels=labels(), classes=np.array(CLASSES), clusters=clusters, view_clusters=np.stack([clusters] * 2))
    np.savez_compressed(folder / "embeddings.npz", embeddings=embeddings, features=embeddings[:, :4], **known)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"method": method} | dict(config)))
    (folder / "summary.json").write_text(json.dumps(SUMMARY | dict(summary)))
    (folder / "metrics.jsonl").write_text(METRICS)
    return folder
