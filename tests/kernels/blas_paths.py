"""Runs the conformance suite over BLAS paths and prints each one's worst errors, as fractions of their tolerances.

    python tests/kernels/blas_paths.py [--all] [--triton] [--only TEXT] [pytest's options]

A path is an environment that makes torch or its libraries choose other code, or a BLAS emulated by `other_blas`. What
does not touch a BLAS is left out: the backends are "torch", and with --triton Triton's kernels, whose interpreter
multiplies with numpy. `--all` takes the tests marked slow, too. The oracle's answers are made once and shared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[2]
# What says that a processor can run a path; and the numbers of OpenBLAS for numpy's products.
FLAGS = {
    "avx2": "avx2",
    "avx512": "avx512f",
    "avx512_core": "avx512f",
    "avx512_core_amx": "amx_tile",
    "skylakex": "avx512f",
}
TORCH = [
    *({"ATEN_CPU_CAPABILITY": name} for name in ("default", "avx2", "avx512")),
    *({"MKL_CBWR": name} for name in ("COMPATIBLE", "SSE4_2", "AVX2", "AVX512")),
    *({"ONEDNN_MAX_CPU_ISA": name} for name in ("SSE41", "AVX2", "AVX512_CORE", "AVX512_CORE_AMX")),
]
NUMPY = [{"OPENBLAS_CORETYPE": name} for name in ("Prescott", "Nehalem", "Sandybridge", "Haswell", "Zen", "SkylakeX")]
SEEDS = 6
# Which paths are really different: the bits of a product that every library cuts into pieces.
FINGERPRINT = """
import hashlib, numpy, torch
a = torch.sin(torch.arange(256 * 2048, dtype=torch.float64)).float().view(256, 2048)
print(*(hashlib.sha256(x.tobytes()).hexdigest()[:6] for x in ((a @ a.T).numpy(), a.numpy() @ a.numpy().T)))
"""


def paths(variants):
    """(name, environment, options) of every path; the environment is None where the processor lacks it."""
    flags = set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").exists() else set(FLAGS.values())
    for variant in ({}, *variants):
        for threads in ("1",) if variant else ("1", "2"):
            name = " ".join(f"{key}={value}" for key, value in variant.items()) or "as it is"
            lacking = [v for v in variant.values() if FLAGS.get(v.lower(), "fpu") not in {*flags, "fpu"}]
            yield f"{name}, threads: {threads}", None if lacking else {**variant, "OMP_NUM_THREADS": threads}, []
    for seed in range(SEEDS):
        yield f"emulated, seed {seed}", {"OMP_NUM_THREADS": "1"}, ["--other-blas", str(seed)]


def worst(rows, kind):
    """The largest error of one kind as a fraction of its tolerance, and the test that has it."""
    row = max(rows, key=lambda row: row[f"{kind}_error"] / row[f"{kind}_tolerance"])
    fraction = row[f"{kind}_error"] / row[f"{kind}_tolerance"]
    return f"{fraction:.2f}", f"{row[f'{kind}_test']} {row['function']}, {row['dtype']}, {row['regime']}"


def run(tests, environment, options, folder) -> tuple[list, str]:
    """(what one path's run recorded, its last line)."""
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "other_blas", *tests, "--conformance-json", str(report),
               "--oracle-answers", str(folder), *options]  # fmt: skip
    done = subprocess.run(command, check=False, env=environment, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or [""]
    return json.loads(report.read_text()) if report.exists() else [], lines[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="the tests marked slow, too")
    parser.add_argument("--triton", action="store_true", help="Triton's kernels over the paths of numpy's BLAS instead")
    parser.add_argument("--only", default="", metavar="TEXT", help="the paths whose name has this text")
    parser.add_argument(
        "--answers", metavar="FOLDER", help="where the oracle's answers are kept (default: a temporary folder)"
    )
    arguments, options = parser.parse_known_args()
    tests = ["tests/kernels/test_conformance.py", "--conformance-backends", "torch"]
    if arguments.triton:
        tests = ["tests/kernels/triton/test_triton.py"]
    tests += [] if arguments.all else ["-m", "not slow"]
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, variant, path_options in paths(NUMPY if arguments.triton else TORCH):
            if arguments.only not in name:
                continue
            if variant is None:
                found.append([name, "", "this processor has no such instructions"])
                continue
            environment = {**os.environ, **variant, "PYTHONPATH": str(ROOT / "tests" / "support")}
            fingerprint = [sys.executable, "-c", FINGERPRINT]
            bits = subprocess.run(fingerprint, check=True, env=environment, capture_output=True, text=True).stdout
            product = bits.split()[arguments.triton]
            folder = Path(arguments.answers or temporary)
            rows, last = run(tests, environment, [*path_options, *options], folder)
            if rows:
                found.append(
                    [name, "" if path_options else product, *worst(rows, "value"), *worst(rows, "gradient"), last]
                )
            else:
                found.append([name, product, "", "", "", "", last])
            print(f"{name}: {last}", file=sys.stderr, flush=True)
    headers = ["path", "bits of a product", "value error / tolerance", "its test", "gradient error / tolerance",
               "its test", "outcome"]  # fmt: skip
    print(tabulate(found, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
