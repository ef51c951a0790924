"""Tests of the CUDA backend's Shard: ranges of codes, one after the other, give the loss. Emulated without a GPU."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from cases import PRIORS, embeddings, make_dictionary, one_thread, same_bits, slow_but  # noqa: F401
from oracle import GRADIENT_TOLERANCE, signs_dictionary
from range_checks import RangeChecks
from shards import loss_by_shards, mean_assignment_by_shards
from test_cuda import DEVICE, ON_GPU, Cuda

from cplearn_kernels import default_temperature
from cplearn_kernels.backends.cuda import functions as cuda
from cplearn_kernels.backends.cuda import launch
from cplearn_kernels.distributed.ranges import CodeRange

# Tiles of 1 to 256 threads and stored ones, blocks of few features among them; 129 features of 250 codes are one block
# for three ranks. No c is a multiple of a block.
SHAPES = [
    ("hadamard", 1, 5, 2, 3), ("hadamard", 7, 300, 5, 5), ("hadamard", 20, 300, 3, 2), ("hadamard", 33, 200, 9, 5),
    ("hadamard", 100, 700, 5, 2), ("hadamard", 129, 250, 3, 3), ("hadamard", 200, 700, 5, 1),
    ("hadamard", 600, 2500, 2, 3), ("hadamard", 5000, 8300, 1, 2), ("rademacher", 40, 300, 17, 3),
    ("rademacher", 130, 203, 3, 2), ("rademacher", 33, 3, 5, 2), ("dense", 100, 301, 5, 3), ("dense", 129, 203, 3, 5),
]  # fmt: skip
FAR = [("hadamard", 200, 3 << 32), ("hadamard", 20, (1 << 33) + 32), ("hadamard", 1, (1 << 33) + 5),
       ("rademacher", 40, (1 << 33) + 5), ("rademacher", 130, (1 << 32) - 100)]  # fmt: skip


class TestCudaShard(Cuda, RangeChecks):
    INVARIANCE = (1e-6, 1e-3)
    ALONE = (0, 1e-6)
    WHOLLY_NAN = ()
    CASES: ClassVar = {
        "test_loss_and_gradient": {
            "kind, f, c, n, world": slow_but(SHAPES, *SHAPES[:8], SHAPES[9], SHAPES[11], SHAPES[12])
        },
        "test_logits_of_300": {"kind, f, world": [("hadamard", 200, 2), ("hadamard", 20, 2), ("rademacher", 40, 2)]},
        "test_half_precision_and_strides": {"kind, f, c": [("hadamard", 100, 300)]},
        "test_rows_aligned_with_codes": {
            "kind, f": slow_but([("hadamard", 200), ("hadamard", 20), ("dense", 100)], ("hadamard", 200))
        },
        "test_ranges_of_several_spans": {
            "kind, f": slow_but([("hadamard", 100), ("hadamard", 20), ("rademacher", 40), ("dense", 130)],
                                ("hadamard", 100), ("rademacher", 40)),
            "c": [1300], "prior": PRIORS,
        },
        "test_mean_assignment": {
            "kind, f, world": [("hadamard", 200, 3), ("hadamard", 7, 4), ("rademacher", 40, 2), ("dense", 33, 3)],
            "c, n": [(600, 6)],
        },
        "test_what_is_left_out_or_wrong_is_noticed": {"kind, f": [("hadamard", 100), ("rademacher", 40)]},
        "test_what_each_step_returns": {
            "kind, f": [("hadamard", 200), ("hadamard", 20), ("rademacher", 40), ("dense", 33)]
        },
        "test_without_gradients_the_numbers_are_the_same": {"kind, f": [("hadamard", 40), ("rademacher", 40)]},
        "test_strides_do_not_matter": {"kind, f": [("hadamard", 40), ("rademacher", 40)]},
        "test_a_row_that_is_not_finite": {
            "kind, f, bad": [("hadamard", 100, math.nan), ("rademacher", 40, math.inf)], "prior": PRIORS
        },
        "test_same_bits_every_time": {
            "kind, f, c, n, world": [("hadamard", 520, 1340, 3, 2), ("rademacher", 40, 380, 3, 2)]
        },
        "test_codes_beyond_32_bits": {"kind, f, start": FAR},
        "test_functions_of_a_range": {"kind, f, start, stop": [
            ("hadamard", 100, 256, 550), ("hadamard", 20, 3 << 32, (3 << 32) + 294), ("rademacher", 40, 256, 550),
            ("dense", 33, 256, 550),
        ]},
        "test_loss_of_ranges_beyond_32_bits": {"kind, f, start": FAR[:2] + FAR[3:]},
    }  # fmt: skip

    def same_number(self, one, other):
        return abs(one - other) <= 1e-7 * abs(other)

    def test_one_range_gives_the_gradients_of_the_single_call(self):
        """To the bit: the second pass is the same, and its sums meet in the same order."""
        dictionary = make_dictionary("hadamard", 200, 500)
        views = [h.to(DEVICE) for h in embeddings(4, 200)]
        options = dict(temperature=0.3, beta=2.0, prior="cross_entropy")
        alone = cuda.cplearn_loss(*views, dictionary, prior_probs=None, need_grad=True, **options)
        steps = loss_by_shards(cuda, *views, dictionary, 1, **options)
        assert all(same_bits(one, other.float()) for one, other in zip(alone[3:], steps[3:], strict=True))

    def test_every_scalar_of_a_row_is_kept(self):
        assert cuda.Shard.ROW_SCALARS == launch.kernels().ROW_SCALARS

    @pytest.mark.parametrize("kind, f", [("hadamard", 200), ("hadamard", 5000), ("rademacher", 40), ("dense", 33)])
    @pytest.mark.parametrize("prior", ["reverse_kl", "cross_entropy"])
    def test_a_range_whose_codes_are_all_far_below_adds_nothing(self, kind, f, prior):
        """Were some code taken for the best one, which is elsewhere, its share would be 1."""
        dictionary = signs_dictionary(kind, f, 300, DEVICE)
        shard = cuda.Shard(dictionary, 0.5, 2)
        views = [h.to(DEVICE) for h in embeddings(3, f)]
        best, others = (
            torch.cat(part) for part in zip(*(shard.row_sums(i, h) for i, h in enumerate(views)), strict=True)
        )
        shard.combine(best + 4096, others * 0, torch.zeros_like(best, dtype=torch.bool))
        scalars, _ = shard.code_sums(1.0, prior, None, True)
        # p underflows; under cross entropy the weights are those of log p less log p̄, whatever p is.
        assert not scalars[[0, 1, 3, 4]].any()
        if prior == "reverse_kl":
            assert not scalars.any() and not shard.gradients(scalars).any()

    # ---- memory ----

    @pytest.mark.parametrize("kind, f", [("hadamard", 100), ("hadamard", 8000), ("rademacher", 40)])
    def test_working_memory_is_written_before_it_is_read_and_not_overrun(self, kind, f, watched_memory):
        dictionary = make_dictionary(kind, f, 300)
        views = [h.to(DEVICE) for h in embeddings(3, f)]

        def run():
            mean = mean_assignment_by_shards(cuda, views[0], dictionary, 2, temperature=0.3)
            return *loss_by_shards(cuda, *views, dictionary, 2, temperature=0.3), mean

        expected, lent = run(), watched_memory(at_least=1)
        assert all(map(same_bits, expected, run()))
        shards = 1 if f == 8000 else 2  # as many as there are blocks
        assert len(lent) == shards * 6  # two views' rows, sums and gradients; one view's rows and mean

    @pytest.mark.parametrize("kind", ["hadamard", "rademacher"])
    @pytest.mark.parametrize("f", [20, 2048])
    def test_memory_does_not_grow_with_the_number_of_codes(self, kind, f):
        """Counted, which costs nothing even for 2^30 codes of 2^34."""
        counted = []
        for log2 in (22, 26, 30):
            whole = make_dictionary(kind, f, 1 << 34)
            codes = launch.codes_of(CodeRange(whole, 1 << 33, (1 << 33) + (1 << log2)), DEVICE)
            arguments = (0.5, 1.0, 0, 0, (256, 256, 256), 256, 256, 256)
            device, views = launch.device_of(DEVICE), [(256, 0, f, 1)] * 2
            counted.append(launch.kernels().code_sums(device, 0, codes, views, 64, *arguments))
        assert counted[0] == counted[1] == counted[2] < 256e6, counted

    # ---- on a GPU ----

    @pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
    @pytest.mark.parametrize("kind, f, c", [("hadamard", 2048, 20000), ("hadamard", 128, 1 << 18),
                                            ("rademacher", 384, 20000)])  # fmt: skip
    def test_real_sizes_without_waiting_for_the_device(self, kind, f, c):
        """Against the single call on the same GPU. The first round fills the tables of the ranges."""
        dictionary = make_dictionary(kind, f, c)
        h1, h2 = (h.to(DEVICE) for h in embeddings(200, f))
        temperature = default_temperature(f, c)
        options = dict(temperature=temperature, beta=1.0, prior="reverse_kl")
        for mode in ("default", "error"):
            torch.cuda.set_sync_debug_mode(mode)
            try:
                alone = cuda.cplearn_loss(h1, h2, dictionary, prior_probs=None, need_grad=True, **options)
                steps = loss_by_shards(cuda, h1, h2, dictionary, 3, **options)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert all(abs(one - other) <= 1e-6 * max(abs(one), 1) for one, other in zip(alone[:3], steps[:3], strict=True))
        single, shared = (torch.cat(run[3:]).double() for run in (alone, steps))
        assert (single - shared).norm() <= GRADIENT_TOLERANCE * single.norm()
