"""train/evaluation/arrays.py: what is read from NumPy files, what is rejected and in which words, what is measured."""

import numpy as np
import pytest
import run_folders
import torch
from refusals import refused

from train.errors import InputError
from train.evaluation import arrays, collapse

N, F = run_folders.N, run_folders.F


def saved(tmp_path, **stored):
    np.savez(tmp_path / "a.npz", **stored)
    return tmp_path / "a.npz"


def test_a_bare_array_is_read_and_measured(tmp_path):
    h = run_folders.spread()
    np.save(tmp_path / "a.npy", h.astype(np.float64))
    content = arrays.load(tmp_path / "a.npy")
    assert content.embeddings.dtype == torch.float32 and np.array_equal(content.embeddings.numpy(), h)
    summary, absent = arrays.measure(content)
    assert summary["embedding_std"] == collapse.embedding_std(torch.from_numpy(h))
    assert summary["effective_rank"] == collapse.effective_rank(torch.from_numpy(h))
    assert summary["mixture_scatter_10"] == collapse.mixture_measures(torch.from_numpy(h))["mixture_scatter_10"]
    assert (summary["test_images"], summary["num_features"]) == (N, F)
    assert set(absent) == set(
        "linear_probe knn history effective_rank_features kmeans_nmi labels nmi ami within_class_scatter clusters "
        "codes_used perplexity view_agreement num_clusters num_classes".split()
    )
    assert not set(absent) & set(summary)


def test_everything_in_a_npz_file_is_measured(tmp_path):
    h, y = run_folders.collapsed(), run_folders.labels()
    clusters = dict(clusters=y * 5, num_clusters=16, view_clusters=np.stack([y, np.zeros_like(y)]))
    path = saved(tmp_path, embeddings=h, features=h[:, :4], labels=y, classes=np.array(run_folders.CLASSES), **clusters)
    content = arrays.load(path)
    summary, absent = arrays.measure(content)
    assert set(absent) == {"linear_probe", "knn", "history"}
    assert summary["nmi"] == summary["ami"] == pytest.approx(1) and summary["kmeans_nmi"] == pytest.approx(1)
    assert summary["perplexity"] == pytest.approx(3) and summary["codes_used"] == 3 and summary["num_clusters"] == 16
    assert summary["within_class_scatter"] == 0 and summary["num_classes"] == 3
    assert summary["view_agreement"] == 0
    assert content.classes == run_folders.CLASSES and not content.labels_given


def test_labels_of_another_file_are_numbered_from_zero_and_named_by_their_values(tmp_path):
    np.save(tmp_path / "a.npy", run_folders.spread())
    np.save(tmp_path / "y.npy", np.array([7, 3, 900])[run_folders.labels()])
    content = arrays.load(tmp_path / "a.npy", tmp_path / "y.npy")
    assert content.labels_given and content.classes == ["3", "7", "900"]
    assert content.labels[:3].tolist() == [1, 0, 2]
    own = saved(tmp_path, embeddings=run_folders.spread(), labels=run_folders.labels())
    assert not arrays.load(own, tmp_path / "y.npy").labels_given


def bad(name, value):
    good = {"embeddings": run_folders.spread(), "labels": run_folders.labels()}
    return good | {name: value}


def with_nan(row):
    h = run_folders.spread()
    h[row : row + 2, 1] = np.nan
    return h


@pytest.mark.parametrize("stored, words", [
    (bad("embeddings", np.ones(N)), "embeddings in {path} had shape (60,), expected (N, f) with N of at least 2."),
    (bad("embeddings", np.ones((1, 4))), "had shape (1, 4), expected (N, f)"),
    (bad("embeddings", np.ones((N, 0))), "had shape (60, 0), expected (N, f)"),
    (bad("embeddings", np.ones((N, F), int)), "had type int64, expected float16, float32 or float64."),
    (bad("embeddings", with_nan(17)), "had 2 rows with NaN or infinity in float32, the first of them row 17,"),
    (bad("embeddings", np.full((N, F), 1e300)), "had 60 rows with NaN or infinity in float32"),
    (bad("features", np.ones((N - 1, 4))), "features in {path} had shape (59, 4), expected (60, width)"),
    (bad("labels", np.zeros(57, int)), "labels in {path} had shape (57,), expected (60,), one for each embedding."),
    (bad("labels", np.zeros(N)), "labels in {path} had type float64, expected whole numbers."),
    (bad("labels", np.full(N, -1)), "labels in {path} went down to -1, expected numbers of at least 0."),
    (bad("classes", np.array(["a", "b"])), "labels in {path} went up to 2, expected numbers below 2,"),
    (bad("classes", np.arange(3)), "classes in {path} had type int64 and shape (3,), expected (K,) strings."),
    (bad("view_clusters", np.zeros(N, int)), "view_clusters in {path} had shape (60,), expected (2, 60)"),
    (bad("clusters", np.full(N, 9)) | {"num_clusters": 9}, "clusters in {path} went up to 9, expected numbers"),
    (bad("num_clusters", np.ones(2, int)), "num_clusters in {path} had shape (2,), expected (), a single number."),
    ({"h": np.ones((N, F))}, "{path} held none of the arrays that are read, expected an array named embeddings"),
])  # fmt: skip
def test_what_is_wrong_is_said(tmp_path, stored, words):
    path = saved(tmp_path, **stored)
    assert refused(lambda: arrays.load(path), InputError, words.replace("{path}", str(path))).endswith(".")


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    np.save(tmp_path / "a.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", embeddings=np.array([Trap()], dtype=object))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(InputError, match="Object arrays cannot be loaded"):
            arrays.load(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00", b"PK\x03\x04 cut"])
@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_damaged_files_are_said(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="could not be read .*expected a NumPy file of plain numbers"):
        arrays.load(tmp_path / name)


def test_labels_must_fit_and_be_npy(tmp_path):
    np.save(tmp_path / "a.npy", run_folders.spread())
    np.save(tmp_path / "y.npy", np.zeros(3, int))
    with pytest.raises(InputError, match=r"labels in .*y.npy had shape \(3,\), expected \(60,\)"):
        arrays.load(tmp_path / "a.npy", tmp_path / "y.npy")
    with pytest.raises(InputError, match="--labels was .*y.csv, expected a .npy file"):
        arrays.load(tmp_path / "a.npy", tmp_path / "y.csv")
    with pytest.raises(InputError, match="none.npy could not be read .*No such file"):
        arrays.load(tmp_path / "a.npy", tmp_path / "none.npy")
