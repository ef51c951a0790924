"""train/__main__.py: a whole run with its files, the seed, and bad input on the command line."""

import dataclasses
import json
import re

import pytest
from matplotlib.figure import Figure
from running import ROOT, go, rows

from train import loop
from train.__main__ import main
from train.config import Config
from train.reporting import planar


def test_a_whole_run_leaves_every_file(tiny_options, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(planar, "maps", lambda sources: Figure())  # t-SNE is the slowest part of a tiny run
    assert main(tiny_options) == 0
    folder = tmp_path / "run"
    expected = "checkpoint.pt config.json embeddings.npz metrics.jsonl report.html summary.json"
    assert sorted(path.name for path in folder.iterdir()) == [".lock", *expected.split()]
    summary = json.loads((folder / "summary.json").read_text())
    for name in (
        "linear_probe knn nmi codes_used effective_rank seconds images_per_second loss_fraction_of_step perplexity "
        "embedding_std"
    ).split():
        assert summary[name] >= 0, name
    assert sum(value for name, value in summary.items() if name.endswith("_of_step")) == pytest.approx(1)
    assert [row["epoch"] for row in rows(folder)] == [1, 2]
    assert {"loss", "prior", "invariance", "lr"} <= rows(folder)[0].keys()
    config = json.loads((folder / "config.json").read_text())
    assert config["num_codes"] == 64 and config["crop_scale"] is not None
    assert "linear_probe" in capsys.readouterr().out


def test_the_seed_decides_the_numbers(tiny_options, tmp_path, unbroken):
    texts = [(unbroken() / "metrics.jsonl").read_text()]
    for seed in ("0", "1"):
        assert go([*tiny_options, "--overwrite", "--seed", seed]) == 0
        texts.append((tmp_path / "run" / "metrics.jsonl").read_text())
    assert texts[0] == texts[1] != texts[2]


def test_a_run_is_not_written_over_unasked(tiny_options, tmp_path, fails):
    options = [*tiny_options, "--epochs", "1"]
    assert go(options) == 0
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    fails(go, options, "already holds a run", "--resume", "--overwrite")
    fails(go, [*options, "--overwrite", "--batch-size", "97"], "97", "96")
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    fails(go, [*options, "--resume", "--seed", "5"], "seed (0 in the checkpoint, 5 now)")
    assert go([*options, "--overwrite", "--seed", "5"]) == 0


def test_bad_input_is_one_sentence_before_any_work(tiny_options, tmp_path, fails, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("training began"))
    cifar10 = [*tiny_options, "--dataset", "cifar10"]
    fails(main, [*tiny_options, "--resume"], "--resume", "expected a checkpoint")
    fails(main, cifar10, "--data-dir", "CIFAR-10")
    fails(main, [*cifar10, "--data-dir", tmp_path / "none"], "none", "existing folder")
    fails(main, [*tiny_options, "--eps", "0.5"], "0.5")
    fails(main, [*tiny_options, "--backend", "abacus"], "abacus")
    fails(main, [*tiny_options, "--epochs", "-3"], "--epochs", "-3")


@pytest.mark.parametrize("options", [[], *(["--output-dir", "x", *more.split()] for more in (
    "--dataset mnist", "--num-codes many", "--no-such-option"))])  # fmt: skip
def test_options_that_do_not_parse(options, capsys):
    with pytest.raises(SystemExit) as caught:
        main(options)
    captured = capsys.readouterr()
    assert caught.value.code == 2 and "Traceback" not in captured.err + captured.out
    assert re.search("error|required|invalid|unrecognized", captured.err, re.I)


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in text, field.name
    # Every option is followed by a sentence of its own: the docstrings of the fields.
    source = (ROOT / "train" / "config.py").read_text()
    assert source.count('    """') - 1 >= len(dataclasses.fields(Config))
    for words in ("number c of codes", "Peak learning rate", "Go on from the checkpoint", "Seed of the weights"):
        assert words in re.sub(r"[\s│]+", " ", text)
