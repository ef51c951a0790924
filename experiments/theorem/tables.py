"""The results of experiments.theorem: read from their file, and written as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from pathlib import Path

from tabulate import tabulate

from train.errors import InputError
from train.files import read_json


def _number(key: str, form: str) -> Callable[[dict], str]:
    return lambda point: "–" if point[key] is None else format(point[key], form)


def _share(key: str) -> Callable[[dict], str]:
    """0.9123, or 1 − 2e-07 where four digits would say 1."""
    return lambda point: f"{point[key]:.4f}" if point[key] < 0.999 else f"1 − {1 - point[key]:.0e}"


NAME = {"dictionary": itemgetter("dictionary"), "c": _number("num_codes", ","), "n": _number("num_rows", ",")}
LEMMA = {
    "steps": _number("steps", ""),
    "codes used": _number("codes_used", ","),
    "rows per code": lambda p: "–".join(dict.fromkeys((str(p["fewest_rows"]), str(p["most_rows"])))),
    "max p, mean": _share("max_p_mean"),
    "least": _share("max_p_min"),
    "predicted": _share("max_p_predicted"),
    "cos to own code": _number("cosine_own_code", ".3f"),
    "cos to code − competitors": _number("cosine_code_less_competitors", ".4f"),
    "prior − its floor": lambda p: f"{p['prior'] - p['prior_floor']:.1e}",
    "loss − floor": _number("loss_above_floor", ".1e"),
    "same, rows on codes": _number("loss_above_floor_on_codes", ".1e"),
}
FRAME = {
    "deviation of H": _number("deviation", ".3f"),
    "of its codes": _number("deviation_of_codes", ".3f"),
    "of W": _number("deviation_of_dictionary", ".3f"),
    "√(f/min(n, c))": _number("deviation_expected", ".3f"),
    "mean abs. cos, same code": _number("cosine_within", ".4f"),
    "other code": _number("cosine_between", ".4f"),
}
"""Columns of the tables: heads, and what is written of a point."""


def load(path: Path) -> dict:
    """The results in `path`. Raises InputError."""
    expected = "results of experiments.theorem"
    results = read_json(path, expected)
    try:
        results["settings"].items(), [point["num_codes"] for point in results["points"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} could not be read ({type(error).__name__}), expected {expected}.") from None
    return results


def tables(results: dict) -> str:
    """The results as two Markdown tables, of the lemma and of the theorem."""
    points = sorted(results["points"], key=lambda point: (point["dictionary"], point["num_codes"]))
    drawn = []
    for columns in (NAME | LEMMA, NAME | FRAME):
        rows = [[write(point) for write in columns.values()] for point in points]
        sides = ["left", *["right"] * (len(columns) - 1)]
        drawn.append(tabulate(rows, list(columns), tablefmt="pipe", disable_numparse=True, colalign=sides))
    return "\n\n".join(drawn)
