"""Tests of setup.py, pyproject.toml, MANIFEST.in and csrc/: what wheel and sdist hold, and that no torch header is in.

Both are built here without build isolation, because an isolated build needs a network; in a copy of the sources, so
that the checkout stays as it is; and without optimisation, which would take twice as long.
"""

from __future__ import annotations

import email
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("cplearn_kernels", "csrc", "cmake", "train", "bench", "tests")
FILES = ("setup.py", "pyproject.toml", "CMakeLists.txt", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md")
SCRIPTS = sysconfig.get_path("scripts")  # a virtual environment need not be on PATH
# Without CUDA kernels: they take minutes, and what the tests run in was built with them where nvcc is.
ENVIRONMENT = {
    **os.environ,
    "PATH": os.pathsep.join([SCRIPTS, os.environ.get("PATH", "")]),
    "PIP_NO_INPUT": "1",
    "CMAKE_ARGS": "-DCPLEARN_CUDA=OFF",
}


def missing_tools():
    programs = [name for name in ("cmake", "ninja") if shutil.which(name, path=ENVIRONMENT["PATH"]) is None]
    # Distributions, not find_spec: looking for the module pip switches off setuptools' distutils in this process.
    installed = {distribution.name.lower() for distribution in importlib.metadata.distributions()}
    return programs + [name for name in ("pip", "pybind11", "setuptools") if name not in installed]


needs_tools = pytest.mark.skipif(bool(missing_tools()), reason=f"cannot build here, missing: {missing_tools()}")


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """The sources alone: nothing that was built in the checkout."""
    target = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, target / name)
    recipe = target / "CMakeLists.txt"
    assert '"-O3 -DNDEBUG"' in recipe.read_text()
    recipe.write_text(recipe.read_text().replace('"-O3 -DNDEBUG"', '"-O0 -DNDEBUG"'))
    return target


@pytest.fixture(scope="module")
def wheel(copied, tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", ".", "--no-build-isolation", "--no-deps", "-w", str(out), cwd=copied)
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def sdist(copied, tmp_path_factory):
    out = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-c", f"import setuptools.build_meta as b; b.build_sdist({str(out)!r})", cwd=copied)
    (path,) = out.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}


def metadata(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


def sources(folder, *patterns):
    return {str(p.relative_to(ROOT)) for pattern in patterns for p in (ROOT / folder).rglob(pattern)}


@needs_tools
def test_wheel_holds_the_package_alone(wheel):
    names = wheel.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"cplearn_kernels", next(top for top in tops if top.endswith(".dist-info"))}
    assert {name for name in names if name.endswith(".py")} == sources("cplearn_kernels", "*.py")
    for record in ("backends/triton/tuning.json", "backends/cuda/architectures.json", "py.typed", "_core.pyi"):
        assert f"cplearn_kernels/{record}" in names
    core = [name for name in names if name.endswith((".so", ".pyd"))]
    assert len(core) == 1 and core[0].startswith("cplearn_kernels/_core.")
    assert not any(name.endswith((".h", ".cpp", ".txt.in")) for name in names)
    assert any(name.endswith("LICENSE") and ".dist-info/" in name for name in names)


@needs_tools
def test_wheel_metadata(wheel):
    fields = metadata(wheel)
    version = {}
    exec((ROOT / "cplearn_kernels" / "version.py").read_text(), version)
    assert (fields["Name"], fields["Version"]) == ("cplearn-kernels", version["__version__"])
    assert fields["Requires-Python"] == ">=3.10" and fields["License-Expression"] == "MIT"
    required = [entry for entry in fields.get_all("Requires-Dist") if "extra ==" not in entry]
    assert sorted(re.match(r"[a-z]+", entry)[0] for entry in required) == ["numpy", "torch"]
    (torch_range,) = (entry for entry in required if entry.startswith("torch"))
    # torch.library.infer_schema and register_autograd with `lib` need 2.5; what is tested starts at 2.6.
    assert torch_range == "torch>=2.6"
    assert set(fields.get_all("Provides-Extra")) == {"train", "gpu", "bench", "test", "lint"}


@needs_tools
def test_the_wheel_works_outside_the_checkout(wheel, tmp_path):
    wheel.extractall(tmp_path / "site")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import torch, cplearn_kernels as cpk\n"
        "d = cpk.HadamardDictionary(7, 20)\n"
        "h = torch.nn.functional.normalize(torch.randn(3, 7), dim=1).requires_grad_()\n"
        "cpk.cplearn_loss(h, h, d, temperature=0.5, backend='cpu').backward()\n"
        "assert h.grad.isfinite().all()\n"
        "print(cpk.backends()['cuda'], cpk.__file__, sep='\\n')\n"
    )
    backend, path = run(sys.executable, "-c", script, cwd=tmp_path).splitlines()
    assert Path(path).is_relative_to(tmp_path)
    assert backend == ("cuda: cannot run (the compiled core was built without CUDA: it was switched off by "
                       "CPLEARN_CUDA=OFF)")  # fmt: skip


@needs_tools
def test_without_nvcc_the_build_says_what_is_missing(copied, tmp_path):
    import pybind11

    configure = ["cmake", "-S", str(copied), "-B", str(tmp_path), f"-DPython_EXECUTABLE={sys.executable}",
                 f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]  # fmt: skip
    environment = {**ENVIRONMENT, "CUDACXX": str(tmp_path / "no-nvcc")}
    done = subprocess.run(configure, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Without CUDA kernels: no working nvcc was found" in done.stdout
    insisted = subprocess.run(
        [*configure, "-DCPLEARN_CUDA=ON"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert insisted.returncode != 0 and "CPLEARN_CUDA=ON, but no working nvcc was found" in insisted.stderr


@needs_tools
def test_sdist_holds_what_a_build_needs(sdist):
    wanted = (
        sources("csrc", "*.h", "*.cpp", "*.cu", "*.cuh") | sources("cmake", "*") | sources("cplearn_kernels", "*.py")
    )
    wanted |= {"CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md"}
    assert wanted - sdist == set()
    assert not any(name.endswith((".so", ".o", ".pyc")) for name in sdist)
    assert not any(name.split("/")[0] in ("train", "bench", "build") for name in sdist)


@needs_tools
def test_the_checkout_is_not_what_was_built_in(copied):
    assert not copied.is_relative_to(ROOT)


FOREIGN = re.compile(r'#\s*include\s*[<"](torch|ATen|c10|caffe2|Python\.h)|libtorch|find_package\((Torch|ATen)', re.I)


def test_no_torch_header_in_the_core():
    found = sources("csrc", "*.h", "*.cpp", "*.cu", "*.cuh")
    assert len(found) > 3
    for name in (*found, "CMakeLists.txt", "setup.py"):
        assert FOREIGN.search((ROOT / name).read_text()) is None, name
    for wrong in ("#include <torch/extension.h>", '# include "ATen/ATen.h"', "find_package(Torch REQUIRED)"):
        assert FOREIGN.search(wrong)


def test_building_needs_no_torch():
    text = (ROOT / "pyproject.toml").read_text()
    (requires,) = re.findall(r"^requires = (.*)$", text, re.M)
    assert "torch" not in requires and all(name in requires for name in ("setuptools", "pybind11", "cmake", "ninja"))
