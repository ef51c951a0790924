"""What the functions of a GPU backend are held to, on a GPU or in its stand-in on the CPU, whose sizes are small."""

from __future__ import annotations

import itertools
import math

import oracle
import pytest
import torch
from cases import Checks, embeddings, loss_and_gradients, make_dictionary, same_bits
from tiers import slow

import cplearn_kernels as cpk
from cplearn_kernels import reference

ROW_FUNCTIONS = ("projector_softmax", "projector_logsumexp", "expected_code", "mean_assignment")


class FunctionChecks(Checks):
    """Tests for a subclass that names its `backend` and `device`.

    It has `scores(h, codes, first, count)`, products with codes as its kernels form them, `attempts()`, runs that must
    give the same bits, and a fixture `short_spans`, with which small dictionaries need several.

    Attributes:
        THOROUGH: whether the loss is checked for every regime and twice as many settings.
        EXTREMES: a temperature, and factors of embeddings, at which all is finite.
    """

    THOROUGH = True
    EXTREMES = (1e-3, (0.0, 1e-30, 1e12, 1e38))

    def check_loss(self, conformance, dictionary, case, settings, dtype=None):
        exact = oracle.LossOracle(dictionary.to("cpu"), case)
        for setting in settings:
            answer = oracle.run_loss(dictionary, case, setting, self.backend, self.device)
            oracle.check_loss(conformance, self.backend, exact, setting, *answer, dtype)
        loss, gradients = answer
        if dictionary.num_features > oracle.FEW_FEATURES:  # of few codes the gradient may be next to nothing
            with pytest.raises(AssertionError):
                oracle.check_loss(
                    conformance.scratch(), self.backend, exact, setting, loss, [-g for g in gradients], dtype
                )

    # ---- bits ----

    def test_scores_of_unit_vectors_are_the_codes_exactly(self, kind, f, c):
        """h = e_k picks coordinate k of every code out of the products: bit for bit the dictionary's."""
        dictionary = oracle.signs_dictionary(kind, f, c, self.device)
        coordinates = torch.tensor(sorted({0, f // 3, f // 2, f - 1}))
        scores = self.scores(torch.eye(f, device=self.device)[coordinates], dictionary, 0, c).cpu()
        expected = dictionary.to_dense()[coordinates].cpu()
        assert torch.equal(scores, expected)
        assert not torch.equal(scores, expected.flip(1)) or f == 1

    # ---- accuracy against the oracle ----

    def test_loss_and_gradient(self, kind, f, c, n, conformance):
        dictionary = oracle.signs_dictionary(kind, f, c, self.device)
        for position, regime in enumerate(
            oracle.REGIMES if self.THOROUGH or max(f, 16 * n) <= 1000 else oracle.REGIMES[:2]
        ):
            settings = oracle.SETTINGS[(position * 5 + f + c + n) % 16], oracle.SETTINGS[(position * 3 + f + 7) % 16]
            case = oracle.make_case(dictionary.to("cpu"), n, regime)
            self.check_loss(conformance, dictionary, case, settings[: 2 if self.THOROUGH else 1])

    def test_every_setting(self, kind, f, c, setting, conformance):
        dictionary = make_dictionary(kind, f, c)
        self.check_loss(conformance, dictionary, oracle.make_case(dictionary, 5, "l2"), [setting])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("kind, f", [slow("hadamard", 100), slow("hadamard", 300), ("rademacher", 70)])
    def test_half_precision(self, kind, f, dtype, conformance):
        dictionary = make_dictionary(kind, f, 300)
        case = oracle.make_case(dictionary, 9, "l2", dtype)
        self.check_loss(conformance, dictionary, case, [("reverse_kl", False, 1.0)], dtype)

    @pytest.mark.parametrize("prior", ["reverse_kl", "cross_entropy"])
    def test_dictionaries_of_several_spans(self, short_spans, kind, f, prior, conformance):
        dictionary = oracle.signs_dictionary(kind, f, 1300 if f < 1000 else 5000, self.device)
        case = oracle.make_case(dictionary.to("cpu"), 4, "l2")
        self.check_loss(conformance, dictionary, case, [(prior, True, 1.0)])

    @pytest.mark.parametrize("function", ROW_FUNCTIONS)
    def test_row_functions(self, kind, f, c, n, function, conformance):
        dictionary = oracle.signs_dictionary(kind, f, c, self.device)
        for regime in (oracle.REGIMES[f % 2], oracle.REGIMES[2]) if f < 1000 else oracle.REGIMES[:1]:
            oracle.check_row_function(conformance, self.backend, function, dictionary, n, regime, device=self.device)

    @pytest.mark.parametrize("function", ROW_FUNCTIONS)
    @pytest.mark.slow
    @pytest.mark.parametrize("kind, f", [("hadamard", 100), ("hadamard", 260), ("rademacher", 130)])
    def test_row_functions_over_several_spans(self, short_spans, kind, f, function, conformance):
        for c, dtype in ((1300, torch.float32), (300, torch.bfloat16)):
            dictionary = make_dictionary(kind, f, c)
            oracle.check_row_function(
                conformance, self.backend, function, dictionary, 3, "l2", dtype, device=self.device
            )

    @pytest.mark.parametrize("kind, f, c, n, top_k", [
        ("hadamard", 7, 300, 15, 1), ("hadamard", 300, 1100, 5, 5), ("rademacher", 100, 301, 5, 1),
        ("rademacher", 200, 300, 5, 300), ("hadamard", 128, 3, 9, 2), ("dense", 100, 301, 5, 3),
    ])  # fmt: skip
    def test_assign(self, kind, f, c, n, top_k):
        dictionary = oracle.signs_dictionary(kind, f, c, self.device)
        h = oracle.make_case(dictionary.to("cpu"), n, "l2").views[0]
        scores, codes = (x.cpu() for x in cpk.assign(h.to(self.device), dictionary, top_k=top_k, backend=self.backend))
        everything = reference.logits(h.double(), dictionary.to("cpu"), temperature=1.0)
        # 22 bits of each entry, and a float32 sum of f of them.
        bound = (f * 2.0**-24 + 2.0**-21) * h.double().abs().sum(dim=1, keepdim=True)
        assert ((scores.double() - everything.topk(top_k, dim=1).values).abs() <= bound).all()
        assert ((everything.gather(1, codes) - scores).abs() <= bound).all()
        assert all(row.unique().numel() == top_k for row in codes)

    @pytest.mark.parametrize("top_k", [1, 20])
    @pytest.mark.parametrize("kind", ["hadamard", "rademacher"])
    def test_equal_scores_come_by_index(self, kind, top_k):
        dictionary = make_dictionary(kind, 1, 1000)  # f = 1: all codes are +1 or -1, ties everywhere
        h = torch.tensor([[2.0], [-3.0]], device=self.device)
        _, codes = cpk.assign(h, dictionary, top_k=top_k, backend=self.backend)
        signs = dictionary.to_dense()[0]
        assert codes[0].tolist() == torch.nonzero(signs > 0)[:top_k, 0].tolist()
        assert codes[1].tolist() == torch.nonzero(signs < 0)[:top_k, 0].tolist()

    # ---- inputs of all sorts ----

    @pytest.mark.parametrize("kind, f", [slow("hadamard", 100), slow("hadamard", 260), ("rademacher", 130)])
    def test_finite_for_extreme_inputs(self, kind, f):
        dictionary = make_dictionary(kind, f, 300)
        case, (temperature, scales) = oracle.make_case(dictionary, 5, "l2"), self.EXTREMES
        for scale, prior in itertools.product(scales, ("reverse_kl", "cross_entropy")):
            views = [(view * scale).to(self.device) for view in case.views]
            found = loss_and_gradients(*views, dictionary, temperature=temperature, prior=prior, backend=self.backend)
            assert all(torch.isfinite(x).all() for x in found), (scale, prior)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_row_that_is_not_finite(self, kind, f, bad):
        dictionary, options = make_dictionary(kind, f, 100), dict(temperature=0.3, backend=self.backend)
        h1, h2 = (h.to(self.device) for h in embeddings(4, f))
        h1[2, 5] = bad
        for prior in ("reverse_kl", "cross_entropy"):
            loss, grad1, grad2 = loss_and_gradients(h1, h2, dictionary, prior=prior, **options)
            assert loss.isnan() and grad1.isnan().any(dim=1).all() and grad2[2].isnan().any()
        for function in ROW_FUNCTIONS[:3]:
            h = h1.clone().requires_grad_()
            result = getattr(cpk, function)(h, dictionary, **options)
            assert result[2].isnan().all() and torch.isfinite(result[[0, 1, 3]]).all(), function
            (gradient,) = torch.autograd.grad(result.sum(), h)
            assert gradient[2].isnan().any() and torch.isfinite(gradient[[0, 1, 3]]).all(), function
        assert cpk.mean_assignment(h1, dictionary, **options).isnan().all()
        for top_k in (1, 2):
            scores, _ = cpk.assign(h1, dictionary, top_k=top_k, backend=self.backend)
            assert scores[2].isnan().all() and torch.isfinite(scores[[0, 1, 3]]).all()

    def test_strides_do_not_matter(self, kind, f):
        dictionary = make_dictionary(kind, f, 300)
        views = [h.to(self.device) for h in embeddings(6, f)]
        expected = loss_and_gradients(*views, dictionary, backend=self.backend)
        for strided in ([h.T.contiguous().T for h in views], [torch.stack([h, h + 1], 1)[:, 0] for h in views]):
            assert not strided[0].is_contiguous()
            assert all(map(same_bits, expected, loss_and_gradients(*strided, dictionary, backend=self.backend)))

    def test_same_bits_every_time(self, kind, f, c, n):
        dictionary = make_dictionary(kind, f, c)
        views = [h.to(self.device) for h in embeddings(n, f)]
        runs = [loss_and_gradients(*views, dictionary, backend=self.backend) for _ in self.attempts()]
        assert len(runs) > 1 and all(all(map(same_bits, runs[0], other)) for other in runs[1:])

    def test_what_it_does_not_serve(self):
        h = torch.randn(2, 8200, device=self.device)
        for dictionary, rows, reason in [
            (cpk.HadamardDictionary(8200, 10), h, "up to 8192 features, got 8200"),
            (cpk.HadamardDictionary(64, (1 << 30) + 1), h[:, :64], r"up to 2\^30 codes"),
            (cpk.RademacherDictionary(4, (1 << 30) + 1), h[:, :4], r"up to 2\^30 codes"),
            (cpk.DenseDictionary(torch.full((4, 3), 0.5, device=self.device)), h[:, :4],
             r"entries are all \+1 or -1; this one has others"),
            (cpk.HadamardDictionary(4, 3), h[:, :4].double(), "does not serve the dtype torch.float64"),
        ]:  # fmt: skip
            with pytest.raises(RuntimeError, match=f"'{self.backend}' cannot run assign: .*{reason}"):
                cpk.assign(rows, dictionary, backend=self.backend)
        view = torch.randn(3, 64, device=self.device, requires_grad=True)
        loss = cpk.cplearn_loss(view, view * 2, cpk.HadamardDictionary(64, 100), temperature=0.5, backend=self.backend)
        (gradient,) = torch.autograd.grad(loss, view, create_graph=True)
        with pytest.raises(NotImplementedError, match="second derivatives"):
            gradient.sum().backward()
