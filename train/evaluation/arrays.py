"""Embeddings from a NumPy file: reading, checking, and every measure that they allow."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.errors import InputError
from train.evaluation import collapse, quality

KEYS = ("embeddings", "features", "clusters", "labels", "classes", "view_clusters", "num_clusters")


@dataclass(frozen=True)
class Content:
    """What a NumPy file holds, checked: tensors on the CPU, None where there is nothing."""

    embeddings: Tensor
    features: Tensor | None
    clusters: Tensor | None
    labels: Tensor | None
    classes: list[str]
    view_clusters: Tensor | None
    num_clusters: int | None
    """How many clusters there could have been."""
    labels_given: bool
    """Whether the labels are those of the separate file."""


def load(path: Path, labels: Path | None = None) -> Content:
    """Read a .npy file with float embeddings `(N, f)`, or a .npz file with any of the arrays named in `KEYS`.

    In a .npz file only `embeddings` is required. `features` are float `(N, width)`; `clusters` and `labels` int `(N,)`;
    `view_clusters` int `(2, N)`; `classes` strings, one for each value of a label; `num_clusters` one int.

    Args:
        path: the file; never unpickled.
        labels: .npy file with int `(N,)`, used unless `path` holds labels itself.

    Raises:
        InputError: a file cannot be read, or an array has another shape, type or length, or is not finite.
    """
    stored = _stored(path)
    if "embeddings" not in stored:
        raise InputError(
            f"{path} held {', '.join(stored) or 'none of the arrays that are read'}, expected an array "
            f"named embeddings (and, where there are any, {', '.join(KEYS[1:])})."
        )
    embeddings = _matrix(path, "embeddings", stored["embeddings"])
    n = len(embeddings)
    features = _matrix(path, "features", stored["features"], n) if "features" in stored else None
    given = labels is not None and "labels" not in stored
    label_path = labels if given else path
    if given:
        if labels.suffix != ".npy":
            raise InputError(f"--labels was {labels}, expected a .npy file.")
        stored["labels"] = _stored(labels)["embeddings"]
    whole = {
        name: _whole_numbers(label_path if name == "labels" else path, name, stored[name], shape)
        for name, shape in (("clusters", (n,)), ("labels", (n,)), ("view_clusters", (2, n)), ("num_clusters", ()))
        if name in stored
    }
    classes, numbers = _classes(path, label_path, stored.get("classes"), whole.get("labels"))
    num_clusters = int(whole["num_clusters"]) if "num_clusters" in whole else None
    for name in ("clusters", "view_clusters"):
        if num_clusters is not None and name in whole and int(whole[name].max()) >= num_clusters:
            raise InputError(
                f"{name} in {path} went up to {int(whole[name].max())}, expected numbers below its "
                f"num_clusters, {num_clusters}."
            )
    return Content(
        embeddings, features, whole.get("clusters"), numbers, classes, whole.get("view_clusters"), num_clusters, given
    )


def measure(content: Content) -> tuple[dict[str, Any], dict[str, str]]:
    """The measures that the arrays allow, named as in a run's summary; and for the others the reason, as a clause."""
    h, clusters, labels = content.embeddings, content.clusters, content.labels
    summary: dict[str, Any] = {
        "test_images": len(h),
        "num_features": h.shape[1],
        "embedding_std": collapse.embedding_std(h),
        "effective_rank": collapse.effective_rank(h),
        **collapse.mixture_measures(h),
    }
    no_training = "it learns from the training images, and an array holds those of the test only"
    absent = {"linear_probe": no_training, "knn": no_training, "history": "an array has no history of training"}

    if content.features is None:
        absent |= dict.fromkeys(("kmeans_nmi", "effective_rank_features"), "the array holds no features")
    else:
        summary["effective_rank_features"] = collapse.effective_rank(content.features)
    if labels is None:
        absent |= dict.fromkeys(
            ("labels", "num_classes", "nmi", "ami", "kmeans_nmi", "within_class_scatter"), "the array holds no labels"
        )
    else:
        summary["num_classes"] = len(content.classes)
        summary["within_class_scatter"] = collapse.within_class_scatter(h, labels)
        if content.features is not None:
            summary["kmeans_nmi"] = quality.kmeans_nmi(content.features, labels, len(content.classes))
    if clusters is None:
        absent |= dict.fromkeys(("clusters", "nmi", "ami", "codes_used", "perplexity"), "the array holds no clusters")
    else:
        counts = collapse.code_counts(clusters)
        summary |= {"codes_used": len(counts), "perplexity": collapse.perplexity(counts)}
        if labels is not None:
            summary |= quality.cluster_agreement(labels, clusters)
    if content.num_clusters is None:
        absent["num_clusters"] = "the array does not say, as num_clusters, how many there could have been"
    else:
        summary["num_clusters"] = content.num_clusters
    if content.view_clusters is None:
        absent["view_agreement"] = "the array holds no clusters of two views"
    else:
        summary["view_agreement"] = quality.view_agreement(content.view_clusters)
    return summary, absent


def _stored(path: Path) -> dict[str, np.ndarray]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"embeddings": loaded}
        with loaded:
            return {name: loaded[name] for name in KEYS if name in loaded}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise InputError(f"{path} could not be read ({reason}), expected a NumPy file of plain numbers.") from None


def _matrix(path: Path, name: str, value: np.ndarray, rows: int | None = None) -> Tensor:
    if value.ndim != 2 or len(value) < 2 or value.shape[1] < 1 or rows not in (None, len(value)):
        expected = "(N, f) with N of at least 2" if rows is None else f"({rows}, width), a row for each embedding"
        raise InputError(f"{name} in {path} had shape {value.shape}, expected {expected}.")
    if value.dtype.kind != "f":
        raise InputError(f"{name} in {path} had type {value.dtype}, expected float16, float32 or float64.")
    with np.errstate(over="ignore"):
        value = value.astype(np.float32)
    bad = ~np.isfinite(value).all(axis=1)
    if bad.any():
        raise InputError(
            f"{name} in {path} had {bad.sum()} rows with NaN or infinity in float32, the first of them "
            f"row {bad.argmax()}, expected finite numbers."
        )
    return torch.from_numpy(value)


def _whole_numbers(path: Path, name: str, value: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    if value.shape != shape:
        each = ", one for each embedding" if shape else ", a single number"
        raise InputError(f"{name} in {path} had shape {value.shape}, expected {shape}{each}.")
    if value.dtype.kind not in "iu":
        raise InputError(f"{name} in {path} had type {value.dtype}, expected whole numbers.")
    if value.min() < 0:
        raise InputError(f"{name} in {path} went down to {value.min()}, expected numbers of at least 0.")
    return torch.from_numpy(np.asarray(value).astype(np.int64))


def _classes(
    path: Path, label_path: Path, names: np.ndarray | None, labels: Tensor | None
) -> tuple[list[str], Tensor | None]:
    """Names of the classes, and the labels as numbers of those names."""
    if labels is None:
        return [], None
    if names is None or label_path != path:
        values, numbers = labels.unique(return_inverse=True)
        return [str(int(value)) for value in values], numbers
    if names.ndim != 1 or names.dtype.kind != "U":
        raise InputError(f"classes in {path} had type {names.dtype} and shape {names.shape}, expected (K,) strings.")
    if int(labels.max()) >= len(names):
        raise InputError(
            f"labels in {path} went up to {int(labels.max())}, expected numbers below {len(names)}, the "
            f"number of its classes."
        )
    return [str(name) for name in names], labels
