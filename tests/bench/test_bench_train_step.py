"""Tests of bench/training/train_step.py: shares of a step, bars on made-up numbers, tables, JSON, options."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # bench/ and train/ are used from the checkout and never installed

for name in ("kornia", "tqdm"):
    pytest.importorskip(name, reason="train/ needs the extra [train]")

from bench import results
from bench.training import train_step  # noqa: E402
from train import loop  # noqa: E402
from train.config import Config  # noqa: E402

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
                  num_features=16, num_codes=64, device="cpu", precision="float32")
    return Config(**(fields | changes)).resolved()


def taken(*shares, parts=train_step.PARTS, total=2.0):
    """One round whose parts have these shares of `total` seconds."""
    return {part: share * total for part, share in zip(parts, shares, strict=True)}


def made_up(loss_small=0.01, views_small=0.10, loss_large=0.30, views_large=0.05, **changes):
    """A record of three rounds around these median shares, from made-up seconds."""
    rows = []
    for c, views, loss in ((1 << 14, views_small, loss_small), (1 << 20, views_large, loss_large)):
        rounds = [taken(views, 0.2, loss * factor, 0.8 - views - loss * factor, 0.0) for factor in (1.1, 1.0, 0.9)]
        rows.append(train_step.as_row(f"cplearn, c={c}", None, config(num_codes=c, backend="torch"), rounds, 4))
    machine = {"cpu": "Some CPU (TM) 9", "gpu": None, "threads": 2, "torch": "2.9", "cplearn_kernels": "0.1",
               "commit": None, "date": "2026-01-01 10:00 UTC", "load_average": 0.1}
    settings = {"device": "cpu", "batch_size": 256, "num_features": 128, "backbone": "ResNet-8", "precision": "float32",
                "images": "100 random", "rounds": 3, "steps": 4}
    return {"schema": 1, "benchmark": "train_step", "machine": machine, "settings": settings, "rows": rows,
            "bars": train_step.judge(rows, 256), **changes}


def test_a_row_is_made_of_shares_within_each_round():
    rounds = [taken(0.1, 0.3, 0.2, 0.3, 0.1, total=2.0), taken(0.2, 0.2, 0.2, 0.3, 0.1, total=40.0),
              taken(0.4, 0.1, 0.1, 0.3, 0.1, total=4.0)]
    row = train_step.as_row("x", None, config(backend="cpu"), rounds, steps=2)
    assert row["step"]["seconds"] == pytest.approx([1.0, 20.0, 2.0]) and row["step"]["median"] == pytest.approx(2.0)
    views = row["parts"]["views"]
    # The median of the shares; total seconds of views over total seconds would be 0.213.
    assert views["share"] == pytest.approx([0.1, 0.2, 0.4]) and views["median"] == pytest.approx(0.2)
    assert (views["min"], views["max"]) == pytest.approx((0.1, 0.4))
    sums = [sum(part["share"][index] for part in row["parts"].values()) for index in range(3)]
    assert sums == pytest.approx([1, 1, 1])


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
        assert list(row["parts"]) == list(train_step.PARTS)
        assert sum(part["share"][0] for part in row["parts"].values()) == pytest.approx(1)
        assert all(0 < share < 1 for part in row["parts"].values() for share in part["share"])


def test_a_slow_part_is_found(monkeypatch):
    """Were the parts named wrongly, or the time of a sleep lost, another part would be the largest."""
    import time

    from train.methods import CPLearn
    plain = CPLearn.loss
    monkeypatch.setattr(CPLearn, "loss", lambda self, h1, h2: (time.sleep(0.3), plain(self, h1, h2))[1])
    [row] = train_step.measure({"a": config()}, torch.zeros(4, 3, 32, 32, dtype=torch.uint8), rounds=1, steps=1)
    assert row["step"]["median"] > 0.3 and row["parts"]["loss"]["median"] > 0.5


def test_the_images_and_steps_are_those_of_training(monkeypatch):
    """The weights after the turns are those of the same steps made by hand: nothing is skipped or done twice."""
    from train import backbones, methods, optimisers
    from train.data.augment import TwoViews
    from train.seeds import derive_seed

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


@pytest.mark.parametrize("changes, index, words", [
    ({}, None, ""),
    ({"loss_small": 0.025}, 0, "MISSED by 0.50 points"),
    ({"views_small": 0.16}, 1, "MISSED by 1.00 points"),
    ({"loss_large": 0.35}, 2, "MISSED by 0.00 points"),  # a bar says less than
    ({"views_large": 0.45}, 3, "MISSED by 30.00 points"),
])
def test_bars_on_made_up_numbers(changes, index, words):
    record = made_up(**changes)
    assert [bar["met"] for bar in record["bars"]] == [i != index for i in range(4)]
    lines = [line for line in train_step.table(record).splitlines() if " of a step, cplearn, " in line]
    assert len(lines) == 4 and sum(" met by " in line for line in lines) == 4 - (index is not None)
    if index is not None:
        assert words in lines[index] and "met by" not in lines[index]
        bars = ("loss < 2%", "views < 15%", "loss < 35%", "views < 15%")
        assert record["bars"][index]["text"].startswith(bars[index])


def test_bars_count_only_what_was_measured_as_they_say():
    record = made_up()
    half = train_step.judge(record["rows"][:1], 256)
    assert [bar["met"] for bar in half] == [True, True, None, None] and half[2]["measured"] is None
    assert all(bar["met"] is None for bar in train_step.judge(record["rows"], 128))
    swav = [{**row, "method": "swav"} for row in record["rows"]]
    assert all(bar["met"] is None for bar in train_step.judge(swav, 256))
    table = train_step.table({**record, "bars": half})
    assert table.count("not measured") == 2 and table.count("met by") == 2


def test_the_table_shows_medians_and_spreads():
    text = train_step.table(made_up())
    assert "Some CPU (TM) 9, 2 threads" in text and "no commit" in text and "100 random images" in text
    # 2 s a turn of 4 steps; the loss at 2^20 took 33, 30 and 27 %.
    assert "500 (500..500)" in text and "30.0 (27.0..33.0)" in text and "1.00 (0.900..1.10)" in text
    assert "met by 5.00 points" in text and "met by 1.00 points" in text


def test_the_record_survives_the_file(tmp_path, capsys):
    record, path = made_up(loss_small=0.03), tmp_path / "x.json"
    path.write_text(json.dumps(record))
    assert train_step.load(path) == record
    assert train_step.main(["--show", str(path)]) == 0
    assert capsys.readouterr().out == train_step.table(record) + "\n"
    assert train_step.main(["--show", str(path), "--require-bars"]) == 1
    path.write_text(json.dumps(made_up()))
    assert train_step.main(["--show", str(path), "--require-bars"]) == 0
    assert train_step.default_path(record).name == "train_step-cpu-some-cpu-9-2t.json"
    assert train_step.default_path(record).parent == results.RESULTS
    on_gpu = {**record, "machine": record["machine"] | {"gpu": "NVIDIA X1"}, "settings": {"device": "cuda"}}
    assert train_step.default_path(on_gpu).name == "train_step-cuda-nvidia-x1-2t.json"


@pytest.mark.parametrize("content", [
    "", "[]", "{}", '{"benchmark": "cplearn_loss", "schema": 1}', '{"benchmark": "train_step"}',
    '{"benchmark": "train_step", "schema": 2, "machine": {}, "settings": {}, "rows": [], "bars": []}',
    '{"benchmark": "train_step", "schema": 1, "machine": {}, "rows": [], "bars": []}'])
def test_other_files_are_refused(content, tmp_path, capsys):
    (tmp_path / "x.json").write_text(content)
    assert train_step.main(["--show", str(tmp_path / "x.json")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bench.training.train_step: ") and "x.json" in error and error.count("\n") == 1


def test_the_command_line_measures_prints_and_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_step, "RESULTS", tmp_path)
    monkeypatch.setattr(train_step.default_path, "__defaults__", (tmp_path,))
    path = tmp_path / "x.json"
    assert train_step.main([*TINY, "--codes", "64", "128", "--method", "swav", "cplearn", "--json", str(path)]) == 0
    output = capsys.readouterr().out
    record = train_step.load(path)
    assert output == train_step.table(record) + "\n\nwritten: x.json\n" and output.count("not measured") == 4
    assert [row["name"] for row in record["rows"]] == ["cplearn, c=64", "cplearn, c=128", "swav"]
    assert record["settings"]["images"] == "10 random" and record["machine"]["threads"] == 1
    assert all(len(row["step"]["seconds"]) == 2 for row in record["rows"])
    assert train_step.main([*TINY, "--codes", "64", "--require-bars", "--json"]) == 1
    assert len(list(tmp_path.glob("train_step-cpu-*-1t.json"))) == 1


@pytest.mark.parametrize("options, words", [
    (["--batch-size", "1"], "--batch-size was 1, expected at least 2"),
    (["--backend", "abacus"], "abacus"),
    (["--device", "toaster"], "--device was toaster"),
    (["--data-dir", "/no/such/folder"], "expected an existing folder with CIFAR-10"),
    (["--json", "/no/such/folder/x.json"], "expected a file in an existing folder"),
    (["--show", "/no/such/file"], "/no/such/file"),
])
def test_bad_input_is_one_sentence_and_status_2(options, words, capsys):
    assert train_step.main([*TINY, *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bench.training.train_step: ") and words in error and "Traceback" not in error


@pytest.mark.parametrize("options", [["--codes", "0"], ["--rounds", "0"], ["--steps", "-1"], ["--threads", "x"],
                                     ["--method", "byol"], ["--precision", "int8"], ["--such", "1"]])
def test_options_that_do_not_parse(options, capsys):
    with pytest.raises(SystemExit) as caught:
        train_step.main(options)
    assert caught.value.code == 2 and "usage:" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_is_said(capsys, monkeypatch):
    from train.methods import CPLearn
    monkeypatch.setattr(CPLearn, "loss", lambda self, h1, h2: (h1.sum() * float("nan"), {}))
    assert train_step.main([*TINY, "--codes", "64"]) == 2
    assert "The loss became nan with cplearn, expected a finite number." in capsys.readouterr().err
