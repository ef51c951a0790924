"""The report of the CUDA kernels' resources: parsers on canned text, what fits on a GPU, the installed extension."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # bench/ is used from the checkout and never installed

from bench import cuda_built, cuda_resources  # noqa: E402
from bench.cuda_code import UNITS, cheapest, functions, graph, loop_mix, main_loop  # noqa: E402
from bench.cuda_kernels import BLOCKS, dynamic_shared, rare_branches, readable  # noqa: E402
from bench.gpu_rates import LIMITS  # noqa: E402

WEIGHTED = (
    "_ZN7cplearn4cuda14weighted_codesINS0_13HadamardTilesILi11EEELNS0_7PurposeE{}EEEvNS0_22WeightedCodesArgumentsE"
)
COLUMNS = "_ZN7cplearn4cuda11column_sumsINS0_12HadamardTileILi11ELi1EEELb{}EEEvNS0_19ColumnSumsArgumentsE"
SMALL = "_ZN7cplearn4cuda49_GLOBAL__N__4f_10_rows_out_cu_5_418finish_sums_kernelILNS0_6ResultE0EEEvNS0_10FinishSumsE"

PTXAS = f"""ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{WEIGHTED.format(0)}' for 'sm_90'
ptxas info    : Function properties for {WEIGHTED.format(0)}
    32 bytes stack frame, 56 bytes spill stores, 32 bytes spill loads
ptxas info    : Used 168 registers, used 2 barriers, 32 bytes cumulative stack size, 1024 bytes smem
ptxas info    : Compile time = 298.850 ms
ptxas info    : Compiling entry function '{COLUMNS.format(1)}' for 'sm_90'
ptxas info    : Function properties for {COLUMNS.format(1)}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 96 registers, used 1 barriers
"""

USAGE = f"""
Fatbin elf code:
================
arch = sm_80
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function {WEIGHTED.format(0)}:
  REG:168 STACK:{{}} SHARED:0 LOCAL:{{}} CONSTANT[0]:640 TEXTURE:0 SURFACE:0 SAMPLER:0
Fatbin elf code:
================
arch = sm_100

Resource usage:
 Function {COLUMNS.format(0)}:
  REG:96 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:640 TEXTURE:0 SURFACE:0 SAMPLER:0
"""

# A loop with a rare branch that reduces to memory, one that stores, a branch between two ways of different length,
# and a block behind the loop that goes back into it.
CODE = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/               @P1 BRA `(.L_end) ;
.L_head:
        /*0020*/                   LDG.E.128 R4, [R2.64] ;
        /*0030*/                   FADD R4, R4, R5 ;
        /*0040*/               @P0 BRA `(.L_long) ;
        /*0050*/                   MUFU.EX2 R4, R4 ;
        /*0060*/                   BRA `(.L_join) ;
.L_long:
        /*0070*/                   FADD R4, R4, R5 ;
        /*0080*/                   MUFU.EX2 R4, R4 ;
        /*0090*/               @P2 MUFU.EX2 R5, R5 ;
        /*00a0*/                   STG.E.64 [R2.64], R4 ;
.L_join:
        /*00b0*/                   SHFL.BFLY PT, R6, R4, 0x1, 0x1f ;
        /*00c0*/                   STS [R9], R6 ;
        /*00d0*/                   BAR.SYNC.DEFER_BLOCKING R45, 0x40 ;
        /*00e0*/                   LDS.128 R4, [R9] ;
        /*00f0*/               @P3 BRA P4, `(.L_tail) ;
        /*0100*/                   F2F.F64.F32 R8, R4 ;
        /*0110*/                   REDG.E.ADD.F64.RN.STRONG.GPU [R2.64], R8 ;
.L_tail:
        /*0120*/                   ISETP.NE.AND P0, PT, R3, RZ, PT ;
        /*0130*/                   NOP ;
        /*0140*/              @!P0 CALL.REL.NOINC `(.L_end) ;
        /*0150*/                   BRA `(.L_head) ;
.L_end:
        /*0160*/                   EXIT ;
.L_stop:
        /*0170*/                   BRA `(.L_stop);
"""


def test_names_are_readable():
    assert [readable(WEIGHTED.format(i)) for i in range(4)] == [
        "weighted_codes reverse_kl", "weighted_codes cross_entropy", "weighted_codes value", "weighted_codes row",
    ]  # fmt: skip
    assert [readable(COLUMNS.format(i)) for i in (0, 1)] == ["column_sums", "column_sums logs"]
    assert readable(SMALL) == "finish_sums loss_gradient" and readable("_Z3foov") == "_Z3foov"


def test_what_ptxas_says_is_read_and_a_spill_is_a_problem():
    found = cuda_resources.parse_ptxas(PTXAS)
    assert found[WEIGHTED.format(0)] == {"registers": 168, "spill_stores": 56, "spill_loads": 32, "stack": 32,
                                         "static_shared": 1024}  # fmt: skip
    clean = found[COLUMNS.format(1)]
    assert clean == {"registers": 96, "spill_stores": 0, "spill_loads": 0, "stack": 0, "static_shared": 0}
    problem = cuda_resources.problem
    assert "spills 56" in problem({**found[WEIGHTED.format(0)], "blocks": 3}) and problem({**clean, "blocks": 5}) == ""
    assert "stack" in problem({**clean, "stack": 8, "blocks": 5}) and "fit" in problem({**clean, "blocks": 0})


def test_threads_of_a_block_are_read_whatever_lies_between():
    word = "        /*0490*/ \t.word\t0x00000{:03x}\n        /*0494*/ \t.word\t0x00000001\n"
    head = '\t.section\t.nv.info.{},"",@"SHT_CUDA_INFO"\n\t//----- nvinfo : EIATTR_MAX_THREADS\n'
    text = head.format("a") + "\t.align\t\t4\n.L_1:\n\t.short\t(.L_2 - .L_1)\n" + word.format(256)
    text += head.format("b") + word.format(128) + '\t.section\t.nv.info.c,""\n'
    assert cuda_resources.parse_threads(text) == {"a": 256, "b": 128}


def test_the_common_way_leaves_rare_branches_out_and_counts_units():
    (lines,) = functions(CODE).values()
    blocks = graph(lines)
    loop = main_loop(blocks)
    assert loop is not None and blocks[loop[0]].units["global"] == 1  # not the endless loop at the end
    mix = loop_mix(lines)
    assert mix["common"] == {
        "all": 13, "barrier": 1, "fp32": 1, "global": 1, "global_bytes": 16, "integer": 1, "other": 5, "shared": 2,
        "shared_bytes": 20, "shuffle": 1, "special": 1}  # fmt: skip
    assert mix["flush"] == {"all": 2, "conversion": 1, "reduction": 1}
    assert mix["best_code"] == mix["new_best"] == {
        "all": 4, "fp32": 1, "global": 1, "global_bytes": 8, "global_store": 1, "special": 2}  # fmt: skip
    # Where the shorter way is closed, the long one is the common one.
    closed = loop_mix(CODE.replace("@P0 BRA `(.L_long)", "BRA `(.L_long)").splitlines())
    assert closed["common"]["fp32"] == 2 and "new_best" not in closed
    assert cheapest(blocks, loop[0], loop[0], without=loop[1]) is None  # the branch back is on every way
    assert loop_mix(["        /*0000*/  EXIT ;"]) == {}


def test_an_inner_loop_counts_as_often_as_it_runs():
    code = """
.L_a:
        /*0000*/                   FADD R1, R1, R2 ;
.L_b:
        /*0010*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0020*/              @!P0 CALL.REL.NOINC `(.L_c) ;
        /*0030*/                   BRA `(.L_b) ;
.L_c:
        /*0040*/               @P1 BRA `(.L_a) ;
        /*0050*/                   EXIT ;
"""
    once, four = (loop_mix(code.splitlines(), trips)["common"] for trips in (1, 4))
    assert (once["tensor"], once["fp32"]) == (1, 1) and (four["tensor"], four["fp32"]) == (4, 1)
    assert four["all"] - once["all"] == 9  # three rounds of three instructions


def test_units_have_no_opcode_in_common():
    opcodes = [opcode for names in UNITS.values() for opcode in names.split()]
    assert len(opcodes) == len(set(opcodes))


@pytest.mark.parametrize("arch, threads, registers, shared, blocks", [
    ("sm_90", 128, 168, 36864, 3),  # registers: three warps per scheduler
    ("sm_90", 128, 48, 36864, 6), ("sm_80", 128, 48, 36864, 4),  # shared memory, and 1 KB for each block
    ("sm_90", 256, 255, 0, 1), ("sm_90", 1024, 32, 0, 2), ("sm_90", 32, 16, 0, 32),
    ("sm_80", 128, 32, 164 * 1024, 0),
])  # fmt: skip
def test_resident_blocks(arch, threads, registers, shared, blocks):
    assert LIMITS[arch].resident_blocks(threads, registers, shared) == blocks


def test_shared_memory_follows_the_tile():
    assert dynamic_shared("best_codes", 11, 128) == 36864  # two teams of 64, two buffers of 64 x 36 floats
    assert dynamic_shared("best_codes", 8, 128) == 4 * 16 * 2 * (8 * 36 + 8)
    assert dynamic_shared("best_codes", 7, 128) == 0 != dynamic_shared("weighted_codes reverse_kl", 7, 128)
    assert dynamic_shared("weighted_codes row", 7, 128) == dynamic_shared("weighted_codes value", 0, 128) == 32 * 2 * 4
    assert dynamic_shared("column_sums", 0, 128) == 0


def test_the_record_covers_every_kernel_and_has_no_spill():
    """bench/results/cuda_resources.json, as `python -m bench.cuda_resources` writes it."""
    record = json.loads(cuda_resources.RESULTS.read_text())
    kernels = record["kernels"]
    assert not {(r["arch"], r["unit"], r["kernel"]): p for r in kernels if (p := cuda_resources.problem(r))}
    passes = [r for r in kernels if r["unit"] in ("stored", *(str(1 << log2) for log2 in BLOCKS if log2))]
    assert {r["arch"] for r in kernels} >= {"sm_80", "sm_90", "sm_100"}
    assert all(len([r for r in passes if r["arch"] == arch]) == 81 for arch in ("sm_80", "sm_90", "sm_100"))
    for r in passes:
        assert r["threads"] in (128, 256, 512) and r["warps"] == r["blocks"] * r["threads"] // 32, r
        if r["kernel"] == "probabilities":
            continue
        found = set(r["loop"]) - {"common"}
        assert r["loop"]["common"]["all"] > 100 and found <= set(rare_branches(r["kernel"])), r
        transforms = {"column_sums": 1, "best_codes": 1, "given_weights": 1, "weighted_codes reverse_kl": 3}
        if r["kernel"] in transforms and r["unit"] != "stored":
            # Each level of a transform is an addition or a multiply-add per logit.
            levels = int(r["unit"]).bit_length() - 1
            assert r["loop"]["common"]["fp32"] >= 32 * levels * transforms[r["kernel"]], r


def test_a_stack_in_an_extension_is_reported(monkeypatch, tmp_path):
    printed = USAGE.format(0, 0)
    records = cuda_built.parse_usage(printed)
    assert [(r["arch"], r["kernel"], r["registers"], r["stack"], r["local"]) for r in records] == [
        ("sm_80", "weighted_codes reverse_kl", 168, 0, 0), ("sm_100", "column_sums", 96, 0, 0)]  # fmt: skip
    for stack, local, status in ((0, 0, 0), (8, 0, 1), (0, 4, 1)):
        monkeypatch.setattr(cuda_built, "usage", lambda path: cuda_built.parse_usage(USAGE.format(stack, local)))
        assert cuda_built.report(tmp_path)[0] == status
    assert "weighted_codes reverse_kl: 0 bytes of stack, 4 of local" in cuda_built.report(tmp_path)[1]
    monkeypatch.setattr(cuda_built, "usage", lambda path: [])
    assert cuda_built.report(tmp_path)[0] == 1
    monkeypatch.undo()
    monkeypatch.setattr(cuda_built, "tool", lambda name: None)
    assert cuda_built.report(tmp_path) == (
        2,
        "no cuobjdump: it is part of NVIDIA's CUDA toolkit and of the triton package",
    )


def test_the_installed_extension_has_no_stack():
    status, text = cuda_built.report()
    if status == 2:
        pytest.skip(text)
    assert status == 0, text


def test_the_command(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        cuda_resources.main(["--help"])
    assert "--built" in capsys.readouterr().out
    monkeypatch.setattr(cuda_resources, "tool", lambda name: None)
    assert cuda_resources.main(["--arch", "sm_90"]) == 2 and "no nvcc" in capsys.readouterr().err
    monkeypatch.setattr(cuda_resources, "report", lambda: (1, "a stack"))
    assert cuda_resources.main(["--built"]) == 1 and capsys.readouterr().out == "a stack\n"


def test_a_spill_ends_the_command_with_status_1(capsys, monkeypatch, tmp_path):
    usage = {"registers": 168, "spill_stores": 0, "spill_loads": 0, "stack": 0, "static_shared": 0}

    def compiled(wanted, *_):
        return [
            cuda_resources.record_of(unit, arch, WEIGHTED.format(0), usage, 128, CODE.splitlines())
            for unit, arch in wanted
        ]

    monkeypatch.setattr(cuda_resources, "compile_all", compiled)
    monkeypatch.setattr(cuda_resources, "tool", lambda name: name)
    monkeypatch.setattr(cuda_resources, "write", lambda *_: None)
    command = ["--block", "2048", "--json", str(tmp_path / "a.json")]
    assert cuda_resources.main(command) == 0 and "the same machine code as sm_90" in capsys.readouterr().out
    usage["spill_stores"] = 4
    assert cuda_resources.main(command) == 1 and "spills 4 B" in capsys.readouterr().out
