"""Tests of the Triton backend's Shard: ranges of codes, one after the other, give the loss."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from cases import one_thread, slow_but  # noqa: F401
from range_checks import RangeChecks, far_dictionary
from test_triton import DEVICE, Triton
from tiers import slow

from cplearn_kernels.backends.triton.codes import codes_of
from cplearn_kernels.backends.triton.launches import Batch
from cplearn_kernels.distributed.ranges import CodeRange

# Blocks transformed, with padding; blocks taken code by code, small ones with equal codes in several ranges among them;
# independent codes of one group of coordinates and of several; codes from memory. No c is a multiple of a block.
SHAPES = [
    ("hadamard", 200, 700, 5, 3), ("hadamard", 300, 900, 3, 2), ("hadamard", 33, 200, 5, 3), ("hadamard", 7, 300, 5, 5),
    ("hadamard", 129, 250, 3, 3), ("rademacher", 70, 301, 5, 3), ("rademacher", 130, 203, 3, 2),
    ("dense", 100, 301, 5, 3), ("dense", 129, 203, 3, 2),
]  # fmt: skip
FAR = [("hadamard", 200, 5 << 32), ("hadamard", 33, (1 << 33) + 64), ("hadamard", 129, (1 << 42) + 512),
       ("rademacher", 70, (1 << 33) + 5), ("rademacher", 129, (1 << 32) - 100)]  # fmt: skip


class TestTritonShard(Triton, RangeChecks):
    MEAN_TOLERANCE = 1e-6
    BREADTH, INVARIANCE, OWNER_SCALARS = 1, (1e-7, 1e-5), (3,)
    OWNERS_MATTER, WHOLLY_NAN = False, (0,)
    CASES: ClassVar = {
        "test_loss_and_gradient": {"kind, f, c, n, world": slow_but(SHAPES, SHAPES[4], SHAPES[8])},
        "test_logits_of_300": {
            "kind, f, world": slow_but([("hadamard", 200, 2), ("hadamard", 33, 1), ("rademacher", 40, 2)])
        },
        "test_half_precision_and_strides": {"kind, f, c": [("rademacher", 40, 300)]},
        "test_rows_aligned_with_codes": {"kind, f": slow_but([("hadamard", 200), ("dense", 100)])},
        "test_ranges_of_several_spans": {
            "kind, f": slow_but([("hadamard", 200), ("rademacher", 130), ("dense", 40)]),
            "c, prior": [(1100, "cross_entropy")],
        },
        "test_mean_assignment": {
            "kind, f, world": [slow("hadamard", 200, 3), slow("rademacher", 40, 2), ("dense", 33, 3)],
            "c, n": [(600, 6)],
        },
        "test_what_is_left_out_or_wrong_is_noticed": {"kind, f": [("rademacher", 40)]},
        "test_what_each_step_returns": {"kind, f": [("hadamard", 200), ("rademacher", 40)]},
        "test_without_gradients_the_numbers_are_the_same": {"kind, f": [("rademacher", 40)]},
        "test_strides_do_not_matter": {"kind, f": [slow("rademacher", 40)]},
        "test_a_row_that_is_not_finite": {"kind, f, prior, bad": [
            slow("hadamard", 200, "reverse_kl", math.nan), slow("rademacher", 40, "cross_entropy", math.inf),
        ]},
        "test_same_bits_every_time": {"kind, f, c, n, world": slow_but([("hadamard", 200, 500, 4, 2)])},
        "test_codes_beyond_32_bits": {"kind, f, start": FAR},
        "test_functions_of_a_range": {"kind, f, start, stop": slow_but([("hadamard", 200, 3 << 32, (3 << 32) + 300)])},
        "test_loss_of_ranges_beyond_32_bits": {
            "kind, f, start": slow_but([("hadamard", 200, 3 << 32), ("rademacher", 70, 3 << 32)])
        },
    }  # fmt: skip

    @pytest.mark.parametrize("kind, f, start", FAR)
    def test_codes_beyond_32_bits_as_results_are_finished_with_them(self, kind, f, start):
        codes = CodeRange(far_dictionary(kind, f, DEVICE), start, start + 300)
        batch = Batch([torch.ones(1, f, device=DEVICE)], codes_of(codes, DEVICE), [1.0])
        assert torch.equal(batch.dense_codes(290, 10).cpu(), codes.to_dense()[:, 290:].T)
