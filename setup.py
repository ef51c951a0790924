"""Builds the compiled core through CMake and ninja; everything else about the package is in pyproject.toml."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class CMakeBuild(build_ext):
    """Configure and build CMakeLists.txt, leaving `_core` where setuptools expects it (in place too)."""

    def build_extension(self, ext):
        source = Path(__file__).resolve().parent
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            "-S", str(source),
            "-B", str(build),
            "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]  # fmt: skip
        try:
            subprocess.run(configure, check=True)
            subprocess.run(["cmake", "--build", str(build)], check=True)
        except FileNotFoundError:
            sys.exit("cplearn-kernels: CMake was not found; install it, or build with pip's build isolation")
        except subprocess.CalledProcessError as error:
            sys.exit(f"cplearn-kernels: the C++ core did not build ({' '.join(error.cmd[:2])} failed, see above)")


setup(ext_modules=[Extension("cplearn_kernels._core", sources=[])], cmdclass={"build_ext": CMakeBuild})
