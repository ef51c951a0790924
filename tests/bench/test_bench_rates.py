"""bench.micro: the programs are compiled, measure, write and print, and a missing compiler is named."""

from __future__ import annotations

import json
import shutil

import pytest

from bench.micro import compiled, sign_products, vector_rates

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")


@needs_compiler
@pytest.mark.parametrize("module, entries, line", [
    # Some seconds, the other a moment.
    pytest.param(sign_products, "methods", "| torch.mm, float32 panel |", marks=pytest.mark.slow),
    (vector_rates, "operations", "| additions |"),
])  # fmt: skip
def test_rates_are_measured_and_written(module, entries, line, tmp_path, capsys):
    path = tmp_path / "rates.json"
    assert module.main(["--json", str(path)]) == 0
    record = json.loads(path.read_text())
    key = {"methods": "products_per_second", "operations": "vectors_per_second"}[entries]
    assert len(record[entries]) >= 5 and all(1e6 < entry[key] < 1e13 for entry in record[entries])
    assert record["machine"]["cpu"] and line in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("module", [sign_products, vector_rates])
def test_a_missing_compiler_is_named(module, capsys, tmp_path):
    assert module.main(["--compiler", "no-such-compiler", "--json", str(tmp_path / "rates.json")]) == 1
    assert "no compiler 'no-such-compiler'; --compiler names another" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@needs_compiler
def test_a_program_that_does_not_compile_is_an_error(tmp_path):
    (tmp_path / "broken.cpp").write_text("int main( {")
    with pytest.raises(compiled.CompilerError, match="c\\+\\+ failed on broken.cpp: .*error"):
        compiled.json_lines(tmp_path / "broken.cpp", "c++")
