"""Compiles every CUDA kernel, with no GPU, and reports registers, spills, shared memory, occupancy and instruction mix.

    python -m bench.cuda_resources                        # all; JSON in bench/results; status 1 on a spill or a stack
    python -m bench.cuda_resources --arch sm_90 --block 2048 --block stored
    python -m bench.cuda_resources --built                # reads the installed extension instead; compiles nothing

Instructions are those of a thread in one round of the main loop, per logit (a row with a code; for sign_product a logit
with 128 of its features). Counted is the common way round; bench/cuda_code.py says how it is found. Rare branches stand
behind it, each with its instructions per logit when it is taken:

    flush      float32 sums go to doubles: once in 32 blocks, or at the end of a split
    best_code  the row's best code lies in this block: one block in all, and only the warp that has it
    new_best   a lane has found a better code, so both sides of the branch run (bench/cuda_model.py says how often)
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.cuda_built import report, tool
from bench.cuda_code import functions, loop_mix
from bench.cuda_kernels import SOURCES, UNITS, Unit, dynamic_shared, numbers_of_thread, rare_branches, readable
from bench.gpu_rates import LIMITS

RESULTS = Path(__file__).resolve().parent / "results" / "cuda_resources.json"
ARCHITECTURES = ("sm_80", "sm_90", "sm_90a", "sm_100")
COLUMNS = ("all", "fp32", "imad", "integer", "special", "shared", "shared_bytes", "shuffle", "global", "global_bytes",
           "reduction", "conversion", "double", "tensor", "barrier", "local", "other")  # fmt: skip
# Rounds of the loop over words of 32 features within that over 128, in sign_product.cu.
INNER_TRIPS = {"sign_product": 4}

_PTXAS = re.compile(
    r"Compiling entry function '(\S+)' for '\w+'\n.*?\n\s*(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads\n.*?Used (\d+) registers(.*)"
)
_THREADS = re.compile(r"EIATTR_MAX_THREADS.*?\.word\s+0x(\w+)", re.DOTALL)


def parse_ptxas(text: str) -> dict[str, dict[str, int]]:
    """What `ptxas -v` says of each kernel, by its mangled name."""
    found = {}
    for name, stack, stores, loads, registers, rest in _PTXAS.findall(text):
        shared = re.search(r"(\d+) bytes smem", rest)
        found[name] = {"registers": int(registers), "spill_stores": int(stores), "spill_loads": int(loads),
                       "stack": int(stack), "static_shared": int(shared.group(1)) if shared else 0}  # fmt: skip
    return found


def parse_threads(disassembly: str) -> dict[str, int]:
    """Most threads of a block (the launch bound, which is how the kernels are launched) by mangled name."""
    sections = re.split(r"\t\.section\t\.nv\.info\.", disassembly)[1:]
    found = {}
    for section in sections:
        threads = _THREADS.search(section)
        if threads:
            found[re.match(r'[^,"\s]+', section).group(0)] = int(threads.group(1), 16)
    return found


def compile_unit(unit: Unit, arch: str, nvcc: str, nvdisasm: str) -> list[dict[str, Any]]:
    """One record per kernel of a translation unit."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "unit.cubin"
        command = [nvcc, "-std=c++17", "-O3", "-DNDEBUG", *unit.options, "-cubin", f"-arch={arch}", "-Xptxas", "-v",
                   str(SOURCES / f"{unit.source}.cu"), "-o", str(cubin)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{unit.name} does not compile for {arch}: {done.stderr.strip()[-2000:]}")
        listing = subprocess.run([nvdisasm, str(cubin)], capture_output=True, text=True, check=True).stdout
    threads, code = parse_threads(listing), functions(listing)
    return [
        record_of(unit, arch, name, usage, threads[name], code[name])
        for name, usage in parse_ptxas(done.stdout + done.stderr).items()
    ]


def record_of(
    unit: Unit, arch: str, mangled: str, usage: dict[str, int], threads: int, code: list[str]
) -> dict[str, Any]:
    """A kernel's record: what it needs, what fits on a multiprocessor, what its main loop does."""
    kernel = readable(mangled)
    shared = dynamic_shared(kernel, unit.log2_block, threads)
    blocks = LIMITS[arch].resident_blocks(threads, usage["registers"], usage["static_shared"] + shared)
    kept = {"common", *rare_branches(kernel)}
    has_loop = unit.log2_block is not None or kernel.startswith("sign_product")
    loop = loop_mix(code, INNER_TRIPS.get(unit.source, 1)) if has_loop else {}
    instructions = "\n".join(line.split("/*")[1][4:] for line in code if re.match(r"\s+/\*[0-9a-f]{4,}\*/", line))
    return {"arch": arch, "unit": unit.name, "kernel": kernel, **usage, "dynamic_shared": shared, "threads": threads,
            "blocks": blocks, "warps": blocks * threads // 32, "numbers": numbers_of_thread(kernel),
            "loop": {part: mix for part, mix in loop.items() if part in kept},
            "digest": hashlib.sha1(instructions.encode()).hexdigest()}  # fmt: skip


def compile_all(wanted: list[tuple[Unit, str]], jobs: int, nvcc: str, nvdisasm: str) -> list[dict[str, Any]]:
    """Compiles with so many compilers at a time and prints the progress to stderr."""
    records, began = [], time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        made = [pool.submit(compile_unit, unit, arch, nvcc, nvdisasm) for unit, arch in wanted]
        for number, ((unit, arch), future) in enumerate(zip(wanted, made), 1):
            records += future.result()
            print(f"{number} of {len(wanted)}, {time.monotonic() - began:.0f} s: {unit.name} for {arch}",
            file=sys.stderr,
                  flush=True)  # fmt: skip
    return records


def without_twins(records: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
    """(records, whether sm_90a was dropped because all its code is that of sm_90)."""
    code = {arch: {(r["unit"], r["kernel"]): r["digest"] for r in records if r["arch"] == arch}
            for arch in ("sm_90", "sm_90a")}  # fmt: skip
    same = bool(code["sm_90a"]) and code["sm_90"] == code["sm_90a"]
    kept = [r for r in records if not (same and r["arch"] == "sm_90a")]
    return [{key: value for key, value in r.items() if key != "digest"} for r in kept], same


def problem(record: dict[str, Any]) -> str:
    """Why a kernel must not ship; empty where there is no reason."""
    if record["spill_stores"] or record["spill_loads"]:
        return f"spills {record['spill_stores']} B, reads {record['spill_loads']} B"
    if record["stack"]:
        return f"stack frame of {record['stack']} B"
    return "" if record["blocks"] else "does not fit on a multiprocessor"


def table(records: list[dict[str, Any]]) -> str:
    """Records as aligned text: resources first, then instructions per logit."""
    head = ["arch", "tile", "kernel", "regs", "shared", "threads", "blocks", "warps", "problem"]
    lines = [head] + [[r["arch"], r["unit"], r["kernel"], r["registers"], r["static_shared"] + r["dynamic_shared"],
                       r["threads"], r["blocks"], r["warps"], problem(r)] for r in records]  # fmt: skip
    mixes = [["arch", "tile", "kernel", "way", *COLUMNS]]
    for r in records:
        for part, mix in r["loop"].items():
            counts = [f"{mix[unit] / r['numbers']:.2f}" if unit in mix else "-" for unit in COLUMNS]
            mixes.append([r["arch"], r["unit"], r["kernel"], part, *counts])
    return "\n\n".join((_aligned(lines), "thread instructions and bytes per logit, main loop\n" + _aligned(mixes)))


def _aligned(lines: list[list[Any]]) -> str:
    widths = [max(len(str(line[i])) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(str(cell).ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cuda_resources", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--arch", action="append", choices=ARCHITECTURES, help="default: all")
    parser.add_argument("--block", action="append", choices=[unit.name for unit in UNITS],
                        help="a block size, `stored` for independent codes, or a file; default: all")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time (default: %(default)s)")
    parser.add_argument("--nvcc", default="nvcc", help="the compiler (default: %(default)s)")
    parser.add_argument(
        "--json", type=Path, help="where the record goes (default: bench/results, when all is compiled)"
    )
    parser.add_argument("--built", action="store_true", help="read the installed extension; compile nothing")
    chosen = parser.parse_args(arguments)
    if chosen.built:
        status, text = report()
        print(text, file=sys.stderr if status == 2 else sys.stdout)
        return status
    nvcc, nvdisasm = tool(chosen.nvcc), tool("nvdisasm")
    if nvcc is None or nvdisasm is None:
        print(f"no {chosen.nvcc if nvcc is None else 'nvdisasm'}: it is part of NVIDIA's CUDA toolkit", file=sys.stderr)
        return 2
    units = [unit for unit in UNITS if chosen.block is None or unit.name in chosen.block]
    wanted = [(unit, arch) for arch in chosen.arch or ARCHITECTURES for unit in units]
    records, same = without_twins(compile_all(wanted, chosen.jobs, nvcc, nvdisasm))
    print(table(records))
    if same:
        print("sm_90a: the same machine code as sm_90, kernel by kernel")
    path = chosen.json or (RESULTS if chosen.arch is None and chosen.block is None else None)
    if path:
        write(path, records, nvcc, same)
    bad = sum(bool(problem(record)) for record in records)
    print(f"{len(records)} kernels, {bad} with a problem")
    return int(bad > 0)


def write(path: Path, records: list[dict[str, Any]], nvcc: str, same: bool) -> None:
    """JSON, a kernel a line."""
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release ([\d.]+)", version).group(1)
    lines = ",\n".join(json.dumps(record) for record in records)
    path.write_text(
        f'{{"schema": 1, "nvcc": "{release}", "sm_90a_is_sm_90": {json.dumps(same)}, "kernels": [\n{lines}\n]}}\n'
    )


if __name__ == "__main__":
    sys.exit(main())
