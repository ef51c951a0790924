"""Compiles every Triton kernel configuration ahead of time, with no GPU, and reports registers, spills, shared memory.

python -m bench.triton_resources                       # table; JSON in bench/results; status 1 on a spill
python -m bench.triton_resources --arch sm_90 --kernel weighted_codes
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import importlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator

from cplearn_kernels.backends.triton import tuning
from cplearn_kernels.backends.triton.tuning import KERNELS

RESULTS = Path(__file__).resolve().parent / "results" / "triton_resources.json"

# Shared memory that one program may have, bytes (CUDA C++ programming guide, table of compute capabilities; CDNA 3 ISA).
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
ARCHITECTURES = tuple(SHARED_LIMIT)
FORMS = tuple(f"kronecker-{1 << log2}" for log2 in range(8, 13)) + (
    "codes-32",
    "codes-64",
    "codes-128",
    "codes-grouped",
)

_TYPES = {
    "high": "*fp16", "low": "*fp16", "high_out": "*fp16", "low_out": "*fp16", "x_high": "*fp16", "x_low": "*fp16",
    "code": "*i32", "code_out": "*i32", "table": "*i32", "others_out": "*fp64", "centre_out": "*fp64",
    "target_out": "*fp64", "uniform": "fp32", "beta": "fp32", "beta_ln2": "fp32", "best": "*i32",
}  # fmt: skip
_POINTERS = {"rows", "best_out", "sums_out", "slopes", "prior", "scale_out", "scales", "out"}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One kernel compiled for one architecture, form and mode.

    Attributes:
        kernel: a name of `tuning.KERNELS`.
        form: the key of the table, e.g. "kronecker-2048".
        options: the kernel's other compile-time arguments, as (name, value) pairs.
        rows, codes, warps, stages  the configuration.
    """

    arch: str
    kernel: str
    form: str
    options: tuple[tuple[str, Any], ...]
    rows: int
    codes: int
    warps: int
    stages: int


def variants(
    arch: str, kernels: list[str] | None = None, forms: list[str] | None = None, dearest: bool = False
) -> Iterator[Variant]:
    """Every configuration for one architecture, the table's or the rule's, in all modes or the one that needs most."""
    for kernel in kernels or KERNELS:
        for form in forms or FORMS:
            if not is_used(kernel, form, arch):
                continue
            config = dataclasses.asdict(tuning.choose(arch, kernel, form, 1 << 20))
            for options in modes(kernel)[-1:] if dearest else modes(kernel):
                yield Variant(arch, kernel, form, tuple(sorted(options.items())), **config)


def is_used(kernel: str, form: str, arch: str) -> bool:
    """Whether a kernel runs for a form on an architecture."""
    if form.startswith("kronecker") and int(form.split("-")[1]) > tuning.largest_block(arch):
        return False
    grouped = form == "codes-grouped"
    if kernel in ("chunk_weights", "weighted_chunk"):
        return grouped
    return not (grouped and kernel.startswith("weighted_codes"))


def modes(kernel: str) -> list[dict[str, Any]]:
    """The compile-time options that the backend uses, the dearest last."""
    of_one_view = [{"PAIR": mode == 4, "MODE": mode, "GIVEN_PRIOR": False} for mode in (0, 1, 4)]
    given_weights = {"PAIR": False, "MODE": 5, "GIVEN_PRIOR": False}
    of_the_loss = [
        {"PAIR": True, "MODE": mode, "GIVEN_PRIOR": given} for mode, given in ((2, False), (2, True), (3, True))
    ]
    return {
        "column_sums": [{"LOGS": False}, {"LOGS": True}],
        "row_sums": [
            {"PAIR": pair, "LOGS": logs, "GIVEN_PRIOR": logs}
            for pair, logs in ((False, False), (True, False), (True, True))
        ],
        "weighted_codes": of_the_loss,
        "weighted_codes_one": of_one_view,
        "weighted_codes_given": [given_weights],
        "chunk_weights": [given_weights, *of_one_view, *of_the_loss],
        "probabilities": [{"SCORES": True}, {"SCORES": False}],
    }.get(kernel, [{}])


# The kernels of rows.py and sign_bits.py: (module, kernel, compile-time arguments, pointers that are not float32).
_SMALL = (
    ("rows", "prepare_rows", {"BLOCK": 2048}, {"h1": "*bf16", "h2": "*bf16", "coordinates": "*i32"}),
    ("rows", "merge_best", {"FIRST": False, "BLOCK": 128}, {"others_in": "*fp64", "code_in": "*i32", "others": "*fp64"}),
    ("rows", "row_constants", {"BLOCK": 128}, {"others": "*fp64"}),
    ("rows", "products_at_best", {"F": 2048, "KIND": 0, "BLOCK": 2048}, {}),
    ("rows", "finish_columns", {"MODE": 3, "GIVEN_PRIOR": True, "BLOCK": 1024}, {"prior_sums": "*fp64"}),
    ("rows", "finish_columns", {"MODE": 2, "GIVEN_PRIOR": False, "BLOCK": 1024}, {"prior_sums": "*fp64"}),
    ("rows", "merge_row_sums", {"PAIR": True, "LOGS": True, "GIVEN_PRIOR": True, "FIRST": False, "BLOCK": 128}, {"sums": "*fp64"}),
    ("rows", "agreement", {"BLOCK": 128}, {"others": "*fp64", "sums": "*fp64"}),
    ("rows", "finish_row_sums", {"PAIR": True, "BLOCK": 128}, {"others": "*fp64", "sums": "*fp64"}),
    ("rows", "merge_weighted", {"FIRST": False, "BLOCK": 1024}, {"sums": "*fp64"}),
    ("rows", "finish_sums", {"F": 2048, "KIND": 0, "BLOCK": 2048}, {"sums": "*fp64"}),
    ("sign_bits", "pack_codes", {"F": 128, "KIND": 1, "BLOCK": 128}, {"out": "*i32"}),
    ("sign_bits", "pack_codes", {"F": 1, "KIND": 2, "BLOCK": 128}, {"out": "*i32"}),
    ("sign_bits", "pack_block_signs", {"F": 2048, "BLOCK": 128}, {"out": "*i32"}),
    ("sign_bits", "dense_codes", {"F": 1, "KIND": 2, "BLOCK": 2048}, {}),
)  # fmt: skip
_SMALL_TYPES = {
    "coordinates": "*i32", "positions": "*i32", "packed": "*i32", "sylvester": "*i32", "code": "*i32", "high": "*fp16",
    "low": "*fp16", "centre_in": "*fp64", "target_in": "*fp64", "best_share": "*fp64", "factor_1": "fp32",
    "factor_2": "fp32", "log2_codes": "fp32", "n_inverse": "fp32", "codes_over_n": "fp32", "uniform": "fp32",
    "beta": "fp32", "factor": "fp32", "first_index": "i64", "total_codes": "i64",
}  # fmt: skip
_SMALL_POINTERS = {
    "rows",
    "best_in",
    "best",
    "out",
    "out_1",
    "out_2",
    "sums",
    "prior",
    "slopes",
    "at_best",
    "sums_in",
    "h1",
    "h2",
}


def small_variants(arch: str) -> Iterator[Variant]:
    """The kernels that have no configuration, each in one or two modes; `form` is the module."""
    for number, (module, kernel, _, _) in enumerate(_SMALL):
        yield Variant(arch, kernel, module, (("number", number),), 0, 0, 4, 2)


def module_of(variant: Variant) -> str:
    """The module of a variant's kernel."""
    if variant.rows == 0:
        return variant.form
    return "weighted_sums" if variant.kernel.startswith(("weighted", "chunk")) else "passes"


def compile_variant(variant: Variant) -> dict[str, Any]:
    """The variant with what its machine code needs; `error` instead where it does not compile."""
    import triton
    from triton.backends.compiler import GPUTarget

    module = importlib.import_module(f"cplearn_kernels.backends.triton.kernels.{module_of(variant)}")
    kernel = getattr(module, variant.kernel.removesuffix("_one").removesuffix("_given"))
    if variant.rows == 0:
        constants, special = _SMALL[dict(variant.options)["number"]][2:]
        types, pointers = {**_SMALL_TYPES, **special}, _SMALL_POINTERS
    else:
        constants, types, pointers = _constants(variant), _TYPES, _POINTERS
    constants = {name: constants[name] for name in kernel.arg_names if name in constants}
    signature, aligned = {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = types.get(name, "*fp32" if name in pointers else "i32")
        if signature[name].startswith("*") or name in ("total", "n_pad", "chunk"):
            aligned[(position,)] = [["tt.divisibility", 16]]
    target = GPUTarget("hip", variant.arch, 64) if variant.arch.startswith("gfx") else GPUTarget(
        "cuda", int(variant.arch.removeprefix("sm_")), 32)  # fmt: skip
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    record = {**dataclasses.asdict(variant), "options": dict(variant.options)}
    options = {"num_warps": variant.warps, "num_stages": variant.stages, "enable_fp_fusion": True}
    started = time.perf_counter()
    try:
        built = triton.compile(source, target=target, options=options)
    except Exception as error:  # noqa: BLE001  a compiler's failure is a result here
        return {**record, "error": str(error)[-2000:]}
    record["seconds"] = round(time.perf_counter() - started, 1)
    record["shared"] = built.metadata.shared
    record.update(
        _amd_usage(built.asm["amdgcn"]) if variant.arch.startswith("gfx") else _nvidia_usage(built.asm["cubin"])
    )
    return record


def _constants(variant: Variant) -> dict[str, Any]:
    name, _, size = variant.form.partition("-")
    if name == "kronecker":
        width, groups, left = int(size), 1, 1 << ((int(size).bit_length() - 1) // 2)
    else:
        groups = 16 if size == "grouped" else 1
        width, left = (2048, 16) if size == "grouped" else (int(size), 16)
    return {**dict(variant.options), "BM": variant.rows, "BN": variant.codes, "A": left, "K": width,
            "GROUPS": groups, "KRONECKER": name == "kronecker"}  # fmt: skip


def _tool(name: str) -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _nvidia_usage(cubin: bytes) -> dict[str, Any]:
    """Registers, stack bytes (spills live there) and the machine instructions by kind, of the longest loop and in all."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [_tool("cuobjdump"), "-res-usage", file.name], capture_output=True, text=True, check=True
        )
        code = subprocess.run([_tool("nvdisasm"), "-c", file.name], capture_output=True, text=True, check=True).stdout
    numbers = dict(re.findall(r"([A-Z]+):(\d+)", usage.stdout))
    return {"registers": int(numbers["REG"]), "spills": int(numbers["STACK"]) + int(numbers["LOCAL"]),
            **_instructions(code, _INSTRUCTION)}  # fmt: skip


_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)")
_AMD_INSTRUCTION = re.compile(r"^\s+((?:v|s|ds|global|buffer)_\w+)")
_LABEL = re.compile(r"^\s*(\.L\w+):")
_BRANCH = re.compile(r"(?:\bBRA\b.*`\(|s_c?branch\w*\s+)(\.L\w+)")
_MATRIX = re.compile(r"HGMMA|HMMA|v_mfma")


def _instructions(code: str, pattern: re.Pattern) -> dict[str, int]:
    """Machine instructions in all, in the outermost loop, and in the longest loop with products inside of that.

    A loop is what lies between the target of a backward branch and the branch; blocks for rare cases count in full.
    """
    lines = code.splitlines()
    labels = {found.group(1): number for number, line in enumerate(lines) if (found := _LABEL.match(line))}
    loops = []
    for number, line in enumerate(lines):
        branch = _BRANCH.search(line)
        start = labels.get(branch.group(1), number) if branch else number
        if start < number:
            loops.append((start, number))
    first, last = max(loops, key=lambda loop: loop[1] - loop[0], default=(0, 0))
    inside = [(a, b) for a, b in loops if first <= a and b <= last and (a, b) != (first, last)
              and any(_MATRIX.search(line) for line in lines[a:b])]  # fmt: skip
    inner = max(inside, key=lambda loop: loop[1] - loop[0], default=(0, 0))
    return {"instructions": _count(lines, pattern), "loop": _count(lines[first:last], pattern),
            "inner_loop": _count(lines[slice(*inner)], pattern)}  # fmt: skip


def _count(lines: list[str], pattern: re.Pattern) -> int:
    found = (pattern.match(line) for line in lines)
    return sum(match is not None and match.group(1) not in ("NOP", "s_nop") for match in found)


def _amd_usage(text: str) -> dict[str, Any]:
    """As for NVIDIA. Scalar registers that are kept in lanes of vector registers cost no memory and are no spill."""

    def number(name):
        found = re.search(rf"\.{name}:\s*(\d+)", text)
        return int(found.group(1)) if found else 0

    return {
        "registers": number("vgpr_count"),
        "accumulators": number("agpr_count"),
        "spills": number("vgpr_spill_count") + number("private_segment_fixed_size"),
        "scalars_in_lanes": number("sgpr_spill_count"),
        **_instructions(text, _AMD_INSTRUCTION),
    }


def problem(record: dict[str, Any]) -> str | None:
    """Why a variant must not ship, or None."""
    if "error" in record:
        return "does not compile: " + record["error"].strip().splitlines()[-1]
    if record["spills"]:
        return f"spills {record['spills']} bytes"
    limit = SHARED_LIMIT[record["arch"]]
    return None if record["shared"] <= limit else f"needs {record['shared']} bytes of shared memory, {limit} are there"


Compile = Callable[[Iterable[Variant]], Iterator[dict[str, Any]]]


@contextlib.contextmanager
def compilers(jobs: int) -> Iterator[Compile]:
    """Processes that compile variants to their records, with Triton's interpreter off and a cache that starts empty.

    They start once, for seconds each, and serve all calls of the function until the end of the `with`.
    """
    environment = os.environ.pop("TRITON_INTERPRET", None)
    try:
        with tempfile.TemporaryDirectory() as cache:
            os.environ["TRITON_CACHE_DIR"] = cache
            context = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
                yield lambda wanted: pool.map(compile_variant, wanted)
    finally:
        os.environ.pop("TRITON_CACHE_DIR", None)
        if environment is not None:
            os.environ["TRITON_INTERPRET"] = environment


def table(records: list[dict[str, Any]]) -> str:
    """The records as lines of a table."""
    lines = [
        f"{'arch':7} {'kernel':19} {'form':15} {'mode':8} {'rows':>4} {'codes':>5} {'warps':>5} {'regs':>5} "
        f"{'spills':>6} {'shared':>7} {'instr':>6}  problem"
    ]
    for r in records:
        mode = ",".join(f"{k}={int(v)}" for k, v in r["options"].items() if k in ("MODE", "LOGS", "SCORES"))
        lines.append(f"{r['arch']:7} {r['kernel']:19} {r['form']:15} {mode:8} {r['rows']:4} "
                     f"{r['codes']:5} {r['warps']:5} {r.get('registers', '-'):>5} {r.get('spills', '-'):>6} "
                     f"{r.get('shared', '-'):>7} {r.get('instructions', '-'):>6}  {problem(r) or ''}")  # fmt: skip
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.triton_resources", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", action="append", choices=ARCHITECTURES, help="default: all")
    parser.add_argument("--kernel", action="append", help="default: all")
    parser.add_argument("--form", action="append", choices=FORMS, help="default: all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at a time (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the record goes (default: bench/results)")
    chosen = parser.parse_args(arguments)
    wanted = [v for arch in chosen.arch or ARCHITECTURES for v in variants(arch, chosen.kernel, chosen.form)]
    with compilers(chosen.jobs) as compiled:
        records = list(compiled(wanted))
    print(table(records))
    import triton

    lines = ",\n".join(json.dumps(record) for record in records)
    head = f'{{"schema": 1, "triton": {json.dumps(triton.__version__)}, "variants": ['
    chosen.json.write_text(f"{head}\n{lines}\n]}}\n")
    bad = sum(problem(record) is not None for record in records)
    print(f"{len(records)} variants, {bad} with a problem")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
