"""Tests of the CUDA backend: bits, accuracy against the oracle, memory, bad input. In emulation without a GPU.

In emulation the kernel sources run under the thread model of tests/kernels/cuda/emulation, which fails a test that reads shared
memory no barrier separates from its write, waits at a barrier that others never reach, or reads what nobody wrote.
"""

from __future__ import annotations

import itertools
import math

import emulated
import pytest
import torch
from cases import DICTIONARY_KINDS, embeddings, loss_and_gradients, make_dictionary, one_thread, same_bits  # noqa: F401
from oracle import REGIMES, SETTINGS, LossOracle, check_loss, check_row_function, make_case, run_loss, signs_dictionary

import cplearn_kernels as cpk
from cplearn_kernels import reference
from cplearn_kernels.backends import select
from cplearn_kernels.backends.cuda import functions as cuda
from cplearn_kernels.backends.cuda import launch

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
ROW_FUNCTIONS = ("projector_softmax", "projector_logsumexp", "expected_code", "mean_assignment")


@pytest.fixture(scope="module", autouse=True)
def emulation():
    """Everything here runs on the GPU, or in emulation."""
    if ON_GPU:
        yield
        return
    with cuda.emulated(emulated.kernels()):
        yield


@pytest.fixture
def short_spans(monkeypatch):
    """Spans so short that small dictionaries need several, and a device so small that work is cut less finely."""
    if not ON_GPU:
        with cuda.emulated(emulated.kernels(), processors=1, span_codes=512, span_products=1):
            yield
        return
    monkeypatch.setattr(launch, "SPAN_CODES", 512)
    monkeypatch.setattr(launch, "SPAN_PRODUCTS", 1)
    yield


# ---- bits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, f, c", [
    *itertools.product(("hadamard", "rademacher", "dense"), (1, 33, 129), (9, 300)),
    *(("hadamard", f, 2 * f + 5) for f in (7, 64, 128, 300, 520, 2048, 5000)), ("rademacher", 300, 1100), ("dense", 520, 130),
])  # fmt: skip
def test_scores_of_unit_vectors_are_the_codes_exactly(kind, f, c):
    """h = e_k picks coordinate k of every code out of the products: bit for bit the dictionary's."""
    dictionary = signs_dictionary(kind, f, c, DEVICE)
    coordinates = torch.tensor(sorted({0, f // 3, f // 2, f - 1}))
    h = torch.zeros(len(coordinates), f, device=DEVICE)
    h[torch.arange(len(coordinates)), coordinates] = 1.0
    scores = torch.empty(len(coordinates), c, device=DEVICE)
    launch.call("scores", [h], dictionary, 0, c, scores.data_ptr())
    expected = dictionary.to_dense()[coordinates].cpu()
    assert torch.equal(scores.cpu(), expected)
    assert not torch.equal(scores.cpu(), expected.flip(1)) or f == 1


@pytest.mark.parametrize("kind, f", [("hadamard", 129), ("hadamard", 20), ("rademacher", 129)])
def test_codes_with_large_indices(kind, f):
    dictionary = make_dictionary(kind, f, 1 << 30, seed=2**63 + 3)
    first, count = (1 << 30) - 8192, 8192
    h = torch.zeros(1, f, device=DEVICE)
    h[0, f // 2] = 1.0
    scores = torch.empty(1, count, device=DEVICE)
    launch.call("scores", [h], dictionary, first, count, scores.data_ptr())
    assert torch.equal(scores[0].cpu(), dictionary.to_dense(first, 1 << 30)[f // 2])


# ---- accuracy against the oracle -------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("kind, f, c, n", SHAPES)
def test_loss_and_gradient(kind, f, c, n, conformance):
    dictionary = signs_dictionary(kind, f, c, DEVICE)
    on_cpu = dictionary.to("cpu")
    for position, regime in enumerate(REGIMES):
        case = make_case(on_cpu, n, regime)
        oracle = LossOracle(on_cpu, case)
        for setting in (SETTINGS[(position * 5 + f + c + n) % 16], SETTINGS[(position * 3 + f + 7) % 16]):
            check_loss(conformance, "cuda", oracle, setting, *run_loss(dictionary, case, setting, "cuda", DEVICE))


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("kind, f", [("hadamard", 100), ("hadamard", 260), ("rademacher", 130)])
def test_every_setting(kind, f, setting, conformance):
    dictionary = make_dictionary(kind, f, 300)
    case = make_case(dictionary, 5, "l2")
    oracle = LossOracle(dictionary, case)
    answer = run_loss(dictionary, case, setting, "cuda", DEVICE)
    check_loss(conformance, "cuda", oracle, setting, *answer)
    wrong = (answer[0], tuple(-gradient for gradient in answer[1]))
    with pytest.raises(AssertionError):
        check_loss(conformance.scratch(), "cuda", oracle, setting, *wrong)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind, f", [("hadamard", 100), ("hadamard", 300), ("rademacher", 70)])
def test_half_precision(kind, f, dtype, conformance):
    dictionary = make_dictionary(kind, f, 300)
    case = make_case(dictionary, 9, "l2", dtype)
    setting = ("reverse_kl", False, 1.0)
    answer = run_loss(dictionary, case, setting, "cuda", DEVICE)
    check_loss(conformance, "cuda", LossOracle(dictionary, case), setting, *answer, dtype)


@pytest.mark.parametrize("prior", ["reverse_kl", "cross_entropy"])
@pytest.mark.parametrize("kind, f", [("hadamard", 20), ("hadamard", 100), ("hadamard", 260), ("hadamard", 1500),
                                     ("rademacher", 40), ("rademacher", 130), ("dense", 130)])  # fmt: skip
def test_dictionaries_of_several_spans(short_spans, kind, f, prior, conformance):
    dictionary = signs_dictionary(kind, f, 1300 if f < 1000 else 5000, DEVICE)
    case = make_case(dictionary.to("cpu"), 4, "l2")
    setting = (prior, True, 1.0)
    answer = run_loss(dictionary, case, setting, "cuda", DEVICE)
    check_loss(conformance, "cuda", LossOracle(dictionary.to("cpu"), case), setting, *answer)


@pytest.mark.parametrize("kind, f", [("hadamard", 100), ("rademacher", 40)])
def test_sums_over_more_blocks_than_are_added_in_float32(kind, f, conformance):
    """More than 32 blocks of codes in a split: the second level of the sums."""
    dictionary = make_dictionary(kind, f, 128 * 80 + 3)
    case = make_case(dictionary, 2, "l2")
    setting = ("reverse_kl", False, 1.0)
    with cuda.emulated(emulated.kernels(), processors=1) if not ON_GPU else torch.cuda.device(0):
        answer = run_loss(dictionary, case, setting, "cuda", DEVICE)
    check_loss(conformance, "cuda", LossOracle(dictionary, case), setting, *answer)


@pytest.mark.parametrize("function", ROW_FUNCTIONS)
@pytest.mark.parametrize("kind, f, c, n", SHAPES[1:13:2] + SHAPES[13::2])
def test_row_functions(kind, f, c, n, function, conformance):
    dictionary = signs_dictionary(kind, f, c, DEVICE)
    for regime in (REGIMES[f % 2], REGIMES[2]) if f < 1000 else REGIMES[:1]:
        check_row_function(conformance, "cuda", function, dictionary, n, regime, device=DEVICE)


@pytest.mark.parametrize("function", ROW_FUNCTIONS)
@pytest.mark.parametrize("kind, f", [("hadamard", 100), ("hadamard", 260), ("rademacher", 130)])
def test_row_functions_over_several_spans(short_spans, kind, f, function, conformance):
    check_row_function(conformance, "cuda", function, make_dictionary(kind, f, 1300), 3, "l2", device=DEVICE)
    check_row_function(
        conformance, "cuda", function, make_dictionary(kind, f, 300), 3, "l2", torch.bfloat16, device=DEVICE
    )


@pytest.mark.parametrize("kind, f, c, n, top_k", [("hadamard", 7, 300, 15, 1), ("hadamard", 300, 1100, 5, 5),
                                                  ("rademacher", 100, 301, 5, 1), ("rademacher", 200, 300, 5, 300),
                                                  ("hadamard", 128, 3, 9, 2), ("dense", 100, 301, 5, 3)])  # fmt: skip
def test_assign(kind, f, c, n, top_k):
    dictionary = signs_dictionary(kind, f, c, DEVICE)
    h = make_case(dictionary.to("cpu"), n, "l2").views[0]
    scores, codes = (x.cpu() for x in cpk.assign(h.to(DEVICE), dictionary, top_k=top_k, backend="cuda"))
    everything = reference.logits(h.double(), dictionary.to("cpu"), temperature=1.0)
    # 22 bits of each entry, and a float32 sum of f of them.
    bound = (f * 2.0**-24 + 2.0**-21) * h.double().abs().sum(dim=1, keepdim=True)
    assert ((scores.double() - everything.topk(top_k, dim=1).values).abs() <= bound).all()
    assert ((everything.gather(1, codes) - scores).abs() <= bound).all()
    assert all(row.unique().numel() == top_k for row in codes)


@pytest.mark.parametrize("top_k", [1, 20])
@pytest.mark.parametrize("kind", ["hadamard", "rademacher"])
def test_equal_scores_come_by_index(kind, top_k):
    dictionary = make_dictionary(kind, 1, 1000)  # f = 1: all codes are +1 or -1, ties everywhere
    _, codes = cpk.assign(torch.tensor([[2.0], [-3.0]], device=DEVICE), dictionary, top_k=top_k, backend="cuda")
    signs = dictionary.to_dense()[0]
    assert codes[0].tolist() == torch.nonzero(signs > 0)[:top_k, 0].tolist()
    assert codes[1].tolist() == torch.nonzero(signs < 0)[:top_k, 0].tolist()


# ---- inputs of all sorts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, f", [("hadamard", 100), ("hadamard", 260), ("rademacher", 130)])
def test_finite_for_extreme_inputs(kind, f):
    dictionary = make_dictionary(kind, f, 300)
    case = make_case(dictionary, 5, "l2")
    for scale, prior in itertools.product((0.0, 1e-30, 1e12, 1e38), ("reverse_kl", "cross_entropy")):
        views = [(view * scale).to(DEVICE).requires_grad_() for view in case.views]
        loss = cpk.cplearn_loss(*views, dictionary, temperature=1e-3, prior=prior, backend="cuda")
        gradients = torch.autograd.grad(loss, views)
        assert torch.isfinite(loss) and all(torch.isfinite(g).all() for g in gradients), (scale, prior)


@pytest.mark.parametrize("kind, f", [("hadamard", 40), ("rademacher", 33)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite(bad, kind, f):
    dictionary = make_dictionary(kind, f, 100)
    h1, h2 = (h.to(DEVICE) for h in embeddings(4, f))
    h1[2, 5] = bad
    for prior in ("reverse_kl", "cross_entropy"):
        loss, grad1, grad2 = loss_and_gradients(h1, h2, dictionary, prior=prior, backend="cuda")
        assert loss.isnan() and grad1.isnan().any(dim=1).all() and grad2[2].isnan().any()
    for function in ROW_FUNCTIONS[:3]:
        result = getattr(cpk, function)(h1, dictionary, temperature=0.3, backend="cuda")
        assert result[2].isnan().all() and torch.isfinite(result[[0, 1, 3]]).all(), function
        wrt = h1.clone().requires_grad_()
        getattr(cpk, function)(wrt, dictionary, temperature=0.3, backend="cuda").sum().backward()
        assert wrt.grad[2].isnan().any() and torch.isfinite(wrt.grad[[0, 1, 3]]).all(), function
    assert cpk.mean_assignment(h1, dictionary, temperature=0.3, backend="cuda").isnan().all()
    for top_k in (1, 2):
        scores, _ = cpk.assign(h1, dictionary, top_k=top_k, backend="cuda")
        assert scores[2].isnan().all() and torch.isfinite(scores[[0, 1, 3]]).all()


@pytest.mark.parametrize("kind, f", [("hadamard", 100), ("rademacher", 100)])
def test_strides_do_not_matter(kind, f):
    dictionary = make_dictionary(kind, f, 300)
    views = [h.to(DEVICE) for h in embeddings(6, f)]
    expected = loss_and_gradients(*views, dictionary, backend="cuda")
    columns = [h.T.contiguous().T for h in views]
    spaced = [torch.stack([h, h + 1], 1)[:, 0] for h in views]
    for strided in (columns, spaced):
        assert not strided[0].is_contiguous()
        for one, other in zip(expected, loss_and_gradients(*strided, dictionary, backend="cuda"), strict=True):
            assert same_bits(one, other)


@pytest.mark.parametrize("kind, f", [("hadamard", 100), ("hadamard", 520), ("hadamard", 3000), ("rademacher", 130)])
def test_same_bits_whatever_the_order_of_threads(kind, f):
    dictionary = make_dictionary(kind, f, 2 * f + 3)
    views = [h.to(DEVICE) for h in embeddings(5, f)]
    runs = []
    for order in (0, 1, 2):
        if not ON_GPU:
            emulated.kernels().set_order(order)
        runs.append(loss_and_gradients(*views, dictionary, backend="cuda"))
    if not ON_GPU:
        emulated.kernels().set_order(0)
    for other in runs[1:]:
        assert all(same_bits(one, two) for one, two in zip(runs[0], other, strict=True))


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DICTIONARY_KINDS[:2])
@pytest.mark.parametrize("f", [20, 128, 2048])
def test_memory_does_not_grow_with_the_number_of_codes(kind, f):
    """Counted, which costs nothing even for 2^30 codes."""
    counted = {}
    for log2 in (22, 26, 30):
        codes = launch.codes_of(make_dictionary(kind, f, 1 << log2), DEVICE)
        device = launch.device_of(DEVICE)
        views = [(256, 0, f, 1)] * 2
        arguments = (0.5, 1.0, 0, 0, 256, 256, 256)
        counted[log2] = launch.kernels().cplearn_loss(device, 0, codes, views, 64, *arguments)
    assert counted[22] == counted[26] == counted[30] < 256e6, counted


@pytest.mark.parametrize("kind, f", [("hadamard", 100), ("hadamard", 8000), ("rademacher", 130), ("hadamard", 20)])
def test_working_memory_is_written_before_it_is_read_and_not_overrun(kind, f, monkeypatch):
    """Filled with NaN beforehand, with a mark behind its end and, in emulation, gaps between its arrays."""
    dictionary = make_dictionary(kind, f, 300)
    views = [h.to(DEVICE) for h in embeddings(5, f)]
    expected = loss_and_gradients(*views, dictionary, backend="cuda")
    lent = []
    plain = torch.empty

    def marked(*shape, **options):
        if options.get("dtype") is not torch.uint8:
            return plain(*shape, **options)
        whole = torch.full((shape[0] + 512,), 255, **options)
        whole[shape[0] :] = 171
        lent.append(whole)
        return whole[: shape[0]]

    monkeypatch.setattr(torch, "empty", marked)

    def untouched():
        if ON_GPU:
            return True
        gaps = emulated.kernels().gaps()
        return len(gaps) > 5 and all((lent[-1][begin:end] == 255).all() for begin, end in gaps)

    found = loss_and_gradients(*views, dictionary, backend="cuda")
    assert untouched()
    h = views[0].clone().requires_grad_()
    for function in ROW_FUNCTIONS:
        result = getattr(cpk, function)(h, dictionary, temperature=0.3, backend="cuda")
        assert untouched()
        assert torch.isfinite(result).all() and torch.isfinite(torch.autograd.grad(result.sum(), h)[0]).all()
        assert untouched()
    assert len(lent) >= 9 and all((whole[-512:] == 171).all() for whole in lent)
    assert all(same_bits(one, two) for one, two in zip(expected, found, strict=True))


# ---- errors and choice -----------------------------------------------------------------------------------------------


def test_what_it_does_not_serve():
    h = torch.randn(2, 8200, device=DEVICE)
    with pytest.raises(RuntimeError, match="up to 8192 features, got 8200"):
        cpk.assign(h, cpk.HadamardDictionary(8200, 10), backend="cuda")
    with pytest.raises(RuntimeError, match=r"up to 2\^30 codes"):
        cpk.assign(h[:, :64], cpk.HadamardDictionary(64, (1 << 30) + 1), backend="cuda")
    with pytest.raises(RuntimeError, match="all .1 or -1; this one has others"):
        cpk.assign(h[:, :64], cpk.DenseDictionary(torch.randn(64, 10, device=DEVICE)), backend="cuda")
    with pytest.raises(RuntimeError, match="dtype torch.float64"):
        cpk.assign(h[:, :64].double(), cpk.HadamardDictionary(64, 10), backend="cuda")
    with pytest.raises(NotImplementedError, match="second derivatives"):
        view = torch.randn(3, 64, device=DEVICE, requires_grad=True)
        loss = cpk.cplearn_loss(view, view * 2, cpk.HadamardDictionary(64, 100), temperature=0.5, backend="cuda")
        (gradient,) = torch.autograd.grad(loss, view, create_graph=True)
        gradient.sum().backward()


def test_an_unnamed_call_goes_elsewhere_in_emulation():
    if not ON_GPU:
        assert cuda.reservation(make_dictionary("hadamard", 64, 10), DEVICE) == "the emulation is for tests"
        assert select(None, "assign", make_dictionary("hadamard", 64, 100), torch.zeros(2, 64)).NAME == "cpu"
        assert "emulation" in str(cpk.backends()["cuda"])
