"""bench.training.train_step: shares of a step, targets on made-up numbers, tables, JSON, options."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("kornia", reason="train/ needs the extra [train]")

from bench import results
from bench.training import train_step
from train import backbones, loop, methods, optimisers
from train.config import Config
from train.data.augment import TwoViews
from train.machine import describe
from train.methods import CPLearn
from train.seeds import derive_seed

TINY = ["--batch-size", "4", "--steps", "1", "--rounds", "2", "--threads", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few random images, one thread; the number of threads is put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(train_step, "IMAGES", 10)
    yield
    torch.set_num_threads(before)


def config(**changes):
    fields = dict(output_dir=Path(), dataset="cifar10", data_dir=Path(), batch_size=4, epochs=20, widths=(8, 8, 16),
                  num_features=16, num_codes=64, device="cpu", precision="float32")  # fmt: skip
    return Config(**(fields | changes)).resolved()


def taken(*shares, total=2.0):
    """One round whose parts have these shares of `total` seconds."""
    return {part: share * total for part, share in zip(train_step.PARTS, shares, strict=True)}


def made_up(loss_small=0.01, views_small=0.10, loss_large=0.30, views_large=0.05):
    """The rows of three rounds around these median shares, from made-up seconds."""
    rows = []
    for c, views, loss in ((1 << 14, views_small, loss_small), (1 << 20, views_large, loss_large)):
        rounds = [taken(views, 0.2, loss * factor, 0.8 - views - loss * factor, 0.0) for factor in (1.1, 1.0, 0.9)]
        rows.append(train_step.as_row(f"cplearn, c={c}", None, config(num_codes=c, backend="torch"), rounds, 4))
    return rows


def test_a_row_is_made_of_shares_within_each_round():
    shares = [(0.1, 0.3, 0.2, 0.3, 0.1), (0.2, 0.2, 0.2, 0.3, 0.1), (0.4, 0.1, 0.1, 0.3, 0.1)]
    rounds = [taken(*share, total=total) for share, total in zip(shares, (2.0, 40.0, 4.0))]
    row = train_step.as_row("x", None, config(backend="cpu"), rounds, steps=2)
    assert row["step"]["seconds"] == pytest.approx([1.0, 20.0, 2.0]) and row["step"]["median"] == pytest.approx(2.0)
    views = row["parts"]["views"]
    # The median of the shares; total seconds of views over total seconds would be 0.213.
    assert views["share"] == pytest.approx([0.1, 0.2, 0.4]) and views["median"] == pytest.approx(0.2)
    assert (views["min"], views["max"]) == pytest.approx((0.1, 0.4))


def test_every_method_is_measured_in_alternating_turns(monkeypatch):
    order, plain = [], loop.train_step

    def noted(encode, method, *rest):
        order.append(method)
        return plain(encode, method, *rest)

    monkeypatch.setattr(loop, "train_step", noted)
    configs = {"a": config(), "b": config(method="barlow_twins"), "c": config(method="swav")}
    rows = train_step.measure(configs, torch.randint(256, (9, 3, 32, 32), dtype=torch.uint8), rounds=2, steps=2)
    kinds = [type(method).__name__[0] for method in order]
    # Two turns each to warm up, then a round in this order and one in the other; two steps a turn.
    assert "".join(kinds) == "CCCCBBBBSSSS" + "CCBBSS" + "SSBBCC"
    assert [row["method"] for row in rows] == ["cplearn", "barlow_twins", "swav"]
    assert [row["num_codes"] for row in rows] == [64, None, None] and rows[0]["backend"] in ("cpu", "torch")
    for row in rows:
        assert len(row["step"]["seconds"]) == 2 and 0 < row["step"]["min"] < 5
        parts = [row["parts"][part]["share"] for part in train_step.PARTS]
        assert all(0 < share < 1 for part in parts for share in part) and sum(next(zip(*parts))) == pytest.approx(1)


def test_a_slow_part_is_found(monkeypatch):
    """Were the parts named wrongly, or the time of a sleep lost, another part would be the largest."""
    plain = CPLearn.loss
    monkeypatch.setattr(CPLearn, "loss", lambda self, h1, h2: (time.sleep(0.3), plain(self, h1, h2))[1])
    [row] = train_step.measure({"a": config()}, torch.zeros(4, 3, 32, 32, dtype=torch.uint8), rounds=1, steps=1)
    assert row["step"]["median"] > 0.3 and row["parts"]["loss"]["median"] > 0.5


def test_the_images_and_steps_are_those_of_training(monkeypatch):
    """The weights after the turns are those of the same steps made by hand: nothing is skipped or done twice."""
    images = torch.randint(256, (9, 3, 32, 32), dtype=torch.uint8)
    turn = train_step.Turn(config(), images, steps=3)
    torch.manual_seed(5)
    turn()
    torch.manual_seed(derive_seed(0, "weights"))
    method = methods.build(config(), backbones.build(config())).train()
    optimiser, views = optimisers.build(config(), method), TwoViews(config())
    torch.manual_seed(5)
    encode, watch = loop.BothViews(loop.encoder(config(), method), method), loop.Stopwatch({}, "cpu")
    for index, _ in zip(loop.batches(config(), 9, 0), range(3)):
        loop.train_step(encode, method, optimiser, *views(images[index]), watch)
    pairs = list(zip(turn.method.state_dict().values(), method.state_dict().values()))
    assert len(pairs) > 20 and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("changes, index", [
    ({}, None), ({"loss_small": 0.025}, 0), ({"views_small": 0.16}, 1),
    ({"loss_large": 0.35}, 2), ({"views_large": 0.45}, 3),  # a target says less than
])  # fmt: skip
def test_targets_on_made_up_numbers(changes, index):
    rows = made_up(**changes)
    verdicts = train_step.judge(rows, 256)
    assert [verdict["met"] for verdict in verdicts] == [i != index for i in range(4)]
    assert [verdict["text"].split(" of ")[0] for verdict in verdicts] == [
        "loss < 2%", "views < 15%", "loss < 35%", "views < 15%"]  # fmt: skip
    # Only what was measured as they say counts.
    assert train_step.judge(rows[:1], 256) == verdicts[:2] and train_step.judge(rows, 128) == []
    assert train_step.judge([{**row, "method": "swav"} for row in rows], 256) == []


def test_the_table_shows_medians_and_spreads(capsys):
    machine = describe(2) | {"cpu": "Some CPU (TM) 9", "cpu_capability": "AVX2", "commit": None}
    rows = made_up(loss_small=0.03)
    record = {"machine": machine, "settings": {"images": "100 random"}, "rows": rows}
    record["targets"] = train_step.judge(rows, 256)
    assert results.report(record, train_step.tables(record), None) == 1
    text = capsys.readouterr().out
    assert "Some CPU (TM) 9 (AVX2), 2 threads" in text and "no commit" in text and "| 100 random |" in text
    # 2 s a turn of 4 steps; the loss at 2^20 took 33, 30 and 27 %.
    assert "500 (500..500)" in text and "30 (27..33)" in text
    assert text.count("| yes ") == 3 and text.count("| NO ") == 1
    assert results.path_for("train_step", machine).name == "train_step-some-cpu-9-2t.json"
    on_gpu = results.path_for("train_step", machine | {"gpu": "NVIDIA X1"})
    assert on_gpu == results.RESULTS / "train_step-nvidia-x1-2t.json"


def test_the_command_line_measures_prints_and_writes(tmp_path, capsys):
    path = tmp_path / "x.json"
    assert train_step.main([*TINY, "--codes", "64", "128", "--method", "swav", "cplearn", "--json", str(path)]) == 0
    record = json.loads(path.read_text())
    assert capsys.readouterr().out.endswith("\n\nwritten: x.json\n")
    assert [row["name"] for row in record["rows"]] == ["cplearn, c=64", "cplearn, c=128", "swav"]
    assert record["settings"]["images"] == "10 random" and record["machine"]["threads"] == 1
    assert all(len(row["step"]["seconds"]) == 2 for row in record["rows"]) and record["targets"] == []


@pytest.mark.parametrize("options, words", [
    (["--batch-size", "1"], "--batch-size was 1, expected at least 2"), (["--backend", "abacus"], "abacus"),
    (["--device", "toaster"], "--device was toaster"), (["--codes", "0"], "codes"), (["--rounds", "0"], "at least 1"),
    (["--data-dir", "/no/such/folder"], "expected an existing folder with CIFAR-10"),
])  # fmt: skip
def test_bad_input_is_one_sentence_and_status_2(options, words, capsys):
    assert train_step.main([*TINY, *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bench.training.train_step: ") and words in error and "Traceback" not in error


def test_a_loss_that_is_not_finite_is_said(capsys, monkeypatch):
    monkeypatch.setattr(CPLearn, "loss", lambda self, h1, h2: (h1.sum() * float("nan"), {}))
    assert train_step.main([*TINY, "--codes", "64"]) == 2
    assert "The loss became nan with cplearn, expected a finite number." in capsys.readouterr().err
