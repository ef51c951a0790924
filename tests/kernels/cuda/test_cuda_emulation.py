"""The thread model that the CUDA kernels are tested under: what it lets pass, and what it must not."""

from __future__ import annotations

import re
import shutil

import emulated
import pytest

EMULATION = emulated.ROOT / "tests" / "kernels" / "cuda" / "emulation"
CSRC = emulated.ROOT / "csrc"

# What each case of test_emulation.cpp must come to: None for "ok", else part of the error.
EXPECTED = {
    "block barrier": None,
    "no barrier": "no barrier separates|nobody wrote",
    "warp barrier in one warp": None,
    "warp barrier across warps": "no barrier separates|nobody wrote",
    "named barrier": None,
    "named barriers of halves": "no barrier separates|nobody wrote",
    "a shuffle is no barrier": "no barrier separates a read",
    "write after read": "no barrier separates",
    "write after read and a barrier": None,
    "two writes": "no barrier separates a write of shared memory from thread .* write",
    "two buffers in turn": None,
    "one buffer in turn": "no barrier separates",
    "nobody wrote": "a read of shared memory that nobody wrote",
    "out of bounds": "outside of the shared memory",
    "vector off its alignment": "off its alignment",
    "global vector off its alignment": "a vector load off its alignment",
    "a barrier that some never reach": "some threads wait at a barrier that others never reach",
    "a barrier of two sizes": "disagree on the size|others never reach",
    "shuffle and ballot": None,
    "matrix product": None,
}


def compiled(folder, *arguments) -> str:
    emulated.skip_without_compiler()
    program = str(folder / "program")
    emulated.run("c++", "-std=c++17", "-O1", "-w", "-DCPK_EMULATE", *map(str, arguments), "-o", program)
    return program


def test_the_detector_finds_what_it_should_and_nothing_else(tmp_path):
    program = compiled(tmp_path, f"-I{EMULATION}", EMULATION / "test_emulation.cpp", EMULATION / "emulation.cpp")
    lines = emulated.run(program).splitlines()
    found = [line.split(": ", 1) for line in lines]
    # Ascending, descending and shuffled turns: which side of a race is found first may depend on it, but not whether.
    assert [name for name, _ in found] == list(EXPECTED) * 3
    for name, verdict in found:
        if EXPECTED[name] is None:
            assert verdict == "ok", (name, verdict)
        else:
            assert re.search(EXPECTED[name], verdict), (name, verdict)


@pytest.mark.parametrize("log2_block", [9, pytest.param(11, marks=pytest.mark.slow)])
def test_a_barrier_taken_out_of_the_kernels_is_noticed(log2_block, tmp_path):
    """Each barrier of a tile's transforms and of the partners' exchange, one at a time."""
    sources = tmp_path / "csrc"
    shutil.copytree(CSRC, sources)
    tile = sources / "cuda" / "kernels" / "hadamard_tile.cuh"
    text = tile.read_text()
    barriers = [i for i in range(len(text)) if text.startswith("sync();", i)]
    assert len(barriers) == 3

    def verdict() -> str:
        include = [f"-I{EMULATION}", f"-I{sources}", f"-DCPK_LOG2_BLOCK={log2_block}"]
        program = compiled(tmp_path, *include, EMULATION / "mutant.cpp", EMULATION / "emulation.cpp", "-x", "c++",
                           sources / "cuda" / "kernels" / "passes.cu")  # fmt: skip
        return emulated.run(program).strip()

    assert verdict() == "ok"
    for barrier in barriers if log2_block == 11 else barriers[:1]:
        tile.write_text(text[:barrier] + "       " + text[barrier + 7 :])
        assert "shared memory" in verdict() and "weighted_codes" in verdict()
