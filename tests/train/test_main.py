"""train/__main__.py: a whole run, exact continuation after a real interruption, and bad input on the command line."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train import checkpoint, loop, report
from train.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
# Epochs of 11 steps: a signal most likely falls inside one.
LONGER = ["--epochs", "8", "--num-train", "352"]


@pytest.fixture
def no_report(monkeypatch):
    """For tests that look at the numbers only: the pictures take longer than the rest of a tiny run."""
    monkeypatch.setattr(report, "write", lambda *_: None)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, tiny):
    """The folders of two runs that were never stopped: of the tiny options, and of those with `LONGER`."""
    base = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda *_: None)
        assert main(["--output-dir", str(base / "tiny"), *tiny]) == 0
        assert main(["--output-dir", str(base / "longer"), *tiny, *LONGER]) == 0
    return base


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_whole_run_leaves_every_file(tiny_options, tmp_path, capsys):
    assert main(tiny_options) == 0
    folder = tmp_path / "run"
    assert sorted(p.name for p in folder.iterdir()) == [
        ".lock",
        "checkpoint.pt",
        "config.json",
        "embeddings.npz",
        "metrics.jsonl",
        "report.html",
        "summary.json",
    ]
    summary = json.loads((folder / "summary.json").read_text())
    for name in (
        "linear_probe",
        "knn",
        "nmi",
        "codes_used",
        "effective_rank",
        "seconds",
        "images_per_second",
        "loss_fraction_of_step",
        "perplexity",
        "embedding_std",
    ):
        assert summary[name] >= 0, name
    assert sum(value for name, value in summary.items() if name.endswith("_of_step")) == pytest.approx(1)
    assert [row["epoch"] for row in rows(folder)] == [1, 2] and {"loss", "prior", "invariance", "lr"} <= rows(folder)[
        0
    ].keys()
    config = json.loads((folder / "config.json").read_text())
    assert config["num_codes"] == 64 and config["crop_scale"] is not None
    assert "linear_probe" in capsys.readouterr().out


def test_the_seed_decides_the_numbers(tiny_options, tmp_path, unbroken, no_report):
    texts = [(unbroken / "tiny" / "metrics.jsonl").read_text()]
    for seed in ("0", "1"):
        assert main([*tiny_options, "--overwrite", "--seed", seed]) == 0
        texts.append((tmp_path / "run" / "metrics.jsonl").read_text())
    assert texts[0] == texts[1] != texts[2]


def test_an_interrupted_run_goes_on_exactly(tiny_options, tmp_path, unbroken, no_report):
    options = [*tiny_options, *LONGER]
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "train", *options], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 120
        while not (folder / "metrics.jsonl").exists() or len(rows(folder)) < 1:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, (output, errors)
    assert "Stopped by SIGINT after step" in errors and "--resume" in errors and "Traceback" not in errors
    assert 1 <= len(rows(folder)) < 8 and not (folder / "summary.json").exists()

    assert main([*options, "--resume"]) == 0
    assert (folder / "metrics.jsonl").read_bytes() == (unbroken / "longer" / "metrics.jsonl").read_bytes()
    summaries = [json.loads((path / "summary.json").read_text()) for path in (folder, unbroken / "longer")]
    for name in ("linear_probe", "knn", "nmi", "codes_used", "effective_rank"):
        assert summaries[0][name] == summaries[1][name], name


@pytest.mark.parametrize(
    "stop_at, sent, status",
    [
        (1, signal.SIGINT, 130),
        (2, signal.SIGTERM, 143),
        (3, signal.SIGINT, 130),
        (5, signal.SIGTERM, 143),
        (6, signal.SIGTERM, 143),
    ],
)
def test_any_step_is_a_good_place_to_stop(tiny_options, tmp_path, unbroken, monkeypatch, stop_at, sent, status):
    """The signal comes during a given step: the first, inside an epoch, at its end, inside the last, at the very end."""
    plain, calls = loop.train_step, []

    def step(*args):
        calls.append(1)
        if len(calls) == stop_at:
            signal.raise_signal(sent)
        return plain(*args)

    monkeypatch.setattr(loop, "train_step", step)
    assert main(tiny_options) == status
    monkeypatch.undo()
    monkeypatch.setattr(report, "write", lambda *_: None)
    assert len(calls) == stop_at and len(rows(tmp_path / "run")) == stop_at // 3
    assert main([*tiny_options, "--resume"]) == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (unbroken / "tiny" / "metrics.jsonl").read_bytes()


def test_a_signal_during_the_last_checkpoint_is_not_lost(tiny_options, tmp_path, monkeypatch):
    plain = checkpoint.save

    def save(path, config, progress, *rest):
        if progress.step == 6:
            signal.raise_signal(signal.SIGTERM)
        plain(path, config, progress, *rest)

    monkeypatch.setattr(checkpoint, "save", save)
    assert main(tiny_options) == 143
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt")["progress"]["step"] == 6


def test_metrics_behind_the_checkpoint_are_not_repeated(tiny_options, tmp_path, no_report):
    """As after a crash between the two files: the lines come again from the checkpoint."""
    assert main(tiny_options) == 0
    path = tmp_path / "run" / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"epoch": 3}\n')
    assert main([*tiny_options, "--resume"]) == 0
    assert path.read_text() == whole


def fails(capsys, options, *words):
    """The command line ends with status 2 and one sentence on stderr that has these words."""
    assert main(options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and error.endswith(".\n"), error
    assert all(word in error for word in words), error


def test_a_run_is_not_written_over_unasked(tiny_options, tmp_path, capsys, no_report):
    assert main([*tiny_options, "--epochs", "1"]) == 0
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    fails(capsys, [*tiny_options, "--epochs", "1"], "already holds a run", "--resume", "--overwrite")
    fails(capsys, [*tiny_options, "--epochs", "1", "--overwrite", "--batch-size", "97"], "97", "96")
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    fails(capsys, [*tiny_options, "--epochs", "1", "--resume", "--seed", "5"], "seed (0 in the checkpoint, 5 now)")
    assert main([*tiny_options, "--epochs", "1", "--overwrite", "--seed", "5"]) == 0


def test_bad_input_is_one_sentence_before_any_work(tiny_options, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("training began"))
    (tmp_path / "file").write_text("")
    fails(
        capsys,
        [*tiny_options, "--output-dir", str(tmp_path / "file" / "run")],
        "--output-dir",
        "folder that can be written",
    )
    fails(capsys, [*tiny_options, "--resume"], "--resume", "expected a checkpoint")
    fails(capsys, [*tiny_options, "--dataset", "cifar10"], "--data-dir", "CIFAR-10")
    fails(
        capsys, [*tiny_options, "--dataset", "cifar10", "--data-dir", str(tmp_path / "none")], "none", "existing folder"
    )
    fails(capsys, [*tiny_options, "--eps", "0.5"], "0.5")
    fails(capsys, [*tiny_options, "--backend", "abacus"], "abacus")
    fails(capsys, [*tiny_options, "--epochs", "-3"], "--epochs", "-3")


def test_a_disk_without_room_is_found_before_training(tiny_options, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("training began"))
    monkeypatch.setattr(checkpoint, "save", full)
    fails(capsys, tiny_options, "No space left", "folder with room")


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--output-dir", "x", "--dataset", "mnist"],
        ["--output-dir", "x", "--num-codes", "many"],
        ["--output-dir", "x", "--no-such-option"],
    ],
)
def test_options_that_do_not_parse(options, capsys):
    with pytest.raises(SystemExit) as caught:
        main(options)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out and re.search(
        "error|required|invalid|unrecognized", captured.err, re.I
    )


def test_help_explains_every_option(capsys):
    import dataclasses

    from train.config import Config

    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in text, field.name
    # Every option is followed by a sentence of its own: the docstrings of the fields.
    source = (ROOT / "train" / "config.py").read_text()
    assert source.count('    """') - 1 >= len(dataclasses.fields(Config))
    for words in ("number c of codes", "Peak learning rate", "Go on from the checkpoint", "Seed of the weights"):
        assert words in re.sub(r"[\s│]+", " ", text)
