"""train/reporting/sources.py: each kind of RUN is read, names differ, and what cannot be used is said."""

import json

import numpy as np
import pytest
import run_folders
from refusals import refused
from running import make

from train import checkpoint
from train.checkpoint import Progress
from train.errors import InputError
from train.reporting import sources

HISTORY = [{"epoch": 1, "step": 3, "lr": 0.1, "loss": 4.0, "prior": 1.0, "invariance": 3.0}]


@pytest.fixture
def run(tmp_path):
    return run_folders.write_run(tmp_path / "run", run_folders.spread())


def test_a_finished_run_is_read_from_its_files(run):
    (source,) = sources.read([run])
    assert source.name == "run" and source.config["method"] == "cplearn" and source.summary["knn"] == 0.8625
    assert source.levels == {"log c": 4.16, "floor": 0.69} and [row["loss"] for row in source.history] == [4.0, 3.0]
    assert np.array_equal(source.embeddings.numpy(), run_folders.spread()) and source.features.shape == (60, 4)
    assert source.labels.tolist() == run_folders.labels().tolist() and source.classes == ["cat", "dog", "ship"]
    assert source.clusters.tolist() == (run_folders.labels() * 7).tolist() and source.view_clusters.shape == (2, 60)


def test_verdicts_follow_from_the_measures_and_not_from_what_was_stored(tmp_path):
    summary = {"embedding_std": 0.01, "verdicts": {"representation": {"collapsed": False}}}
    folder = run_folders.write_run(tmp_path / "run", run_folders.spread(), summary=summary)
    assert sources.read([folder])[0].verdicts()["representation"].collapsed is True


def test_a_checkpoint_is_evaluated(tiny_config):
    config = tiny_config()
    config.output_dir.mkdir()
    method, optimiser = make(config)
    path = config.output_dir / "checkpoint.pt"
    checkpoint.save(path, config, Progress(step=3, history=HISTORY), method, optimiser)
    (source,) = sources.read([path], device="cpu")
    assert source.name == "run/checkpoint.pt" and source.history == HISTORY and source.levels == method.lines()
    assert source.embeddings.shape == (60, 16) and source.features.shape == (60, 16) and len(source.labels) == 60
    assert source.summary["num_clusters"] == 64 and 0 <= source.summary["knn"] <= 1
    assert source.config["num_codes"] == 64 and source.classes == list("0123456789")


def test_arrays_take_the_labels_given(tmp_path):
    np.save(tmp_path / "a.npy", run_folders.spread())
    np.save(tmp_path / "y.npy", run_folders.labels())
    (without,) = sources.read([tmp_path / "a.npy"])
    assert without.labels is None and without.why_absent("within_class_scatter") == "the array holds no labels"
    assert without.why_absent("mixture_scatter_50") == "a mixture of 50 takes at least 250 rows, and there are 60"
    (with_labels,) = sources.read([tmp_path / "a.npy"], tmp_path / "y.npy")
    assert with_labels.classes == ["0", "1", "2"] and with_labels.summary["within_class_scatter"] > 0.5


def test_names_are_as_short_as_they_can_be(tmp_path):
    def names(*paths):
        return sources.distinct_names([tmp_path / path for path in paths])

    assert names("x/run", "x/other") == ["run", "other"]
    assert names("x/run", "y/run", "z/w") == ["x/run", "y/run", "w"]
    assert names("p/x/run", "q/x/run") == ["p/x/run", "q/x/run"]
    assert names("a.npy", "a.npz") == ["a.npy", "a.npz"]
    assert names("x/checkpoint.pt", "y/embeddings.npz") == ["x/checkpoint.pt", "y/embeddings.npz"]


def refuses(*words, **options):
    assert refused(lambda: sources.read(**options), InputError, *words).endswith(".")


def test_what_cannot_be_used_is_said(run, tmp_path):
    refuses("none", "does not exist", runs=[tmp_path / "none"])
    refuses("was given twice", runs=[run, run / ".." / "run"])
    refuses("--labels was", "an array without labels", runs=[run], labels=tmp_path / "y.npy")
    (tmp_path / "text").write_text("no checkpoint")
    refuses("text could not be read", "expected a checkpoint", runs=[tmp_path / "text"])
    refuses("holds no summary.json", "expected the output directory of a finished run", runs=[tmp_path])


def test_an_unfinished_run_says_how_to_go_on(run):
    (run / "summary.json").unlink()
    (run / "checkpoint.pt").write_bytes(b"")
    refuses("holds a checkpoint but no summary.json", "--resume", f"give {run / 'checkpoint.pt'}", runs=[run])


@pytest.mark.parametrize("name, text, words", [
    ("summary.json", '{"knn": ', "expected a JSON object"),
    ("summary.json", "[1]", "held a JSON list"),
    ("config.json", None, "FileNotFoundError"),
    ("embeddings.npz", None, "holds no embeddings.npz"),
    ("embeddings.npz", "x", "expected a NumPy file"),
    ("metrics.jsonl", "{}\n", "a line without epoch or loss"),
    ("metrics.jsonl", "[]\n", "expected one JSON object per epoch"),
    ("metrics.jsonl", "{", "JSONDecodeError"),
])  # fmt: skip
def test_damaged_runs_are_said(run, name, text, words):
    if text is None:
        (run / name).unlink()
    else:
        (run / name).write_text(text)
    refuses(name, words, runs=[run])


def test_a_run_without_a_finished_epoch_says_so(run):
    (run / "metrics.jsonl").write_text("")
    (source,) = sources.read([run])
    assert source.history == [] and source.why_absent("history") == "no epoch is finished"
    assert json.loads((run / "summary.json").read_text())["knn"] == source.summary["knn"]
