"""Tests of the Triton backend: bits, accuracy, spans, bad input. In the interpreter without a GPU."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from typing import ClassVar

import pytest
import torch
from cases import DICTIONARY_KINDS, embeddings, loss_and_gradients, make_dictionary, one_thread, slow_but  # noqa: F401
from function_checks import FunctionChecks
from oracle import SETTINGS, signs_dictionary

pytest.importorskip("triton")
from cplearn_kernels.backends import select
from cplearn_kernels.backends.triton import functions as triton_backend
from cplearn_kernels.backends.triton import pieces, sums, tuning
from cplearn_kernels.backends.triton.codes import codes_of
from cplearn_kernels.backends.triton.launches import Batch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Triton:
    """The backend as suites know it."""

    backend, module, device = "triton", triton_backend, DEVICE

    @pytest.fixture
    def short_spans(self, monkeypatch):
        """Spans, tables and chunks so short that small dictionaries need several of each."""
        monkeypatch.setattr(pieces, "SPAN", 512)
        monkeypatch.setattr(pieces, "_TABLE_WORDS", 1)
        monkeypatch.setattr(sums, "_CHUNK_ELEMENTS", 1)
        monkeypatch.setattr(sums, "_FLUSH_TILES", 1)
        monkeypatch.setattr(pieces, "_SHORTEST_PIECE", 512)

    def scores(self, h, codes, first, count):
        scores = torch.empty(len(h), count, device=DEVICE)
        Batch([h], codes_of(codes, DEVICE), [1.0]).probabilities(scores, first, count, scores=True)
        return scores

    def attempts(self):
        return range(2)


# Odd sizes on both sides of every edge: one word, one group, one block, one tile of rows, one tile of codes. Small,
# because the interpreter spends milliseconds on each program.
SHAPES = [
    ("hadamard", 1, 3, 2), ("hadamard", 7, 300, 5), ("hadamard", 33, 65, 67), ("hadamard", 100, 700, 9),
    ("hadamard", 128, 129, 3), ("hadamard", 200, 700, 9), ("hadamard", 256, 255, 1), ("hadamard", 300, 1100, 5),
    ("hadamard", 600, 1500, 3), ("hadamard", 2048, 2049, 3), ("hadamard", 4096, 4100, 2), ("hadamard", 5000, 200, 1),
    ("rademacher", 1, 3, 1), ("rademacher", 64, 300, 9), ("rademacher", 100, 500, 5), ("rademacher", 129, 300, 17),
    ("rademacher", 384, 257, 3), ("dense", 33, 300, 5), ("dense", 200, 257, 3),
]  # fmt: skip
PAIRS = [("hadamard", 100), ("hadamard", 260), ("rademacher", 130)]


class TestTriton(Triton, FunctionChecks):
    THOROUGH = False
    EXTREMES = (1.0, (0.0, 1e-30, 1e12))
    CASES: ClassVar = {
        "test_scores_of_unit_vectors_are_the_codes_exactly": {"kind, f, c": [
            (kind, f, c) for kind, (f, c) in itertools.product(
                DICTIONARY_KINDS, [(1, 9), (7, 40), (33, 300), (128, 200), (129, 300), (300, 1100), (520, 1030)])
        ]},
        "test_loss_and_gradient": {
            "kind, f, c, n": slow_but(SHAPES, SHAPES[0], SHAPES[6], SHAPES[12], SHAPES[17])
        },
        "test_every_setting": {
            "kind, f, c": slow_but([(*pair, 200) for pair in PAIRS], ("hadamard", 100, 200)), "setting": SETTINGS[::3]
        },
        "test_dictionaries_of_several_spans": {
            "kind, f": slow_but([*PAIRS, ("rademacher", 40), ("dense", 130)], ("rademacher", 40))
        },
        "test_row_functions": {
            "kind, f, c, n": slow_but(SHAPES[1:10:2] + SHAPES[12::2], SHAPES[12], SHAPES[18])
        },
        "test_a_row_that_is_not_finite": {"kind, f": [("hadamard", 33)]},
        "test_strides_do_not_matter": {"kind, f": slow_but([("hadamard", 100), ("hadamard", 260)], ("hadamard", 100))},
        "test_same_bits_every_time": {"kind, f, c, n": slow_but(
            [("hadamard", 260, 700, 20), ("rademacher", 130, 700, 20)]
        )},
    }  # fmt: skip

    @pytest.mark.slow
    def test_no_array_grows_with_n_times_c(self, short_spans, monkeypatch):
        """Spans of 512: no buffer may exceed what n f and the span need, at c = 1300 far below n c."""
        sizes = []
        empty = Batch.empty
        monkeypatch.setattr(
            Batch, "empty", lambda self, *shape, **more: sizes.append(math.prod(shape)) or empty(self, *shape, **more)
        )
        largest = {}
        for c in (600, 1300):
            sizes.clear()
            loss_and_gradients(
                *[h.to(DEVICE) for h in embeddings(16, 33)], make_dictionary("rademacher", 33, c), backend="triton"
            )
            largest[c] = max(sizes)
        assert largest[1300] == largest[600] <= 32 * 600


# ---- codes as the kernels that finish a result make them ----


@pytest.mark.parametrize("kind", ["hadamard", "rademacher", "dense"])
@pytest.mark.parametrize("f", [1, 7, 32, 100, 129, 300, 2048])
def test_codes_are_those_of_the_dictionary(kind, f):
    """Coordinate by coordinate, as the kernels that finish a result make them, on both sides of a block's edge."""
    dictionary = signs_dictionary(kind, f, 600, DEVICE, seed=2**63 + 5)
    batch = Batch([torch.ones(1, f, device=DEVICE)], codes_of(dictionary, DEVICE), [1.0])
    for start, count in ((0, 5), (250, 9), (597, 3)):
        codes = batch.dense_codes(start, count).cpu()
        assert torch.equal(codes, dictionary.to_dense(start, start + count).T.cpu()), start
        assert not torch.equal(codes, dictionary.to_dense(start, start + count).T.cpu().flip(1)) or f == 1


@pytest.mark.parametrize("kind", ["hadamard", "rademacher"])
def test_codes_with_large_indices(kind):
    dictionary = make_dictionary(kind, 129, 1 << 30, seed=3)
    batch = Batch([torch.ones(1, 129, device=DEVICE)], codes_of(dictionary, DEVICE), [1.0])
    last = (1 << 30) - 4
    assert torch.equal(batch.dense_codes(last, 4).cpu(), dictionary.to_dense(last, 1 << 30).T)


# ---- configurations and errors ----


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "gfx942", "sm_75", "interpreter"])
def test_every_configuration_fits_its_kernel(arch):
    for kernel in tuning.KERNELS:
        for form in ("kronecker-256", "kronecker-2048", "kronecker-4096", "codes-32", "codes-128", "codes-grouped"):
            for n in (1, 17, 64, 1000):
                config = tuning.choose(arch, kernel, form, n)
                assert config.rows & (config.rows - 1) == 0 and config.warps in (1, 2, 4, 8, 16)
                if form.startswith("kronecker"):
                    assert config.codes == int(form.split("-")[1])
                else:
                    assert config.rows >= 16 and config.codes % 16 == 0
                assert config.rows <= max(16, 2 * n)


def test_override_is_used_and_ends():
    other = tuning.Configuration(16, 32, 4)
    before = tuning.choose("sm_90", "best_codes", "codes-32", 1000)
    with tuning.override("best_codes", "codes-32", other):
        assert tuning.choose("sm_90", "best_codes", "codes-32", 1000) == other
    assert tuning.choose("sm_90", "best_codes", "codes-32", 1000) == before != other


def test_an_old_triton_is_refused(monkeypatch):
    monkeypatch.setattr(triton_backend.triton, "__version__", "3.5.1")
    assert triton_backend.unavailable() == "it needs Triton 3.6 or later, found 3.5.1"
    monkeypatch.setattr(triton_backend.triton, "__version__", "3.10.0+git1")
    assert triton_backend.unavailable() is None


def test_it_must_be_named_where_its_tests_have_not_run():
    dictionary = make_dictionary("hadamard", 33, 100)
    assert triton_backend.reservation(dictionary, DEVICE) is not None or tuning.architecture(
        DEVICE) in tuning.verified()  # fmt: skip
    if DEVICE.type == "cpu":
        assert select(None, "assign", dictionary, torch.zeros(2, 33)).NAME == "cpu"


def test_without_a_gpu_and_without_the_interpreter_it_says_so():
    if DEVICE.type == "cuda":
        pytest.skip("there is a GPU")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = "import cplearn_kernels; print(cplearn_kernels.backends()['triton'])"
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("triton: cannot run (no GPU that PyTorch can use")
