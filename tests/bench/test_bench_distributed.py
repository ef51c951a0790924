"""bench.distributed: tiny cases on two and four ranks, the formula of the bytes, targets of made-up numbers."""

from __future__ import annotations

import importlib
import json

import pytest
import torch

from bench.distributed import traffic
from bench.distributed.rank_processes import rows_of
from bench.timing import spread

command = importlib.import_module("bench.distributed.__main__")


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(command, "TRAFFIC_SHAPES", ((33, 16), (64, 16)))
    monkeypatch.setattr(command, "SPEED_SHAPE", (8, 16))


def test_bytes_are_the_formulas_whatever_c(tiny):
    """Collective by collective nothing is off, with unequal parts of the rows or of the codes either."""
    rows = command.traffic([64, 100, 4096], [2], "torch")
    assert [(row["case"]["N"], row["case"]["c"]) for row in rows] == [(N, c) for N in (33, 64) for c in (64, 100, 4096)]
    for row in rows:
        assert (
            row["counted"] == pytest.approx(row["formula"]) and row["counted"]["all-to-all"] > 8 * row["case"]["N"] * 8
        )
    assert sum(rows[3]["counted"].values()) > 1.5 * sum(rows[0]["counted"].values())


@pytest.mark.slow
def test_the_command_measures_prints_and_writes(tiny, tmp_path, capsys):
    path = tmp_path / "x.json"
    options = ["--codes", "512", "--traffic-codes", "64", "4096", "--world", "3", "4", "--backend", "torch"]
    assert command.main([*options, "--rounds", "2", "--turn-seconds", "0", "--json", str(path)]) == 0
    record = json.loads(path.read_text())
    (row,) = record["speed"]
    assert len(row["one"]["seconds"]) == len(row["two"]["seconds"]) == 2 and row["case"]["c"] == 512
    first = row["one"]["seconds"][0] / row["two"]["seconds"][0]
    assert row["ratio"]["min"] <= first <= row["ratio"]["max"]
    assert all(found["counted"] == pytest.approx(found["formula"]) for found in record["traffic"])
    assert {found["world"] for found in record["traffic"]} == {3, 4}
    printed = capsys.readouterr().out
    assert printed.endswith("\n\nwritten: x.json\n") and "times as fast" in printed and "formula, B" in printed


def test_a_collective_that_is_not_counted_is_refused():
    with traffic.counted(), pytest.raises(NotImplementedError, match="broadcast is not counted"):
        torch.distributed.broadcast(torch.zeros(1), 0)
    assert "refusing" not in torch.distributed.broadcast.__qualname__


def test_inputs_do_not_depend_on_the_number_of_ranks():
    case = {"N": 7, "f": 16, "c": 64}
    whole = rows_of(case, 0, 1)
    parts = [rows_of(case, rank, 3) for rank in range(3)]
    assert all(torch.equal(torch.cat([part[view] for part in parts]), whole[view]) for view in (0, 1))


def _made_up(two=0.5, sent=1.0):
    """A record of one process that takes a second, and of two; what a rank sent as a multiple of the formula."""
    formula = dict.fromkeys(traffic.COLLECTIVES, 1e5)
    speed = {"case": command.as_case(command.SPEED_SHAPE, command.SPEED_CODES), "ratio": spread([1 / two])}
    speed |= {name: {"seconds": [taken], **spread([taken])} for name, taken in (("one", 1.0), ("two", two))}
    row = {"case": command.as_case((64, 128), 1 << 14), "world": 2, "formula": formula}
    return {"speed": [speed], "traffic": [{**row, "counted": {key: sent * value for key, value in formula.items()}}]}


@pytest.mark.parametrize("record, met", [
    (_made_up(), [True, True]), (_made_up(two=0.56), [False, True]), (_made_up(sent=1.011), [True, False]),
    (_made_up(sent=0.98), [True, False]), ({"speed": [], "traffic": []}, []),
])  # fmt: skip
def test_targets(record, met):
    assert [verdict["met"] for verdict in command.judge(record)] == met


@pytest.mark.slow
def test_a_failing_rank_is_said(tiny, capsys):
    assert command.main(["--codes", "--world", "2", "--traffic-codes", "64", "--backend", "nonsense"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bench.distributed: ") and "nonsense" in error and error.count("\n") == 1
