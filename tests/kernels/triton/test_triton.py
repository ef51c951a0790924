"""Tests of the Triton backend: bits, accuracy, spans, bad input. In the interpreter without a GPU."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys

import pytest
import torch
from cases import embeddings, loss_and_gradients, make_dictionary, one_thread, same_bits  # noqa: F401
from oracle import (
    REGIMES,
    SETTINGS,
    LossOracle,
    check_loss,
    check_row_function,
    make_case,
    run_loss,
    signs_dictionary,
)

import cplearn_kernels as cpk
from cplearn_kernels import reference

pytest.importorskip("triton")
from cplearn_kernels.backends import select  # noqa: E402
from cplearn_kernels.backends.triton import functions as triton_backend  # noqa: E402
from cplearn_kernels.backends.triton import (  # noqa: E402
    pieces,
    sums,
    tuning,  # noqa: E402
)
from cplearn_kernels.backends.triton.codes import codes_of  # noqa: E402
from cplearn_kernels.backends.triton.launches import Batch  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROW_FUNCTIONS = ("projector_softmax", "projector_logsumexp", "expected_code", "mean_assignment")


@pytest.fixture
def short_pieces(monkeypatch):
    """Spans, tables and chunks so short that small dictionaries need several of each."""
    monkeypatch.setattr(pieces, "SPAN", 512)
    monkeypatch.setattr(pieces, "_TABLE_WORDS", 1)
    monkeypatch.setattr(sums, "_CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(sums, "_FLUSH_TILES", 1)
    monkeypatch.setattr(pieces, "_SHORTEST_PIECE", 512)


# ---- bits ------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("kind", ["hadamard", "rademacher", "dense"])
@pytest.mark.parametrize("f, c", [(1, 9), (7, 40), (33, 300), (128, 200), (129, 300), (300, 1100), (520, 1030)])
def test_scores_of_unit_vectors_are_the_codes_exactly(kind, f, c):
    """h = e_k picks coordinate k of every code out of the tiles that passes multiply with: bit for bit the CPU's."""
    dictionary = signs_dictionary(kind, f, c, DEVICE)
    coordinates = torch.tensor(sorted({0, f // 3, f // 2, f - 1}))
    h = torch.zeros(len(coordinates), f, device=DEVICE)
    h[torch.arange(len(coordinates)), coordinates] = 1.0
    batch = Batch([h], codes_of(dictionary, DEVICE), [1.0])
    scores = torch.empty(len(coordinates), c, device=DEVICE)
    batch.probabilities(scores, 0, c, scores=True)
    assert torch.equal(scores.cpu(), dictionary.to_dense()[coordinates].cpu())


# ---- accuracy against the oracle -------------------------------------------------------------------------------------

# Odd sizes on both sides of every edge: one word, one group, one block, one tile of rows, one tile of codes. Small,
# because the interpreter spends milliseconds on each program.
SHAPES = [
    ("hadamard", 1, 3, 2), ("hadamard", 7, 300, 5), ("hadamard", 33, 65, 67), ("hadamard", 100, 700, 9),
    ("hadamard", 128, 129, 3), ("hadamard", 200, 700, 9), ("hadamard", 256, 255, 1), ("hadamard", 300, 1100, 5),
    ("hadamard", 600, 1500, 3), ("hadamard", 2048, 2049, 3), ("hadamard", 4096, 4100, 2), ("hadamard", 5000, 200, 1),
    ("rademacher", 1, 3, 1), ("rademacher", 64, 300, 9), ("rademacher", 100, 500, 5), ("rademacher", 129, 300, 17),
    ("rademacher", 384, 257, 3), ("dense", 33, 300, 5), ("dense", 200, 257, 3),
]  # fmt: skip


@pytest.mark.parametrize("kind, f, c, n", SHAPES)
def test_loss_and_gradient(kind, f, c, n, conformance):
    dictionary = signs_dictionary(kind, f, c, DEVICE)
    on_cpu = dictionary.to("cpu")
    for position, regime in enumerate(REGIMES[:2] if f > 1000 or n > 60 else REGIMES):
        case = make_case(on_cpu, n, regime)
        oracle = LossOracle(on_cpu, case)
        setting = SETTINGS[(position * 5 + f + c + n) % len(SETTINGS)]
        check_loss(conformance, "triton", oracle, setting, *run_loss(dictionary, case, setting, "triton", DEVICE))


@pytest.mark.parametrize("setting", SETTINGS[::3], ids=str)
@pytest.mark.parametrize("kind, f", [("hadamard", 100), ("hadamard", 260), ("rademacher", 130)])
def test_every_setting(kind, f, setting, conformance):
    dictionary = make_dictionary(kind, f, 200)
    case = make_case(dictionary, 5, "l2")
    check_loss(conformance, "triton", LossOracle(dictionary, case), setting,
               *run_loss(dictionary, case, setting, "triton", DEVICE))  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind, f", [("hadamard", 100), ("hadamard", 300), ("rademacher", 70)])
def test_half_precision(kind, f, dtype, conformance):
    dictionary = make_dictionary(kind, f, 300)
    case = make_case(dictionary, 9, "l2", dtype)
    setting = ("reverse_kl", False, 1.0)
    answer = run_loss(dictionary, case, setting, "triton", DEVICE)
    check_loss(conformance, "triton", LossOracle(dictionary, case), setting, *answer, dtype)


@pytest.mark.parametrize("prior", ["reverse_kl", "cross_entropy"])
@pytest.mark.parametrize("kind, f", [("hadamard", 100), ("hadamard", 260), ("rademacher", 40), ("rademacher", 130),
                                     ("dense", 130)])  # fmt: skip
def test_dictionaries_of_several_pieces(short_pieces, kind, f, prior, conformance):
    dictionary = signs_dictionary(kind, f, 1300, DEVICE)
    case = make_case(dictionary.to("cpu"), 4, "l2")
    setting = (prior, True, 1.0)
    answer = run_loss(dictionary, case, setting, "triton", DEVICE)
    check_loss(conformance, "triton", LossOracle(dictionary.to("cpu"), case), setting, *answer)


@pytest.mark.parametrize("function", ROW_FUNCTIONS)
@pytest.mark.parametrize("kind, f, c, n", SHAPES[1:10:2] + SHAPES[12::2])
def test_row_functions(kind, f, c, n, function, conformance):
    for regime in (REGIMES[f % 2], REGIMES[2]) if f < 1000 else REGIMES[:1]:
        dictionary = signs_dictionary(kind, f, c, DEVICE)
        check_row_function(conformance, "triton", function, dictionary, n, regime, device=DEVICE)


@pytest.mark.parametrize("function", ROW_FUNCTIONS)
@pytest.mark.parametrize("kind, f", [("hadamard", 100), ("hadamard", 260), ("rademacher", 130)])
def test_row_functions_over_several_pieces(short_pieces, kind, f, function, conformance):
    for c, dtype in ((1300, torch.float32), (300, torch.bfloat16)):
        dictionary = signs_dictionary(kind, f, c, DEVICE)
        check_row_function(conformance, "triton", function, dictionary, 3, "l2", dtype, device=DEVICE)


@pytest.mark.parametrize("kind, f, c, n, top_k", [("hadamard", 7, 300, 15, 1), ("hadamard", 300, 1100, 5, 5),
                                                  ("rademacher", 100, 301, 5, 1), ("rademacher", 200, 300, 5, 300),
                                                  ("hadamard", 128, 3, 9, 2), ("dense", 100, 301, 5, 3)])  # fmt: skip
def test_assign(kind, f, c, n, top_k):
    dictionary = signs_dictionary(kind, f, c, DEVICE)
    h = make_case(dictionary.to("cpu"), n, "l2").views[0]
    scores, codes = (x.cpu() for x in cpk.assign(h.to(DEVICE), dictionary, top_k=top_k, backend="triton"))
    everything = reference.logits(h.double(), dictionary.to("cpu"), temperature=1.0)
    # 22 bits of each entry, and a float32 sum of f of them.
    bound = (f * 2.0**-24 + 2.0**-21) * h.double().abs().sum(dim=1, keepdim=True)
    assert ((scores.double() - everything.topk(top_k, dim=1).values).abs() <= bound).all()
    assert ((everything.gather(1, codes) - scores).abs() <= bound).all()
    assert all(row.unique().numel() == top_k for row in codes)


@pytest.mark.parametrize("top_k", [1, 20])
def test_equal_scores_come_by_index(top_k):
    dictionary = cpk.HadamardDictionary(1, 1000, seed=0)  # f = 1: all codes are +1 or -1, ties everywhere
    _, codes = cpk.assign(torch.tensor([[2.0], [-3.0]], device=DEVICE), dictionary, top_k=top_k, backend="triton")
    signs = dictionary.to_dense()[0]
    assert codes[0].tolist() == torch.nonzero(signs > 0)[:top_k, 0].tolist()
    assert codes[1].tolist() == torch.nonzero(signs < 0)[:top_k, 0].tolist()


# ---- inputs of all sorts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, f", [("hadamard", 100), ("hadamard", 260), ("rademacher", 130)])
def test_finite_for_extreme_inputs(kind, f):
    dictionary = make_dictionary(kind, f, 300)
    case = make_case(dictionary, 5, "l2")
    for scale, prior in itertools.product((0.0, 1e-30, 1e12), ("reverse_kl", "cross_entropy")):
        views = [(view * scale).to(DEVICE).requires_grad_() for view in case.views]
        loss = cpk.cplearn_loss(*views, dictionary, temperature=1.0, prior=prior, backend="triton")
        gradients = torch.autograd.grad(loss, views)
        assert torch.isfinite(loss) and all(torch.isfinite(g).all() for g in gradients), (scale, prior)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite(bad):
    dictionary = make_dictionary("hadamard", 33, 100)
    h1, h2 = (h.to(DEVICE) for h in embeddings(4, 33))
    h1[2, 5] = bad
    loss, grad1, grad2 = loss_and_gradients(h1, h2, dictionary, backend="triton")
    assert loss.isnan() and grad1.isnan().any(dim=1).all() and grad2[2].isnan().any()
    for function in ROW_FUNCTIONS[:3]:
        result = getattr(cpk, function)(h1, dictionary, temperature=0.3, backend="triton")
        assert result[2].isnan().all() and torch.isfinite(result[[0, 1, 3]]).all(), function
    assert cpk.mean_assignment(h1, dictionary, temperature=0.3, backend="triton").isnan().all()
    for top_k in (1, 2):
        scores, _ = cpk.assign(h1, dictionary, top_k=top_k, backend="triton")
        assert scores[2].isnan().all() and torch.isfinite(scores[[0, 1, 3]]).all()


@pytest.mark.parametrize("f", [100, 260])
def test_strides_do_not_matter(f):
    dictionary = make_dictionary("hadamard", f, 300)
    views = [h.to(DEVICE) for h in embeddings(6, f)]
    expected = loss_and_gradients(*views, dictionary, backend="triton")
    columns = [h.T.contiguous().T for h in views]
    spaced = [torch.stack([h, h + 1], 1)[:, 0] for h in views]
    for strided in (columns, spaced):
        assert not strided[0].is_contiguous()
        for one, other in zip(expected, loss_and_gradients(*strided, dictionary, backend="triton"), strict=True):
            assert same_bits(one, other)


@pytest.mark.parametrize("kind, f", [("hadamard", 260), ("rademacher", 130)])
def test_same_bits_every_time(kind, f):
    dictionary = make_dictionary(kind, f, 700)
    views = [h.to(DEVICE) for h in embeddings(20, f)]
    runs = [loss_and_gradients(*views, dictionary, backend="triton") for _ in range(2)]
    assert all(same_bits(one, other) for one, other in zip(*runs, strict=True))


def test_no_array_grows_with_n_times_c(short_pieces, monkeypatch):
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


# ---- configurations and errors ---------------------------------------------------------------------------------------


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


def test_what_it_cannot_serve_is_said():
    h = torch.zeros(2, 8200, device=DEVICE)
    for dictionary, rows, reason in [
        (cpk.HadamardDictionary(8200, 10), h, "up to 8192 features, got 8200"),
        (cpk.RademacherDictionary(4, (1 << 30) + 1), h[:, :4], "up to 2\\^30 codes"),
        (cpk.DenseDictionary(torch.full((4, 3), 0.5, device=DEVICE)), h[:, :4], "entries are all \\+1 or -1"),
        (cpk.HadamardDictionary(4, 3), h[:, :4].double(), "does not serve the dtype torch.float64"),
    ]:
        with pytest.raises(RuntimeError, match=f"'triton' cannot run assign: .*{reason}"):
            select("triton", "assign", dictionary, rows)


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
