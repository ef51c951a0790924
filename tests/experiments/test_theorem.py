"""experiments/theorem: measures with known answers, points that reach the floor, resuming, errors, tables."""

import json
import math
import re

import pytest
import torch

import cplearn_kernels as cpk
from experiments.theorem import __main__ as program
from experiments.theorem import figures, measures, optimum, tables

QUICK = optimum.Settings(num_features=16, num_rows=32, steps=200)
KNOWN = cpk.HadamardDictionary(16, 16, seed=0)
TEMPERATURE = cpk.default_temperature(16, 16)
CODES = optimum.unit(KNOWN.to_dense().T)


@pytest.fixture
def quick_options(tmp_path):
    return ["--num-features", "16", "--num-rows", "32", "--steps", "30", "--dictionary", "hadamard",
            "--output", str(tmp_path / "results.json")]  # fmt: skip


def test_rows_on_all_codes_are_the_optimum_of_the_theory():
    got = measures.measure(CODES.repeat(2, 1), KNOWN, TEMPERATURE)
    assert got["codes_used"] == got["codes_with_even_use"] == 16 and got["fewest_rows"] == got["most_rows"] == 2
    assert got["deviation"] == pytest.approx(0, abs=1e-6)
    assert got["deviation_of_dictionary"] == pytest.approx(0, abs=1e-6)
    assert got["deviation_expected"] == 1 and got["floor"] == got["prior_floor"] == 0
    assert got["cosine_within"] == pytest.approx(1, abs=1e-6) and got["cosine_between"] == pytest.approx(0, abs=1e-6)
    assert got["cosine_own_code"] == pytest.approx(1) and got["prior"] == pytest.approx(0, abs=1e-6)
    # All codes are orthogonal, so the prediction is exact: the definition of eps in default_temperature.
    assert 1 - got["max_p_mean"] == pytest.approx(15e-8, rel=1e-4)
    assert got["max_p_predicted"] == pytest.approx(got["max_p_mean"], abs=1e-12)
    # The competitors of a code are then all others alike, and the code less them is the code less the mean of all.
    centred = optimum.unit(CODES - CODES.mean(0))
    assert got["cosine_code_less_competitors"] == pytest.approx((CODES * centred).sum(1).mean().item(), abs=1e-6)


def test_rows_on_one_code_fail_every_measure():
    got = measures.measure(CODES[:1].repeat(32, 1), KNOWN, TEMPERATURE)
    assert got["deviation"] == pytest.approx(math.sqrt(15), rel=1e-6)
    assert got["loss_above_floor"] == pytest.approx(math.log(16), abs=1e-4)
    assert got["prior"] == pytest.approx(math.log(16), abs=1e-4)
    assert (got["codes_used"], got["fewest_rows"], got["most_rows"], got["codes_with_even_use"]) == (1, 0, 32, 0)
    assert got["cosine_within"] == pytest.approx(1, abs=1e-6) and got["cosine_between"] is None


def test_random_rows_are_neither_one_hot_nor_at_the_floor():
    h = optimum.unit(torch.randn(32, 16, generator=torch.Generator().manual_seed(0)))
    got = measures.measure(h, KNOWN, TEMPERATURE)
    assert got["max_p_mean"] < 0.99 and got["loss_above_floor"] > 0.1 and got["cosine_within"] < 0.9


def test_codes_in_several_pieces_give_the_same(monkeypatch):
    h = optimum.unit(torch.randn(33, 16, generator=torch.Generator().manual_seed(1)))
    whole = measures.measure(h, KNOWN, TEMPERATURE)
    monkeypatch.setattr(measures, "CODES_AT_ONCE", 5)
    monkeypatch.setattr(measures, "ROWS_AT_ONCE", 7)
    assert measures.measure(h, KNOWN, TEMPERATURE) == pytest.approx(whole, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("kind", optimum.DICTIONARIES)
def test_prediction_of_max_p_agrees_with_the_codes(kind):
    dictionary = optimum.DICTIONARIES[kind](32, 4096, seed=3)
    temperature = cpk.default_temperature(32, 4096, eps=1e-6)
    codes = optimum.unit(dictionary.to_dense().T)
    p = torch.softmax(codes.double() @ dictionary.to_dense(dtype=torch.float64) / temperature, dim=1)
    # 1 - p, since forgetting the dictionary's geometry altogether would give p = 1 - 4095e-6.
    leak = (1 - p.diagonal()).mean().item()
    assert 1 - measures.predicted_max_p(dictionary, temperature) == pytest.approx(leak, rel=0.05)
    assert leak > 5 * 4095e-6


@pytest.mark.parametrize("kind", optimum.DICTIONARIES)
def test_a_small_point_reaches_the_floor(kind):
    settings = optimum.Settings(num_features=16, num_rows=64, steps=300)
    h, effort = optimum.optimise(settings, kind, 16)
    got = measures.measure(h, *optimum.problem(settings, kind, 16))
    assert effort["steps"] == 300 and torch.allclose(h.norm(dim=1), torch.ones(64))
    assert got["fewest_rows"] == got["most_rows"] == 4
    # Some independent codes of 16 signs are close to each other: their rows keep 1e-3 of their mass apart.
    assert 0 <= got["loss_above_floor"] < got["loss_above_floor_on_codes"] + 1e-6 < 2e-3
    assert got["max_p_min"] > 0.999 and got["cosine_code_less_competitors"] > 0.999
    assert got["cosine_within"] > 0.999 and got["cosine_between"] < 0.3


def test_without_annealing_the_use_of_codes_stays_uneven(monkeypatch):
    monkeypatch.setattr(optimum, "FIRST_BETA", 1.0)
    settings = optimum.Settings(num_features=16, num_rows=64, steps=300)
    h, _ = optimum.optimise(settings, "hadamard", 16)
    got = measures.measure(h, *optimum.problem(settings, "hadamard", 16))
    assert got["fewest_rows"] < 4 < got["most_rows"] and got["loss_above_floor"] > 5e-3


def test_fewer_rows_than_codes_take_a_code_each():
    settings = optimum.Settings(num_features=16, num_rows=8, steps=200)
    h, _ = optimum.optimise(settings, "hadamard", 64)
    got = measures.measure(h, *optimum.problem(settings, "hadamard", 64))
    assert got["floor"] == got["prior_floor"] == pytest.approx(math.log(8))
    assert got["codes_used"] == 8 and got["most_rows"] == 1 and got["codes_with_even_use"] is None
    assert got["loss_above_floor"] < 0.05 and got["cosine_within"] is None


def test_time_cuts_a_schedule_short():
    _, effort = optimum.optimise(optimum.Settings(num_features=16, num_rows=8, seconds_per_point=1e-6), "hadamard", 16)
    assert effort["steps"] == 1


def test_points_done_are_skipped_and_kept(tmp_path, monkeypatch):
    output, said = tmp_path / "results.json", []
    optimise, calls = optimum.optimise, []
    monkeypatch.setattr(program, "optimise", lambda *given: calls.append(given[2]) or optimise(*given))
    first = program.run(QUICK, ["hadamard"], [16], output, "first", said.append)
    both = program.run(QUICK, ["hadamard"], [16, 32], output, "second", said.append)
    assert calls == [16, 32] and "hadamard, 16 codes: done before" in said
    assert both["points"][0] == first["points"][0] and both["command"] == "first"
    assert json.loads(output.read_text()) == both


def test_an_interruption_keeps_the_points_before_it(tmp_path, monkeypatch):
    output, optimise = tmp_path / "results.json", optimum.optimise

    def interrupted(settings, kind, num_codes, say):
        if num_codes == 32:
            raise KeyboardInterrupt
        return optimise(settings, kind, num_codes, say)

    monkeypatch.setattr(program, "optimise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        program.run(QUICK, ["hadamard"], [16, 32], output, "command", lambda text: None)
    assert [point["num_codes"] for point in tables.load(output)["points"]] == [16]


def test_errors_are_one_sentence(quick_options, tmp_path, fails):
    (tmp_path / "damaged.json").write_text('{"points": [')
    good = [*quick_options, "--codes", "16"]
    assert program.main(good) == 0
    for option, value, words in (
        ("--eps", 0.1, "eps"),
        ("--codes", 0, "at least 1"),
        ("--seconds-per-point", 0, "--seconds-per-point was 0.0"),
        ("--steps", 0, "--steps was 0, expected at least 1"),
        ("--output", tmp_path / "missing" / "file.json", "a folder that exists"),
        ("--output", tmp_path / "damaged.json", "expected results of experiments.theorem"),
        ("--seed", 1, "expected the same seed"),
    ):
        fails(program.main, [*good, option, value], words)
    assert figures.main([str(tmp_path / "none.json"), str(tmp_path / "out.png")]) == 2


def test_table_and_picture(quick_options, tmp_path, capsys):
    assert program.main([*quick_options, "--codes", "16", "64"]) == 0
    capsys.readouterr()
    file = tmp_path / "results.json"
    assert program.main(["--table", str(file)]) == 0
    # Without the spaces that align the columns.
    lines = re.sub(r" *\| *", "|", capsys.readouterr().out).splitlines()
    assert len([line for line in lines if line.startswith("|hadamard|64|32|")]) == 2
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert figures.main([str(file), str(tmp_path / "out.png")]) == 0
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
