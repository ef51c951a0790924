"""bench.distributed: a tiny case on two ranks, counted on their own interfaces; bars and tables of made-up numbers."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # bench/ is used from the checkout and never installed

from bench import distributed, distributed_ranks, distributed_tables  # noqa: E402
from bench import scaling_formulas as formulas  # noqa: E402
from bench.distributed_network import MTU, missing  # noqa: E402
from bench.distributed_parts import PARTS  # noqa: E402
from bench.timing import spread  # noqa: E402

NO_NETWORK = missing()
needs_network = pytest.mark.skipif(NO_NETWORK is not None, reason=str(NO_NETWORK))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The record of a run of the command with tiny cases, and what it printed apart from progress."""
    path = tmp_path_factory.mktemp("distributed") / "x.json"
    patch = pytest.MonkeyPatch()
    patch.setattr(distributed, "TRAFFIC_SHAPES", ((32, 16), (64, 16)))
    try:
        options = ["--codes", "512", "--traffic-codes", "64", "4096", "--world", "2", "--rounds", "2", "--steps", "2"]
        status = distributed.main(["--only", "speed", "traffic", "--backend", "torch", *options, "--json", str(path)])
    finally:
        patch.undo()
    assert status == 0
    return distributed.load(path)


def test_speed_has_both_sides_and_the_parts_of_a_call(measured):
    (row,) = measured["speed"]
    assert len(row["one"]["seconds"]) == len(row["two"]["seconds"]) == len(row["ratio"]["values"]) == 2
    assert row["ratio"]["values"][0] == row["one"]["seconds"][0] / row["two"]["seconds"][0]
    assert set(row["parts"]) == set(PARTS) and all(seconds > 0 for seconds in row["parts"].values())
    assert row["processor_ratio"]["min"] > 0


def test_traffic_is_that_of_the_formula_whatever_c(measured):
    """Within 2 %: a case of a few kilobytes and two steps has the odd acknowledgement's worth of noise."""
    rows = measured["traffic"]
    assert [row["counted"] for row in rows] == ["hooks" if NO_NETWORK else "interface"] * 4
    for row in rows:
        shape = distributed.shape_of({**row["case"], "backend": "torch"}, 2)
        expected = formulas.sent(shape)
        assert row["formula"] == sum(expected.values())
        # What was handed over is exact, collective by collective.
        assert row["handed"] == {
            "all-gather": expected["rows"] + expected["sums"], "all-reduce": expected["scalars"],
            "all-to-all": expected["agreement"] + expected["gradients"],
        }  # fmt: skip
        model = row["formula"] if NO_NETWORK else row["formula_with_gloo"]
        assert row["payload"] == pytest.approx(model, rel=0.02)
    by_case = {(row["case"]["N"], row["case"]["c"]): row["payload"] for row in rows}
    assert by_case[32, 64] == pytest.approx(by_case[32, 4096], rel=0.02)
    assert by_case[64, 64] > 1.5 * by_case[32, 64]


@needs_network
def test_slow_links_are_slow():
    """Never faster than light: the delays that follow each other, and the bytes over the rate."""
    delay, rate, case = 4e-3, 1e7, distributed.case(256, 64, 64)
    (found,) = distributed_ranks.measure([case], world=2, steps=2, backend="torch", delay=delay, rate=rate, warmup=1)
    shape = distributed.shape_of({**case, "backend": "torch"}, 2)
    assert found["reached"] < rate
    for rank in found["ranks"]:
        least = sum(formulas.gloo_delays(shape).values()) * delay + 8 * sum(formulas.sent(shape).values()) / rate
        # The token bucket lets its filling pass at the beginning of each of the seven exchanges.
        assert min(rank["seconds"]) > least - 7 * 8 * 4 * MTU / rate
        assert min(rank["seconds"]) > 0.95 * 18 * delay
    # The loss is that of one process.
    views, dictionary = distributed_ranks.inputs(case, 0, 1)
    alone = distributed_ranks.step(views, dictionary, "torch")
    assert found["ranks"][0]["loss"] == pytest.approx(alone, rel=1e-5)


def test_inputs_do_not_depend_on_the_number_of_ranks():
    case = distributed.case(7, 16, 64)
    whole = distributed_ranks.inputs(case, 0, 1)[0]
    parts = [distributed_ranks.inputs(case, rank, 3)[0] for rank in range(3)]
    assert all(torch.equal(torch.cat([part[view] for part in parts]), whole[view]) for view in (0, 1))


def made_up(ratio=1.9, more_bytes=1.0):
    """A record with every section."""
    case, numbers = distributed.case, spread([1.0])
    traffic = {"world": 2, "counted": "interface", "bytes": 2e5, "packets": 50.0, "handed": {}, "formula": 1e5,
               "formula_with_gloo": 1.02e5}  # fmt: skip
    link = {"case": case(256, 128, 1 << 14), "world": 2, "unlimited": 0.5, "pass_1": 0.1, "predicted": 0.75,
            "alone": 0.9, "from_one": 0.7}  # fmt: skip
    record = {
        "schema": 1, "benchmark": "distributed", "settings": {"backend": None, "rounds": 1, "steps": 1},
        "machine": {"cpu": "Some CPU (TM) 9", "logical_cpus": 2, "torch": "2.9", "cplearn_kernels": "0.1",
                    "commit": None, "date": "2026-01-01 00:00 UTC", "load_average": 0.1},
        "speed": [{"case": case(256, 128, 1 << 20), "one": numbers, "two": numbers, "ratio": spread([ratio]),
                   "processor_ratio": spread([1.95]), "parts": dict.fromkeys(PARTS, 0.25)}],
        "traffic": [{"case": case(64, 128, 1 << 14), "payload": 1e5, **traffic},
                    {"case": case(64, 128, 1 << 22), "payload": 1e5 * more_bytes, **traffic}],
        "links": [{**link, "rate": None, "reached": None, "delay": 0.0, "seconds": spread([0.5])},
                  {**link, "rate": 1e8, "reached": 9e7, "delay": 0.0, "seconds": numbers}],
        "agreement": [{"world": 2, "seconds": 5e-5}], "no_network": None,
    }  # fmt: skip
    return {**record, "bars": distributed.judge(record)}


def test_bars():
    assert [bar["met"] for bar in made_up()["bars"]] == [True, True]
    assert [bar["met"] for bar in made_up(ratio=1.79)["bars"]] == [False, True]
    for wrong in (1.011, 0.98, 256.0):
        assert [bar["met"] for bar in made_up(more_bytes=wrong)["bars"]] == [True, False]
    nothing = copy.deepcopy(made_up())
    nothing["speed"][0]["case"]["c"] = 1 << 17
    for row in nothing["traffic"]:
        row["counted"] = "hooks"  # what was handed over is no measurement of the wire
    assert [bar["met"] for bar in distributed.judge(nothing)] == [None, None]


def test_tables():
    text = distributed_tables.table(made_up(ratio=1.7))
    shown = ("1.70 (1.70..1.70)", "1.7, **missed**", "100 Mbit/s", "90 Mbit/s", "no commit")
    assert all(words in text for words in shown)
    rows = distributed_tables.traffic_table(made_up(more_bytes=1.1)).splitlines()
    assert rows[2] == "| 64 | 128 | 2 | interface | 100.0 | 110.0 | 102.0 | +7.84 % | 100.0 |"
    assert "| 750 | 0.75 | 700 | 0.70 |" in distributed_tables.links_table(made_up()).splitlines()[-1]
    assert distributed_tables.power(1 << 20) == "2^20" and distributed_tables.power(1000) == "1000"


def test_show(tmp_path, capsys):
    record, path = made_up(ratio=1.0), tmp_path / "x.json"
    path.write_text(json.dumps(record))
    assert distributed.main(["--show", str(path)]) == 0
    assert capsys.readouterr().out == distributed_tables.table(record) + "\n"
    assert distributed.main(["--show", str(path), "--require-bars"]) == 1
    path.write_text(json.dumps(made_up()))
    assert distributed.main(["--show", str(path), "--require-bars"]) == 0
    assert distributed.default_path(record).name == "distributed-some-cpu-9.json"
    for content in ("", "[]", '{"benchmark": "gpu", "schema": 1}', '{"benchmark": "distributed", "schema": 1}'):
        path.write_text(content)
        assert distributed.main(["--show", str(path)]) == 2
        assert capsys.readouterr().err.startswith("bench.distributed: ")
    assert distributed.main(["--json", "/no/such/folder/x.json"]) == 2
