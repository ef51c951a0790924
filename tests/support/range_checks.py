"""What a backend is held to whose codes are a range of a dictionary's: its functions, and indices beyond 2^32."""

from __future__ import annotations

import contextlib
import math

import oracle
import pytest
import shards
import torch
from shard_checks import PLAIN, ShardChecks

from cplearn_kernels import DenseDictionary
from cplearn_kernels.distributed.ranges import CodeRange


def far_dictionary(kind, f, device):
    """Codes far beyond 2^32, unless they are a matrix."""
    return oracle.signs_dictionary(kind, f, 1000 if kind == "dense" else 1 << 43, device, seed=2**63 + 3)


class RangeChecks(ShardChecks):
    """All that a Shard is held to, and this. `scores(h, codes, first, count)` are products as the kernels form them."""

    def test_codes_beyond_32_bits(self, kind, f, start):
        whole = far_dictionary(kind, f, self.device)
        codes = CodeRange(whole, start, start + 300)
        coordinates = torch.tensor(sorted({0, f // 2, f - 1}))
        expected = codes.to_dense()
        h = torch.eye(f, device=self.device)[coordinates]
        assert torch.equal(self.scores(h, codes, 0, 300).cpu(), expected[coordinates])
        near = CodeRange(whole, start % (1 << 32), start % (1 << 32) + 300)
        assert not torch.equal(expected, near.to_dense()) or start < 1 << 32

    def test_functions_of_a_range(self, kind, f, start, stop):
        """It serves as a dictionary whose codes count from 0: held against the matrix of its codes."""
        codes = CodeRange(far_dictionary(kind, f, self.device), start, stop)
        matrix = DenseDictionary(codes.to_dense().cpu())
        for function in ("projector_softmax", "projector_logsumexp", "expected_code", "mean_assignment"):
            exact = oracle.RowOracle(function, matrix, 4, "l2")
            h, upstream = exact.case.views[0].to(self.device), exact.upstream.to(self.device)
            temperature = exact.case.temperature
            result = getattr(self.module, function)(h, codes, temperature)
            assert oracle.relative_error(result.cpu(), exact.value, 0) <= oracle.GRADIENT_TOLERANCE, function
            if function == "projector_logsumexp":  # as ops makes it
                gradient = self.module.expected_code(h, codes, temperature) * (upstream / temperature)[:, None]
            else:
                kept = (result,) if function == "projector_softmax" else ()
                gradient = getattr(self.module, f"{function}_backward")(upstream, h, *kept, codes, temperature)
            tolerance = oracle.GRADIENT_TOLERANCE if f > oracle.FEW_FEATURES else oracle.LARGE_LOGIT_GRADIENT_TOLERANCE
            assert oracle.relative_error(gradient.cpu(), exact.gradient, 0) <= tolerance, function
        exact = matrix.weight.T.double() @ matrix.weight.double()
        picked = torch.tensor([stop - start - 1, 0, (stop - start) // 2])
        rows = matrix.weight[:, picked].T.contiguous().to(self.device)
        for top_k in (1, 3, codes.num_codes):
            scores, found = (x.cpu() for x in self.module.assign(rows, codes, top_k))
            assert torch.equal(scores.double(), exact[picked].gather(1, found)) and (scores[:, 0] == f).all()
            assert torch.equal(found[:, 0], exact[picked].argmax(1))  # of equal codes the first
            assert all(row.unique().numel() == top_k for row in found)

    def test_loss_of_ranges_beyond_32_bits(self, kind, f, start, conformance, monkeypatch):
        """Two far ranges as if there were no other codes: the loss of their matrix, with log c of the whole dictionary.
        Rows lean on codes: what a best code adds is made from its index."""
        whole = far_dictionary(kind, f, self.device)
        ranges = [CodeRange(whole, start, start + 256), CodeRange(whole, start + 256, start + 500)]
        matrix = DenseDictionary(torch.cat([codes.to_dense() for codes in ranges], 1))
        case = oracle.make_case(matrix, 5, "l2")
        exact, shard = oracle.LossOracle(matrix, case), self.module.Shard
        monkeypatch.setattr(shards, "code_ranges", lambda dictionary, world: ranges)

        options = dict(surplus=math.log(whole.num_codes / 500))  # the prior holds log(c p̄)
        self.check_one(conformance, exact, whole, case, PLAIN, 2, **options)
        combine = shard.combine
        monkeypatch.setattr(shard, "combine", lambda self, *known: combine(self, *known[:2], known[2] & False))
        with pytest.raises(AssertionError) if self.OWNERS_MATTER else contextlib.nullcontext():
            self.check_one(conformance.scratch(), exact, whole, case, PLAIN, 2, **options)
