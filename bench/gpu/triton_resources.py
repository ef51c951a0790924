"""Compiles what the Triton backend launches ahead of time, with no GPU; reports registers, spills, shared memory.

    python -m bench.gpu.triton_resources      # JSON in bench/results; status 1 on a spill; half an hour on one core

The backend itself runs, on CPU tensors, with launches that compile for an architecture and then do nothing: so
arguments and modes are those that it uses, and what lies in the tensors means nothing.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import itertools
import json
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from tabulate import tabulate

from bench.gpu.cuda_resources import read, write
from bench.results import RESULTS
from cplearn_kernels.backends.triton import tuning
from cplearn_kernels.backends.triton.tuning import Configuration

# Bytes of shared memory that one program may have (CUDA C++ programming guide, compute capabilities; CDNA 3 ISA).
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
ARCHITECTURES = tuple(SHARED_LIMIT)
FORMS = (*(f"kronecker-{1 << log2}" for log2 in range(8, 13)), "codes-32", "codes-64", "codes-128", "codes-grouped")
SMALL_KERNELS_OF = "codes-128"  # kernels that have no configuration hardly differ between forms: compiled with this one
_ROWS = 128  # as many as the largest tile has: no configuration is cut
_TILE = {"BM": "rows", "BN": "codes", "num_warps": "warps", "num_stages": "stages"}


def is_used(form: str, arch: str) -> bool:
    """Whether an architecture has a form."""
    return not form.startswith("kronecker") or int(form.split("-")[1]) <= tuning.largest_block(arch)


def compile_form(
    arch: str, form: str, modes: str = "all", configurations: dict[str, Configuration] | None = None
) -> list[dict[str, Any]]:
    """Compiles every kernel of a form, in a process without TRITON_INTERPRET.

    `modes` is "all"; "dearest": of each kernel the mode that needs most; "loss": the dearest of the loss alone.
    `configurations` are used instead of the table's. A record per kernel and mode: `arch`, `form`, `kernel`, `options`
    (its compile-time arguments), the configuration, and what its machine code needs; `error` if it does not compile.
    """
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    amd = arch.startswith("gfx")
    target = GPUTarget("hip", arch, 64) if amd else GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    stand_in = mock.Mock()
    stand_in.get_current_target.return_value = target
    stand_in.get_current_device.return_value = arch  # the key under which Triton keeps what it has compiled
    records: dict[str, dict[str, Any]] = {}
    run = JITFunction.run

    def compile_only(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        if "BM" not in options and form != SMALL_KERNELS_OF:
            return
        constants = {name: value for name, value in options.items() if name.isupper() and name not in _TILE}
        record = {"arch": arch, "form": form, "kernel": kernel.fn.__name__, "options": constants}
        record |= {name: options[key] for key, name in _TILE.items() if key in options}
        key = json.dumps(record)
        if key in records:
            return
        records[key] = record
        try:
            built = run(kernel, *arguments, grid=grid, warmup=True, **options)
        except Exception as error:
            record["error"] = str(error).strip()[-2000:]
            return
        record["shared"] = built.metadata.shared
        record |= _amd_usage(built.asm["amdgcn"]) if amd else _nvidia_usage(built.asm["cubin"])

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(tuning, "architecture", lambda device: arch))
        stack.enter_context(mock.patch.object(JITFunction, "run", compile_only))
        stack.enter_context(mock.patch.object(driver, "_active", stand_in))
        for kernel, configuration in (configurations or {}).items():
            stack.enter_context(tuning.override(kernel, form, configuration))
        _call_everything(form, modes)
    return list(records.values())


def _call_everything(form: str, modes: str) -> None:
    """Calls the backend's functions so that every kernel is launched, in all `modes` or the dearest."""
    import torch

    import cplearn_kernels as cpk
    from cplearn_kernels.backends.triton import functions

    name, _, size = form.partition("-")
    f = 2048 if size == "grouped" else int(size)
    dictionary = (cpk.HadamardDictionary if name == "kronecker" else cpk.RademacherDictionary)(f, 3 * max(f, 1024) + 1)
    c = dictionary.num_codes
    h, v = torch.zeros(_ROWS, f), torch.ones(c)
    losses = itertools.product(("cross_entropy", "reverse_kl"), (v, None))
    for prior, given in losses if modes == "all" else [("cross_entropy", v)]:
        functions.cplearn_loss(h, h, dictionary, 1.0, 1.0, prior, given, True)
    if modes == "loss":
        return
    functions.projector_softmax(h, dictionary, 1.0)
    functions.projector_softmax_backward(torch.zeros(_ROWS, c), h, torch.zeros(_ROWS, c), dictionary, 1.0)
    functions.expected_code_backward(h, h, dictionary, 1.0)
    if modes == "all":
        functions.mean_assignment_backward(v, h, dictionary, 1.0)
        functions.assign(h, dictionary, 3)


def _nvidia_usage(cubin: bytes) -> dict[str, int]:
    """Registers, and bytes of stack, where spills live."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        (found,) = read(Path(file.name))
    return {"registers": found["registers"], "spills": found["stack"] + found["local"]}


def _amd_usage(text: str) -> dict[str, int]:
    """As for NVIDIA. Scalar registers that are kept in lanes of vector registers cost no memory and are no spill."""
    numbers = {name: int(value) for name, value in re.findall(r"\.(\w+):\s*(\d+)", text)}
    spills = numbers.get("vgpr_spill_count", 0) + numbers.get("private_segment_fixed_size", 0)
    return {"registers": numbers["vgpr_count"], "spills": spills}


def problem(record: dict[str, Any]) -> str | None:
    """Why a kernel must not ship, or None."""
    if "error" in record:
        return "does not compile: " + record["error"].splitlines()[-1]
    if record["spills"]:
        return f"spills {record['spills']} bytes"
    limit = SHARED_LIMIT[record["arch"]]
    return None if record["shared"] <= limit else f"needs {record['shared']} bytes of shared memory, {limit} are there"


@contextlib.contextmanager
def compilers(jobs: int) -> Iterator[concurrent.futures.Executor]:
    """Processes for `compile_form`, with Triton's interpreter off and a cache that starts empty."""
    with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, {"TRITON_CACHE_DIR": cache}):
        os.environ.pop("TRITON_INTERPRET", None)
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
            yield pool


def main(arguments: list[str] | None = None) -> int:
    """The command; returns 1 where a kernel spills, does not compile or needs too much shared memory."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.triton_resources", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", action="append", choices=ARCHITECTURES, help="default: all")
    parser.add_argument("--form", action="append", choices=FORMS, help="default: all")
    parser.add_argument("--json", type=Path, default=RESULTS / "triton_resources.json", help="where the record goes")
    given = parser.parse_args(arguments)
    pairs = itertools.product(given.arch or ARCHITECTURES, given.form or FORMS)
    wanted = [(arch, form) for arch, form in pairs if is_used(form, arch)]
    with compilers(os.cpu_count() or 1) as pool:
        records = list(itertools.chain.from_iterable(pool.map(compile_form, *zip(*wanted, strict=True))))
    shown = ("arch", "form", "kernel", *_TILE.values(), "registers", "spills", "shared")
    print(tabulate([[r.get(name, "") for name in shown] + [problem(r)] for r in records], [*shown, "problem"]))
    write(given.json, records)
    bad = sum(problem(record) is not None for record in records)
    print(f"{len(records)} kernels, {bad} with a problem")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
