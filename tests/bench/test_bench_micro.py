"""bench.micro: the programs are compiled, measure, write and print, and a missing compiler is named."""

from __future__ import annotations

import importlib
import json
import shutil

import pytest

micro = importlib.import_module("bench.micro.__main__")
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")


@needs_compiler
@pytest.mark.parametrize("program, key, line", [
    # Some seconds, the other a moment.
    pytest.param("sign_products", "products_per_second", "| torch.mm, float32 panel |", marks=pytest.mark.slow),
    ("vector_rates", "vectors_per_second", "| additions |"),
])  # fmt: skip
def test_rates_are_measured_and_written(program, key, line, tmp_path, capsys):
    path = tmp_path / "rates.json"
    assert micro.main([program, "--json", str(path)]) == 0
    record = json.loads(path.read_text())
    assert len(record["entries"]) >= 5 and all(1e6 < entry[key] < 1e13 for entry in record["entries"])
    assert record["machine"]["cpu"] and line in " ".join(capsys.readouterr().out.split())


def test_rates_stand_by_direction_and_length():
    entries = [{"method": "m", "direction": "forward", "num_features": 128, "products_per_second": 2.5e9},
               {"method": "m", "direction": "backward", "num_features": 128, "products_per_second": 1e9},
               {"method": "n", "direction": "backward", "num_features": 128, "products_per_second": 3e9}]  # fmt: skip
    assert [list(row.values()) for row in micro.table(entries)] == [["m", "2.5", "1.0"], ["n", "-", "3.0"]]


def test_a_missing_compiler_is_named(capsys, tmp_path):
    assert micro.main(["vector_rates", "--compiler", "no-such-compiler", "--json", str(tmp_path / "rates.json")]) == 1
    assert "no compiler 'no-such-compiler'; --compiler names another" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@needs_compiler
def test_a_program_that_does_not_compile_is_an_error(tmp_path):
    (tmp_path / "broken.cpp").write_text("int main( {")
    with pytest.raises(RuntimeError, match="c\\+\\+ failed on broken.cpp: .*error"):
        micro.run_program(tmp_path / "broken.cpp", "c++")
