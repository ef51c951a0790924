"""Tests of the CUDA backend: bits, accuracy against the oracle, memory, bad input. In emulation without a GPU.

In emulation the kernel sources run under the thread model of tests/kernels/cuda/emulation, which fails a test that
reads shared memory no barrier separates from its write, waits at a barrier that others never reach, or reads what
nobody wrote.
"""

from __future__ import annotations

import itertools
from typing import ClassVar

import emulated
import pytest
import torch
from cases import DICTIONARY_KINDS, embeddings, loss_and_gradients, make_dictionary, one_thread, same_bits, slow_but  # noqa: F401
from function_checks import ROW_FUNCTIONS, FunctionChecks
from oracle import SETTINGS, make_case

import cplearn_kernels as cpk
from cplearn_kernels.backends import select
from cplearn_kernels.backends.cuda import functions as cuda
from cplearn_kernels.backends.cuda import launch
from cplearn_kernels.backends.cuda import shard as cuda_shard

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")


class Cuda:
    """The backend as suites know it."""

    backend, module, device = "cuda", cuda, DEVICE

    @pytest.fixture(scope="class", autouse=True)
    def emulation(self):
        """Everything runs on the GPU, or in emulation."""
        if ON_GPU:
            yield
            return
        with cuda.emulated(emulated.kernels()):
            yield

    @pytest.fixture
    def short_spans(self, monkeypatch):
        """Spans so short that small dictionaries need several, and a device so small that work is cut less finely."""
        if not ON_GPU:
            with cuda.emulated(emulated.kernels(), processors=1, span_codes=512, span_products=1):
                yield
            return
        monkeypatch.setattr(launch, "SPAN_CODES", 512)
        monkeypatch.setattr(launch, "SPAN_PRODUCTS", 1)
        yield

    @pytest.fixture
    def watched_memory(self, monkeypatch):
        """Once called, calls get memory full of NaN, with a mark behind it and, in emulation, gaps between its arrays,
        `at_least` so many, which they must leave alone. Returns the list of what was lent."""
        plain, run, lent = torch.empty, launch.call, []

        def marked(*shape, dtype=None, **options):
            if dtype is not torch.uint8:
                out = plain(*shape, dtype=dtype, **options)
                return out.fill_(torch.nan if out.is_floating_point() else 7)
            lent.append(torch.full((shape[0] + 512,), 255, dtype=dtype, **options))
            lent[-1][shape[0] :] = 171
            return lent[-1][: shape[0]]

        def start(at_least):
            def checked(*arguments):
                run(*arguments)
                assert (lent[-1][-512:] == 171).all()
                gaps = [] if ON_GPU else emulated.kernels().gaps()
                assert ON_GPU or len(gaps) >= at_least
                assert all((lent[-1][begin:end] == 255).all() for begin, end in gaps)

            monkeypatch.setattr(torch, "empty", marked)
            monkeypatch.setattr(cuda, "call", checked)
            monkeypatch.setattr(cuda_shard, "call", checked)
            return lent

        return start

    def scores(self, h, codes, first, count):
        scores = torch.empty(len(h), count, device=DEVICE)
        launch.call("scores", [h], codes, first, count, scores.data_ptr())
        return scores

    def attempts(self):
        """In emulation with threads in another order each time."""
        for order in (0, 1, 2):
            if not ON_GPU:
                emulated.kernels().set_order(order)
            yield
        if not ON_GPU:
            emulated.kernels().set_order(0)


# Odd sizes on both sides of every edge: every size of a Hadamard block, one word, one group of coordinates, one tile of
# codes, one block of rows, and one row.
SHAPES = [
    ("hadamard", 1, 3, 2), ("hadamard", 7, 300, 5), ("hadamard", 32, 65, 67), ("hadamard", 33, 65, 67),
    ("hadamard", 64, 300, 9), ("hadamard", 100, 700, 9), ("hadamard", 128, 129, 3), ("hadamard", 200, 700, 9),
    ("hadamard", 256, 255, 1), ("hadamard", 300, 1100, 5), ("hadamard", 600, 1500, 3), ("hadamard", 2048, 2049, 3),
    ("hadamard", 4096, 4100, 2), ("hadamard", 5000, 8300, 1),
    ("rademacher", 1, 3, 1), ("rademacher", 64, 300, 9), ("rademacher", 100, 500, 5), ("rademacher", 129, 300, 17),
    ("rademacher", 384, 257, 3), ("rademacher", 70, 129, 70), ("dense", 33, 300, 5), ("dense", 200, 257, 3),
]  # fmt: skip
PAIRS = [("hadamard", 100), ("hadamard", 260), ("rademacher", 130)]


class TestCuda(Cuda, FunctionChecks):
    CASES: ClassVar = {
        "test_scores_of_unit_vectors_are_the_codes_exactly": {"kind, f, c": [
            *itertools.product(DICTIONARY_KINDS, (1, 33, 129), (9, 300)), ("rademacher", 300, 1100),
            *(("hadamard", f, 2 * f + 5) for f in (7, 64, 128, 300, 520, 2048, 5000)), ("dense", 520, 130),
        ]},
        "test_loss_and_gradient": {
            "kind, f, c, n": slow_but(SHAPES, *SHAPES[:2], SHAPES[3], *SHAPES[5:9], SHAPES[15], SHAPES[20])
        },
        "test_every_setting": {
            "kind, f, c": slow_but([(*pair, 300) for pair in PAIRS], ("hadamard", 100, 300)), "setting": SETTINGS
        },
        "test_dictionaries_of_several_spans": {
            "kind, f": slow_but([*PAIRS, ("hadamard", 20), ("hadamard", 1500), ("rademacher", 40), ("dense", 130)],
                                *PAIRS[:2], ("rademacher", 40))
        },
        "test_row_functions": {
            "kind, f, c, n": slow_but(SHAPES[1:13:2] + SHAPES[13::2], *SHAPES[3:9:2], SHAPES[15], SHAPES[21])
        },
        "test_a_row_that_is_not_finite": {"kind, f": [("hadamard", 40), ("rademacher", 33)]},
        "test_strides_do_not_matter": {"kind, f": [("hadamard", 100), ("rademacher", 100)]},
        "test_same_bits_every_time": {
            "kind, f, c, n": [("hadamard", 100, 203, 5), ("hadamard", 520, 1043, 5), ("rademacher", 130, 263, 5),
                              *slow_but([("hadamard", 3000, 6003, 5)])]
        },
    }  # fmt: skip

    @pytest.mark.parametrize("kind, f", [("hadamard", 129), ("hadamard", 20), ("rademacher", 129)])
    def test_codes_with_large_indices(self, kind, f):
        dictionary = make_dictionary(kind, f, 1 << 30, seed=2**63 + 3)
        first, count = (1 << 30) - 8192, 8192
        scores = self.scores(torch.eye(f, device=DEVICE)[f // 2 : f // 2 + 1], dictionary, first, count)
        assert torch.equal(scores[0].cpu(), dictionary.to_dense(first, 1 << 30)[f // 2])

    @pytest.mark.parametrize("kind, f", slow_but([("hadamard", 100), ("rademacher", 40)], ("hadamard", 100)))
    def test_sums_over_more_blocks_than_are_added_in_float32(self, kind, f, conformance):
        """More than 32 blocks of codes in a split: the second level of the sums."""
        dictionary = make_dictionary(kind, f, 128 * 80 + 3)
        case = make_case(dictionary, 2, "l2")
        with cuda.emulated(emulated.kernels(), processors=1) if not ON_GPU else torch.cuda.device(0):
            self.check_loss(conformance, dictionary, case, [("reverse_kl", False, 1.0)])

    # ---- memory ----

    @pytest.mark.parametrize("kind", DICTIONARY_KINDS[:2])
    @pytest.mark.parametrize("f", [20, 128, 2048])
    def test_memory_does_not_grow_with_the_number_of_codes(self, kind, f):
        """Counted, which costs nothing even for 2^30 codes."""
        counted = {}
        for log2 in (22, 26, 30):
            codes = launch.codes_of(make_dictionary(kind, f, 1 << log2), DEVICE)
            device = launch.device_of(DEVICE)
            views = [(256, 0, f, 1)] * 2
            arguments = (0.5, 1.0, 0, 0, 256, 256, 256)
            counted[log2] = launch.kernels().cplearn_loss(device, 0, codes, views, 64, *arguments)
        assert counted[22] == counted[26] == counted[30] < 256e6, counted

    @pytest.mark.parametrize(
        "kind, f",
        slow_but(
            [("hadamard", 100), ("hadamard", 8000), ("rademacher", 130), ("hadamard", 20)],
            ("hadamard", 100),
            ("hadamard", 20),
        ),
    )
    def test_working_memory_is_written_before_it_is_read_and_not_overrun(self, kind, f, watched_memory):
        dictionary = make_dictionary(kind, f, 300)
        views = [h.to(DEVICE) for h in embeddings(5, f)]
        expected = loss_and_gradients(*views, dictionary, backend="cuda")
        lent = watched_memory(at_least=6)
        found = loss_and_gradients(*views, dictionary, backend="cuda")
        h = views[0].clone().requires_grad_()
        for function in ROW_FUNCTIONS:
            result = getattr(cpk, function)(h, dictionary, temperature=0.3, backend="cuda")
            assert torch.isfinite(result).all() and torch.isfinite(torch.autograd.grad(result.sum(), h)[0]).all()
        assert len(lent) >= 9 and all(map(same_bits, expected, found))

    # ---- choice ----

    def test_an_unnamed_call_goes_elsewhere_in_emulation(self):
        if not ON_GPU:
            assert cuda.reservation(make_dictionary("hadamard", 64, 10), DEVICE) == "the emulation is for tests"
            assert select(None, "assign", make_dictionary("hadamard", 64, 100), torch.zeros(2, 64)).NAME == "cpu"
            assert "emulation" in str(cpk.backends()["cuda"])
