"""train/evaluate.py: encoding, the summary, the file of embeddings, and the command on an untrained checkpoint."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import tyro
from running import build, make

from train import checkpoint, evaluate, files, methods
from train.config import Config
from train.data import load
from train.errors import InputError
from train.evaluation import arrays, collapse, quality, verdicts
from train.evaluation.measures import LABELS, MIXTURES

SHOWN = {name: label for name, label in LABELS.items() if name not in MIXTURES}


@pytest.fixture(scope="module")
def stored(tmp_path_factory, tiny):
    """A checkpoint of a run of which one epoch is recorded, its configuration and its method."""
    folder = tmp_path_factory.mktemp("run")
    options = ["--output-dir", str(folder), *tiny, "--device", "cpu"]
    config = tyro.cli(Config, args=options).resolved()
    method, optimiser = make(config)
    progress = checkpoint.Progress(step=3, history=[{"epoch": 1, "step": 3, "lr": 0.005, "loss": 2.5}])
    checkpoint.save(folder / "checkpoint.pt", config, progress, method, optimiser)
    return folder / "checkpoint.pt", config, method


def test_encode_is_independent_of_the_batch_and_leaves_the_method_training(tiny_config):
    config = tiny_config()
    method = build(config).train()
    images = load(config).test_images
    whole, pieces = evaluate.encode(method, images), evaluate.encode(method, images, batch_size=7)
    assert whole.features.shape == (60, 16) and whole.embeddings.shape == (60, 16) and whole.clusters.shape == (60,)
    assert torch.allclose(whole.features, pieces.features, atol=1e-5) and method.training
    assert torch.allclose(whole.features, evaluate.encode_features(method, images, batch_size=7), atol=1e-5)
    assert whole.clusters.dtype == torch.int64 and whole.clusters.min() >= 0 and whole.clusters.max() < 64
    assert whole.view_clusters is None


def test_views_follow_from_the_seed_and_leave_the_generator_alone(tiny_config):
    config = tiny_config()
    method, images = build(config).train(), load(config).test_images
    torch.manual_seed(3)
    first = evaluate.encode_views(config, method, images)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1)) and method.training
    assert first.shape == (2, 60) and first.dtype == torch.int64 and not torch.equal(first[0], first[1])
    assert torch.equal(first, evaluate.encode_views(config, method, images))
    other = dataclasses.replace(config, seed=1)
    assert not torch.equal(first, evaluate.encode_views(other, method, images))


@pytest.mark.parametrize("name", list(methods.METHODS))
def test_summary_of_every_method(tiny_config, name):
    config = tiny_config(method=name)
    data, method = load(config), build(config)
    summary, test = evaluate.judge(config, data, method)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert set(SHOWN) | {"mixture_scatter_10", "mixture_entropy_10", "verdicts"} == summary.keys()
    assert summary["num_clusters"] == method.num_clusters and summary["num_features"] == 16
    assert (summary["test_images"], summary["num_classes"]) == (60, 10)
    # Each number is of the arrays that it says it is of.
    assert summary["effective_rank"] == collapse.effective_rank(test.embeddings)
    assert summary["effective_rank_features"] == collapse.effective_rank(test.features) != summary["effective_rank"]
    assert summary["view_agreement"] == quality.view_agreement(test.view_clusters)
    assert summary["ami"] == quality.cluster_agreement(data.test_labels, test.clusters)["ami"]
    judged = {verdict: dataclasses.asdict(value) for verdict, value in verdicts.judge(summary).items()}
    assert summary["verdicts"] == judged and len(judged) == 4


def test_an_encoder_that_collapsed_is_found_out(tiny_config):
    config = tiny_config()
    data, method = load(config), build(config)
    for parameter in method.backbone.parameters():
        parameter.data.zero_()
    summary, _ = evaluate.judge(config, data, method)
    assert {name for name, v in summary["verdicts"].items() if v["collapsed"]} == set(verdicts.RULES)
    assert summary["view_agreement"] == 0 and summary["codes_used"] == 1 and summary["linear_probe"] < 0.2


def test_an_encoder_that_diverged_is_said(tiny_config):
    config = tiny_config()
    data, method = load(config), build(config)
    next(method.head.parameters()).data.fill_(float("nan"))
    with pytest.raises(InputError, match="The embeddings of 60 of 60 images were not finite"):
        evaluate.judge(config, data, method)


def example(views=True):
    encoded = evaluate.Encoded(
        torch.rand(6, 5), torch.rand(6, 4), torch.arange(6), torch.arange(12).reshape(2, 6) if views else None
    )
    return encoded, torch.arange(6) % 3, ["ant", "bee", "ça"]


@pytest.mark.parametrize("views", [True, False])
def test_embeddings_come_back(tmp_path, views):
    path = tmp_path / "embeddings.npz"
    encoded, labels, classes = example(views)
    evaluate.save_embeddings(path, encoded, labels, classes)
    assert [file.name for file in tmp_path.iterdir()] == ["embeddings.npz"]
    found = arrays.load(path)
    for field in dataclasses.fields(evaluate.Encoded):
        before, after = getattr(encoded, field.name), getattr(found, field.name)
        assert (before is after is None) or (torch.equal(before, after) and before.dtype == after.dtype), field.name
    assert torch.equal(labels, found.labels) and classes == found.classes
    with np.load(path, allow_pickle=False) as stored:
        assert stored["classes"].dtype.kind == "U" and stored["labels"].dtype == np.int64


def test_the_command_prints_and_writes_what_judge_says(stored, tmp_path, capsys):
    path, config, method = stored
    output = tmp_path / "out.json"
    assert evaluate.main([str(path), "--num-threads", "1", "--device", "cpu", "--output", str(output)]) == 0
    printed, written = capsys.readouterr().out, json.loads(output.read_text())
    summary = evaluate.judge(config, load(config), method)[0]
    assert written == summary | {"levels": method.lines(), "epochs": 1}
    assert "cplearn on digits, 1 of 2 epochs" in printed
    lines = {line.split()[0]: line for line in printed.splitlines() if line.startswith("  ")}
    assert f"{summary['linear_probe']:.4f}" in lines["linear_probe"] and "yes" in lines["linear_probe_converged"]
    assert lines["scatter"].split()[1] == f"{summary['mixture_scatter_10']:.4f}"
    for name, verdict in summary["verdicts"].items():
        assert lines[name].split()[1] == ("COLLAPSED" if verdict["collapsed"] else "no")
    assert len({lines[name].index(SHOWN[name]) for name in SHOWN}) == 1, "numbers end at different places"


@pytest.mark.parametrize("options, message", [
    (["MISSING"], "expected an existing file"),
    (["CUT"], "could not be read"),
    (["FOREIGN"], "could not be read (KeyError), expected a checkpoint of this program"),
    (["OTHER_FIELDS"], "has other fields (codes, num_codes)"),
    (["OTHER_WEIGHTS"], "holds other weights than its configuration says"),
    (["CIFAR10"], "--data-dir was gone, as in the run, expected an existing folder with the images of cifar10"),
    (["CIFAR10", "--data-dir", "nowhere"], "--data-dir was nowhere, expected an existing folder"),
    (["GOOD", "--num-threads", "0"], "--num-threads was 0, expected a whole number of at least 1"),
    (["GOOD", "--device", "abacus"], "--device was abacus, expected"),
    (["GOOD", "--output", "nowhere/out.json"], "--output was nowhere/out.json, expected the name of a file"),
])  # fmt: skip
def test_bad_input_is_one_sentence(stored, tmp_path, monkeypatch, fails, options, message):
    content, name, path = torch.load(stored[0], weights_only=True), options[0], tmp_path / "changed.pt"
    monkeypatch.chdir(tmp_path)
    changed = {
        "FOREIGN": lambda c: {"model": c["method"]},
        "OTHER_FIELDS": lambda c: c | {"config": {k.replace("num_codes", "codes"): v for k, v in c["config"].items()}},
        "OTHER_WEIGHTS": lambda c: c | {"method": dict(list(c["method"].items())[1:])},
        "CIFAR10": lambda c: c | {"config": c["config"] | {"dataset": "cifar10", "data_dir": "gone"}},
    }
    if name == "CUT":
        path.write_bytes(stored[0].read_bytes()[:2000])
    elif name != "MISSING":
        torch.save(changed.get(name, lambda c: c)(content), path)
    assert not fails(evaluate.main, [path, *options[1:]], message).out


def test_a_file_that_cannot_be_written_is_said(stored, tmp_path, monkeypatch, fails):
    monkeypatch.setattr(evaluate, "judge", lambda *_: ({"verdicts": {}, "knn": 0.5}, None))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_atomically", full)
    options = [stored[0], "--device", "cpu", "--output", tmp_path / "out.json"]
    fails(evaluate.main, options, "expected a file that can be written (No space left on device)")
