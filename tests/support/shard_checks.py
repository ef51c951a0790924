"""What the Shard of every backend is held to: ranges of codes, one after the other, give the loss of all codes."""

from __future__ import annotations

import itertools
import math

import oracle
import pytest
import torch
from cases import Checks, embeddings, make_dictionary, same_bits
from shards import code_ranges, loss_by_shards, mean_assignment_by_shards, merge_row_sums

from cplearn_kernels import default_temperature, reference

PLAIN = ("reverse_kl", False, 1.0)


class ShardChecks(Checks):
    """Tests for a subclass that names its `backend`, its `module` and its `device`.

    Attributes:
        SETTINGS, WORLDS: what a loss is checked for and by how many ranges; ranges are taken in turn.
        MEAN_REGIMES, MEAN_TOLERANCE: what a mean assignment is checked for; logits of 300 have their own tolerance.
        OWNER_SCALARS: the scalars of a row that are 0 unless its best code is the range's.
        BREADTH: how many regimes a shape is checked for, and temperatures aligned rows; 2 at most.
        INVARIANCE: how far, relatively, an invariance may be off, and one near zero.
        OWNERS_MATTER: whether a best code that no range takes for its own is lost, rather than a little less exact.
        ALONE: how far the loss of one range may be from that of the single call, as for `torch.allclose`.
        WHOLLY_NAN: the gradients without any number where a row of the first view is not finite.
    """

    SETTINGS = (PLAIN, ("cross_entropy", True, 1.0))
    WORLDS = (3,)
    MEAN_REGIMES, MEAN_TOLERANCE = ("l2",), oracle.GRADIENT_TOLERANCE
    BREADTH, INVARIANCE, OWNER_SCALARS = 2, (1e-7, 1e-3), (3, 4)
    OWNERS_MATTER = True
    ALONE = (1e-6, 1e-7)
    WHOLLY_NAN = (0, 1)

    def attempts(self):
        """Runs that must give the same bits: one each time around."""
        return range(2)

    def same_number(self, one, other):
        return same_bits(one, other)

    def plan(self, f, c, world):
        """(regime, settings with their numbers of ranges) of one shape."""
        for position in range(self.BREADTH if f < 1000 else 1):
            settings = ("reverse_kl", f % 2 == position, 3.0), ("cross_entropy", f % 2 != position, 0.5)
            yield oracle.REGIMES[(f + c + position) % 3], [(setting, world) for setting in settings]

    def case(self, kind, f, c, n, regime="l2", dtype=torch.float32):
        """(a dictionary on the device, a case of it)."""
        dictionary = oracle.signs_dictionary(kind, f, c, self.device)
        return dictionary, oracle.make_case(dictionary.to("cpu"), n, regime, dtype)

    def run(self, dictionary, case, setting, world, need_grad=True):
        """As `loss_by_shards`, on the CPU again."""
        prior, given, beta = setting
        c, zeros = dictionary.num_codes, prior == "cross_entropy"
        q = oracle.prior_probs(c, with_zeros=zeros).to(self.device) if given else None
        found = loss_by_shards(
            self.module, *(view.to(self.device) for view in case.views), dictionary, world,
            temperature=case.temperature, beta=beta, prior=prior,
            prior_probs=q, need_grad=need_grad,
        )  # fmt: skip
        return [None if part is None else part.cpu() for part in found]

    def check_one(self, conformance, exact, dictionary, case, setting, world, variant="", surplus=0.0):
        """The invariance, once loss and gradient have passed; the loss is to exceed the oracle's by `surplus`."""
        loss, invariance, _, *gradients = self.run(dictionary, case, setting, world)
        label = f"{self.backend}{variant}, ranges of codes"
        oracle.check_loss(conformance, label, exact, setting, loss - surplus, gradients, torch.float32)
        return invariance

    def check(self, conformance, dictionary, case, plan=None, invariances=False):
        """The loss by ranges against the oracle, in float32 whatever the views' dtype is; if asked, its invariance."""
        exact = oracle.LossOracle(dictionary.to("cpu"), case)
        expected = exact.terms["invariance"]
        for setting, world in plan or zip(self.SETTINGS, itertools.cycle(self.WORLDS)):
            invariance = self.check_one(conformance, exact, dictionary, case, setting, world)
            assert not invariances or abs(invariance - expected) <= self.INVARIANCE[0] * expected, (
                invariance,
                expected,
            )
        return exact

    # ---- accuracy against the oracle ----

    def test_loss_and_gradient(self, kind, f, c, n, world, conformance):
        for regime, plan in self.plan(f, c, world):
            self.check(conformance, *self.case(kind, f, c, n, regime), plan)

    def test_logits_of_300(self, kind, f, world, conformance):
        plan = [(setting, world) for setting in self.SETTINGS[:2]]
        self.check(conformance, *self.case(kind, f, 400, 4, "l2 to ±300"), plan)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision_and_strides(self, kind, f, c, dtype, conformance):
        """Gradients come unrounded; views are columns of a larger array."""
        dictionary, case = self.case(kind, f, c, 5, dtype=dtype)
        case.views = tuple(torch.stack([view.T, view.T], dim=2)[:, :, 1].T for view in case.views)
        assert not any(view.is_contiguous() for view in case.views)
        self.check(conformance, dictionary, case, [(PLAIN, 3)])

    def test_rows_aligned_with_codes(self, kind, f, conformance):
        """Best codes of a row's views: the same, two of one range, two of different ranges, the first and the last."""
        dictionary = oracle.signs_dictionary(kind, f, 700, self.device)
        codes = torch.tensor([[0, 0], [699, 699], [30, 31], [0, 699], [699, 0], [650, 20], [300, 690]])
        matrix = oracle.float64_codes(dictionary.to("cpu"))
        views = tuple((matrix[:, column].T / math.sqrt(f)).float() for column in codes.T)
        for temperature in (default_temperature(f, 700), math.sqrt(f) / 300)[: self.BREADTH]:
            case = oracle.Case(views, temperature)
            self.check(conformance, dictionary, case, invariances=temperature != math.sqrt(f) / 300)

    def test_an_invariance_near_zero_keeps_its_digits(self):
        """log c less the cross term: a float32 log c alone would be off by up to 5e-7."""
        dictionary = make_dictionary("hadamard", 200, 700)
        aligned = (dictionary.to_dense()[:, [3, 400, 699]].T / math.sqrt(200)).contiguous()
        case = oracle.Case((aligned, aligned), default_temperature(200, 700))
        expected = oracle.LossOracle(dictionary, case).terms["invariance"].item()
        _, invariance, *_ = self.run(dictionary, case, PLAIN, 3, need_grad=False)
        assert 1e-9 < expected < 1e-3
        assert abs(invariance.item() - expected) <= self.INVARIANCE[1] * expected, invariance.item() / expected - 1

    def test_ranges_of_several_spans(self, short_spans, kind, f, c, prior, conformance):
        dictionary, case = self.case(kind, f, c, 2)
        self.check(conformance, dictionary, case, [((prior, True, 1.0), 2)])
        self.check_mean(dictionary, case, 2)

    def test_prior_probs_that_leave_ranges_empty(self):
        """Cross entropy with all of q in one range: the others give nothing to the prior."""
        dictionary, case = self.case("hadamard", 33, 700, 5)
        q = torch.zeros(700)
        q[3:30] = 1 / 27
        views = [view.double().requires_grad_() for view in case.views]
        options = dict(temperature=case.temperature, beta=0.5, prior="cross_entropy")
        expected = reference.cplearn_loss(*views, dictionary, prior_probs=q, **options)
        gradient = torch.cat(torch.autograd.grad(expected, views))
        on_device = [view.to(self.device) for view in (*case.views, q)]
        loss, _, _, *gradients = loss_by_shards(
            self.module, *on_device[:2], dictionary, 5, prior_probs=on_device[2], **options
        )
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        assert oracle.relative_error(torch.cat(gradients).cpu(), gradient, 0) < oracle.GRADIENT_TOLERANCE

    def test_mean_assignment(self, kind, f, c, n, world):
        for regime in self.MEAN_REGIMES:
            tolerance = oracle.LARGE_LOGIT_GRADIENT_TOLERANCE if regime == oracle.REGIMES[2] else self.MEAN_TOLERANCE
            self.check_mean(*self.case(kind, f, c, n, regime), world, tolerance)

    def check_mean(self, dictionary, case, world, tolerance=oracle.GRADIENT_TOLERANCE):
        h, options = case.views[0], dict(temperature=case.temperature)
        mean = mean_assignment_by_shards(self.module, h.to(self.device), dictionary, world, **options)
        expected = reference.mean_assignment(h.double(), dictionary.to("cpu"), **options)
        assert mean.dtype == torch.float32 and mean.shape == (dictionary.num_codes,)
        assert oracle.relative_error(mean.cpu(), expected, 0) <= tolerance

    def test_what_is_left_out_or_wrong_is_noticed(self, kind, f, conformance, monkeypatch):
        """The gradients of the first range; best codes that no range puts back, or that every range takes for its."""
        dictionary, case = self.case(kind, f, 400, 4)
        exact, shard = oracle.LossOracle(dictionary.to("cpu"), case), self.module.Shard
        gradients, combine = shard.gradients, shard.combine
        factors = iter((0, 1, 1))
        for step, wrong in (
            ("gradients", lambda self, scalars: gradients(self, scalars) * next(factors)),
            ("combine", lambda self, best, others, mine: combine(self, best, others, mine & False)),
            ("combine", lambda self, best, others, mine: combine(self, best, others, mine | True)),
        )[: 3 if self.OWNERS_MATTER else 1]:
            with monkeypatch.context() as patch, pytest.raises(AssertionError):
                patch.setattr(shard, step, wrong)
                self.check_one(conformance.scratch(), exact, dictionary, case, PLAIN, 3)
        assert next(factors, None) is None

    # ---- the steps ----

    def test_what_each_step_returns(self, kind, f):
        """Best logits and sums of each range, and its part of sum_j p_j ln(c p'_j), the best code's with its owner."""
        shard_of, (dictionary, case) = self.module.Shard, self.case(kind, f, 600, 5)
        weight = dictionary.to("cpu").to_dense().double()
        logits = torch.stack([(view.double() / case.temperature) @ weight for view in case.views])
        p = logits.softmax(2)
        terms = (p * (math.log(600) + p.flip(0).log())).flatten(0, 1)
        ranges, unit = code_ranges(dictionary, 3), shard_of.LOG_UNIT
        made = [shard_of(codes, case.temperature, 2) for codes in ranges]
        found = [[shard.row_sums(view, h.to(self.device)) for view, h in enumerate(case.views)] for shard in made]
        best, others = (torch.stack([torch.cat([view[part] for view in shard]) for shard in found]) for part in (0, 1))
        assert best.dtype == others.dtype == torch.float64
        owners = 0
        for rank, (shard, codes) in enumerate(zip(made, ranges, strict=True)):
            columns = slice(codes.first_code, codes.first_code + codes.num_codes)
            part = logits.flatten(0, 1)[:, columns]
            largest, rest = best[rank].cpu() * unit, others[rank].cpu()
            assert torch.allclose(largest, part.max(1).values, rtol=1e-6)
            assert torch.allclose(largest + torch.log1p(rest), part.logsumexp(1), rtol=1e-6)
            assert torch.allclose(rest, (part - part.max(1).values[:, None]).exp().sum(1) - 1, rtol=1e-4)
            assert torch.equal(best[rank], best[rank].float().double())
            top, total, mine = merge_row_sums(best, others, rank, unit)
            shard.combine(top, total, mine)
            scalars, _ = shard.code_sums(1.0, "reverse_kl", None, True)
            assert scalars.shape == (shard_of.ROW_SCALARS, 10) and scalars.dtype == torch.float64
            assert torch.allclose(scalars[0].cpu(), terms[:, columns].sum(1), rtol=1e-5, atol=1e-5)
            assert not torch.allclose(scalars[0].cpu(), terms.sum(1), atol=1e-3)
            assert all(((scalars[of_owner] != 0) == mine).all() for of_owner in self.OWNER_SCALARS)
            owners += mine.long()
        assert (owners == 1).all()

    def test_one_range_is_the_loss_of_one_process(self):
        dictionary = make_dictionary("hadamard", 200, 500)
        views = [h.to(self.device) for h in embeddings(4, 200)]
        options = dict(temperature=0.3, beta=2.0, prior="cross_entropy")
        alone = self.module.cplearn_loss(*views, dictionary, prior_probs=None, need_grad=True, **options)
        steps = loss_by_shards(self.module, *views, dictionary, 1, **options)
        assert all(torch.allclose(a.double(), b.double(), *self.ALONE) for a, b in zip(alone, steps, strict=True))

    def test_without_gradients_the_numbers_are_the_same(self, kind, f):
        dictionary, case = self.case(kind, f, 300, 5, "tanh")
        for setting in (("cross_entropy", True, 0.5), *self.SETTINGS[2::3]):
            *terms, none1, none2 = self.run(dictionary, case, setting, 2, need_grad=False)
            assert none1 is none2 is None
            assert all(map(self.same_number, terms, self.run(dictionary, case, setting, 2)[:3]))

    def test_strides_do_not_matter(self, kind, f):
        dictionary = oracle.signs_dictionary(kind, f, 300, self.device)
        views = [h.to(self.device) for h in embeddings(5, f)]
        strided = [views[0].T.contiguous().T, torch.stack([views[1], views[1] + 1], 1)[:, 0]]
        assert not any(h.is_contiguous() for h in strided)
        one, other = (loss_by_shards(self.module, *hs, dictionary, 2, temperature=0.3) for hs in (views, strided))
        assert all(map(same_bits, one, other))

    def test_a_row_that_is_not_finite(self, kind, f, prior, bad):
        dictionary = oracle.signs_dictionary(kind, f, 600, self.device)
        h1, h2 = (h.to(self.device) for h in embeddings(4, f))
        h1[2, 5] = bad
        for codes in code_ranges(dictionary, 3):
            best, others = self.module.Shard(codes, 0.3, 2).row_sums(0, h1)
            assert best.isnan().tolist() == others.isnan().tolist() == [False, False, True, False]
        for need_grad in (True, False):
            *terms, grad1, grad2 = loss_by_shards(
                self.module, h1, h2, dictionary, 3, temperature=0.3, prior=prior, need_grad=need_grad
            )
            assert all(term.isnan() for term in terms)
            if need_grad:
                assert grad1.isnan().any(dim=1).all() and grad1[2].isnan().all() and grad2[2].isnan().all()
                assert all((grad1, grad2)[i].isnan().all() for i in self.WHOLLY_NAN)
        assert mean_assignment_by_shards(self.module, h1, dictionary, 3, temperature=0.3).isnan().all()

    def test_same_bits_every_time(self, kind, f, c, n, world):
        dictionary = oracle.signs_dictionary(kind, f, c, self.device)
        views = [h.to(self.device) for h in embeddings(n, f)]
        runs = []
        for _ in self.attempts():
            mean = mean_assignment_by_shards(self.module, views[0], dictionary, world, temperature=0.3)
            runs.append((*loss_by_shards(self.module, *views, dictionary, world, temperature=0.3), mean))
        assert len(runs) > 1 and all(all(map(same_bits, runs[0], other)) for other in runs[1:])
