"""Tests of how the files import each other: no circles, arrows that run one way, no backend that knows another."""

from __future__ import annotations

import graphlib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[2]
# From the bottom to the top: none imports one that stands after it, and the last two leave each other alone.
PACKAGES = [name for name in ("cplearn_kernels", "train", "experiments", "bench") if (ROOT / name).is_dir()]
BACKENDS = sorted(path.parent.name for path in (ROOT / "cplearn_kernels" / "backends").glob("*/functions.py"))


def graph_of(*packages):
    """Every module of the packages with the modules that it imports, at its top or inside of a function."""
    graph = grimp.build_graph(*packages, cache_dir=None)

    def of_the_core(importer, imported):
        # The compiled core has no Python file; its package stands in for it.
        lines = graph.get_import_details(importer=importer, imported=imported)
        return all(line["line_contents"] == "from ... import _core" for line in lines)

    return {
        module: {other for other in graph.find_modules_directly_imported_by(module) if not of_the_core(module, other)}
        for module in graph.modules
    }


def circle(graph):
    """The modules of one circle, or an empty list."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def imports(graph, importers, imported):
    """(importing module, imported module) from one package or module to another."""

    def within(module, package):
        return module == package or module.startswith(f"{package}.")

    return sorted(
        (module, other)
        for module, others in graph.items()
        for other in others
        if within(module, importers) and within(other, imported)
    )


@pytest.fixture(scope="module")
def graph():
    return graph_of(*PACKAGES)


def test_the_graph_holds_every_file(graph):
    """A folder without __init__.py would go unseen."""
    files = {path.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    modules = {".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files}
    assert modules - set(graph) == set()
    assert ("cplearn_kernels.functional", "cplearn_kernels.ops") in imports(graph, "cplearn_kernels", "cplearn_kernels")
    assert imports(graph, "train", "cplearn_kernels")


def test_no_circle(graph):
    assert circle(graph) == []


@pytest.mark.parametrize("below, above", [
    (below, above) for i, below in enumerate(PACKAGES) for above in PACKAGES[i + 1 :]
])  # fmt: skip
def test_arrows_run_one_way(graph, below, above):
    assert imports(graph, below, above) == []


@pytest.mark.parametrize("importer", BACKENDS)
def test_a_backend_imports_no_other_and_nothing_that_imports_backends(graph, importer):
    assert len(BACKENDS) == 4
    package = "cplearn_kernels.backends"
    for other in BACKENDS:
        assert other == importer or imports(graph, f"{package}.{importer}", f"{package}.{other}") == []
    for user in (
        f"{package}.select",
        "cplearn_kernels.ops",
        "cplearn_kernels.functional",
        "cplearn_kernels.distributed",
    ):
        assert imports(graph, f"{package}.{importer}", user) == []


def test_circles_and_wrong_arrows_are_found(tmp_path, monkeypatch):
    sources = {
        "made_low/__init__.py": "",
        "made_low/a.py": "from . import b",
        "made_low/b.py": "def late():\n    from .deeper import c",
        "made_low/deeper/__init__.py": "",
        "made_low/deeper/c.py": "",
        "made_high/__init__.py": "from made_low.a import b",
    }
    for name, text in sources.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    graph = graph_of("made_low", "made_high")
    assert circle(graph) == [] and imports(graph, "made_low", "made_high") == []
    assert imports(graph, "made_high", "made_low") == [("made_high", "made_low.a")]
    assert imports(graph, "made_low.b", "made_low.deeper") == [("made_low.b", "made_low.deeper.c")]

    (tmp_path / "made_low/deeper/c.py").write_text("from ..a import b\nimport made_high\n")
    graph = graph_of("made_low", "made_high")
    assert {"made_low.a", "made_low.b", "made_low.deeper.c"} & set(circle(graph))
    assert imports(graph, "made_low", "made_high") == [("made_low.deeper.c", "made_high")]
