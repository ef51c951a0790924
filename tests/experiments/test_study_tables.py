"""experiments/studies/tables.py and figures.py: intervals of known samples, paired differences, and what is drawn."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from experiments.studies import figures, tables
from experiments.studies.definitions import STUDIES

ROOT = Path(__file__).resolve().parents[2]
VERDICTS = {name: {"collapsed": False} for name in tables.COLLAPSES}


def study(codes=(10, 100)):
    def run(seed, value, collapsed=False):
        verdicts = VERDICTS | {"dimensional": {"collapsed": collapsed}}
        return dict.fromkeys(tables.MEASURES, value) | {"seed": seed, "num_features": 64, "verdicts": verdicts}

    arms = []
    for i, c in enumerate(codes):
        runs = [run(s, 0.1 * i + 0.01 * s, i == 1 and s > 0) for s in range(3)]
        arms.append({"label": f"{c}", "options": {"num_codes": c}, "runs": runs})
    return {"study": "x", "question": "More?", "baseline": "10", "data": "made up", "steps": 936, "arms": arms}


def test_half_interval_of_a_known_sample():
    """Of 1, 2, 3: standard error 1/√3, Student's t of 2 degrees of freedom 4.302653."""
    assert tables.half_interval(np.array([1.0, 2.0, 3.0])) == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert math.isnan(tables.half_interval(np.array([1.0])))


@pytest.mark.parametrize("sample, signed, text", [
    ([0.1, 0.11, 0.12], False, "0.110 ± 0.025"),
    ([1000, 1010, 1020], False, "1010 ± 25"),
    ([10, 11, 12], False, "11.0 ± 2.5"),
    ([150.1, 150.3, 150.2], False, "150.20 ± 0.25"),
    ([0.0004, 0.0003, 0.0005], False, "0.0004 ± 0.0002"),
    ([0.5], False, "0.500 ± –"),
    ([0.02, 0.02, 0.02], True, "+0.020 ± 0.000"),
    ([-0.2, -0.2], True, "-0.200 ± 0.000"),
])  # fmt: skip
def test_cells(sample, signed, text):
    assert tables.cell(np.array(sample, dtype=float), signed) == text


def test_differences_are_taken_seed_by_seed():
    """The arms differ by 0.1 in each seed, so the interval of the difference is 0 although the seeds differ."""
    content = study()
    row = tables.differences_table(content).splitlines()[-1]
    assert squeezed(row).startswith("|100|+0.1000 ± 0.0000|")
    content["arms"][1]["runs"].reverse()
    assert tables.differences_table(content).splitlines()[-1] == row
    del content["arms"][1]["runs"][1:]
    assert "+0.100 ± –" in tables.differences_table(content)


def test_collapses_are_counted_over_the_runs():
    first, second = study()["arms"]
    assert tables.collapses_found(first) == "none, 3 of 3"
    assert tables.collapses_found(second) == "dimensional, 2 of 3"
    for run in first["runs"]:
        run["verdicts"] = {**run["verdicts"], "cluster": {"collapsed": None}}
    assert tables.collapses_found(first) == "cluster not judged, 3 of 3"


def test_spread_is_in_units_of_an_even_one():
    assert list(tables.values(study()["arms"][1], "embedding_std")) == pytest.approx([0.8, 0.88, 0.96])


def test_commands(tmp_path, capsys):
    path, picture = tmp_path / "x.json", tmp_path / "x.png"
    path.write_text(json.dumps(study()))
    assert tables.main([str(path)]) == 0
    text = capsys.readouterr().out
    assert "### More?" in text and "made up, 936 steps, seeds 0, 1, 2" in text and "dimensional, 2 of 3" in text
    assert figures.main([str(path), str(picture)]) == 0 and picture.stat().st_size > 10_000
    assert figures.main([str(path), str(tmp_path / "x.abacus")]) == 2 and "ending of a kind" in capsys.readouterr().err
    empty, strange = study(), study()
    empty["arms"][1]["runs"].clear()
    strange["baseline"] = "none"
    for content in ({}, [], None, 3, empty, strange):
        path.write_text(json.dumps(content))
        assert tables.main([str(path)]) == figures.main([str(path), str(picture)]) == 2
        errors, words = capsys.readouterr().err.splitlines(), "expected a file that python -m experiments.studies wrote"
        assert len(errors) == 2 and all(words in line for line in errors)


@pytest.mark.parametrize("codes, scale", [((10, 100), "log"), ((10, 10), "linear")])
def test_the_figure_shows_the_means_against_the_codes(codes, scale):
    figure = figures.draw(study(codes))
    axes = figure.axes[0]
    assert axes.get_xscale() == scale
    line = axes.lines[0]
    assert list(line.get_ydata()) == pytest.approx([0.01, 0.11])
    assert list(line.get_xdata()) == ([10, 100] if scale == "log" else [0, 1])


def test_the_figure_marks_thresholds_and_single_seeds():
    content = study()
    content["arms"][1]["runs"] = content["arms"][1]["runs"][:1]
    for arm in content["arms"]:
        for run in arm["runs"]:
            judged = {"collapsed": False, "measure": "embedding_std", "threshold": 0.5 / 8}
            run["verdicts"] = {**run["verdicts"], "representation": judged}
    figure = figures.draw(content)
    spread = next(axes for axes in figure.axes if axes.get_ylabel() == "spread: std × √f")
    levels = [line for line in spread.lines if line.get_label() == "collapsed below"]
    assert [line.get_ydata()[0] for line in levels] == [pytest.approx(0.5)]
    hollow = [line for line in spread.lines if line.get_markerfacecolor() == "white"]
    assert [list(line.get_xdata()) for line in hollow] == [[100]]
    assert "1 or 3 seeds, 95 % intervals (hollow: one seed, none)" in figure.get_suptitle()


def squeezed(markdown):
    """A table without the spaces that align its columns."""
    return re.sub(r" *\| *", "|", re.sub(r"-{3,}", "---", markdown))


@pytest.mark.parametrize("name", STUDIES)
def test_the_tables_of_the_documentation_are_those_of_the_results(name):
    """Pasted tables go stale; the words around them are for a reader to check."""
    content = tables.read_study(ROOT / "experiments" / "studies" / "results" / f"{name}.json")
    documented = squeezed((ROOT / "docs" / "studies.md").read_text())
    for table in (tables.means_table(content), tables.differences_table(content)):
        assert squeezed(table) in documented
