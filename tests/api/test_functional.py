"""Tests of functional.py and validation.py: every bad input, what NaN does, dtypes of results, the loss's terms."""

import contextlib
import math

import pytest
import torch
from cases import DICTIONARY_KINDS, FUSED, embeddings, loss_and_gradients, make_dictionary, one_thread, prior_probs  # noqa: F401
from refusals import refused

import cplearn_kernels as cpk
from cplearn_kernels.backends.chunked import functions as chunked
from cplearn_kernels.backends.cpu import functions as cpu

HADAMARD = make_dictionary("hadamard", 8, 24)
DENSE = make_dictionary("dense", 8, 24)
ON_META = DENSE.to("meta")
UNARY = ("projector_softmax", "projector_logsumexp", "expected_code", "mean_assignment")
BACKENDS = ("reference", *FUSED)
H1, H2 = embeddings(5, 8)


def uniform(c=24, dtype=torch.float32):
    return torch.full((c,), 1 / c, dtype=dtype)


def with_entry(value, index=3):
    q = uniform()
    q[index] = value
    return q


def loss(h1=H1, h2=H2, dictionary=HADAMARD, temperature=0.5, **options):
    return cpk.cplearn_loss(h1, h2, dictionary, temperature=temperature, **options)


@pytest.fixture
def work(monkeypatch):
    """A list that grows when any backend or the oracle starts to compute."""
    started = []
    for module in (cpu, chunked, cpk.reference):
        for name in (*UNARY, "cplearn_loss", "assign"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda *args, **options: started.append(args))
    return started


def fails(work, call, error, given, expected):
    """`call` raises `error` in one sentence that holds both texts, before anything was computed."""
    assert len(refused(call, error, given, expected)) < 250 and work == []


def test_the_check_for_work_notices_work(work):
    for backend in BACKENDS:
        with contextlib.suppress(TypeError):  # of the operators, which miss their results
            loss(backend=backend)
    assert len(work) == len(BACKENDS)


FUNCTIONS = {
    "cplearn_loss": lambda h, d, **o: cpk.cplearn_loss(h, h, d, temperature=0.5, **o),
    "assign": lambda h, d, **o: cpk.assign(h, d, **o),
    **{name: lambda h, d, name=name, **o: getattr(cpk, name)(h, d, temperature=0.5, **o) for name in UNARY},
}

BAD_EMBEDDINGS = {
    "a list": ([[1.0] * 8], HADAMARD, TypeError, "got list", "tensor of shape (n, 8)"),
    "another width": (torch.ones(5, 7), HADAMARD, ValueError, "got (5, 7)", "(n, 8)"),
    "one row without a batch": (torch.ones(8), HADAMARD, ValueError, "got (8,)", "(n, 8)"),
    "three dimensions": (torch.ones(2, 5, 8), HADAMARD, ValueError, "got (2, 5, 8)", "(n, 8)"),
    "an empty batch": (torch.ones(0, 8), HADAMARD, ValueError, "(0, 8)", "at least one row"),
    "integers": (torch.ones(5, 8, dtype=torch.int64), HADAMARD, TypeError, "got torch.int64", "expected float16"),
    "booleans": (torch.ones(5, 8, dtype=torch.bool), HADAMARD, TypeError, "got torch.bool", "expected float16"),
    "complex": (torch.ones(5, 8, dtype=torch.complex64), HADAMARD, TypeError, "got torch.complex64", "float32"),
    "a dictionary elsewhere": (H1, ON_META, ValueError, "weight is on meta", "expected one device"),
    "a matrix as dictionary": (H1, torch.eye(8), TypeError, "got Tensor", "expected a Dictionary"),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("case", BAD_EMBEDDINGS)
@pytest.mark.parametrize("backend", [None, "reference"])
def test_bad_embeddings(work, function, case, backend):
    h, dictionary, error, given, expected = BAD_EMBEDDINGS[case]
    fails(work, lambda: FUNCTIONS[function](h, dictionary, backend=backend), error, given, expected)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("backend, dictionary, h, error, given, expected", [
    ("tensorflow", HADAMARD, H1, ValueError, "got 'tensorflow'", "('reference', 'cpu', 'cuda', 'triton', 'torch')"),
    ("", HADAMARD, H1, ValueError, "got ''", "expected None or one of"),
    ("triton", HADAMARD, H1.double(), RuntimeError, "'triton' cannot run", "cannot run"),
    ("cuda", HADAMARD, H1, RuntimeError, "'cuda' cannot run", "cannot run"),
    ("cpu", DENSE, H1, RuntimeError, "this one has others", "a dense dictionary whose entries are all +1 or -1"),
    ("cpu", HADAMARD, H1.double(), RuntimeError, "torch.float64", "it serves torch.float16"),
])  # fmt: skip
def test_backends_that_cannot_run(work, function, backend, dictionary, h, error, given, expected):
    fails(work, lambda: FUNCTIONS[function](h, dictionary, backend=backend), error, given, expected)


BAD_NUMBERS = [
    (0, ValueError, "got 0"), (0.0, ValueError, "got 0.0"), (-0.1, ValueError, "got -0.1"),
    (math.inf, ValueError, "got inf"), (-math.inf, ValueError, "got -inf"), (math.nan, ValueError, "got nan"),
    ("0.1", TypeError, "got str"), (None, TypeError, "got NoneType"), (True, TypeError, "got bool"),
    (torch.tensor(0.1), TypeError, "got Tensor"),
]  # fmt: skip


@pytest.mark.parametrize("function", [name for name in FUNCTIONS if name != "assign"])
@pytest.mark.parametrize("value, error, given", BAD_NUMBERS)
def test_bad_temperatures(work, function, value, error, given):
    expected = f"temperature: expected a {'positive finite ' * (error is ValueError)}number"
    views = (H1, H2) if function == "cplearn_loss" else (H1,)
    fails(work, lambda: getattr(cpk, function)(*views, HADAMARD, temperature=value), error, given, expected)


@pytest.mark.parametrize("value, error, given", [entry for entry in BAD_NUMBERS if entry[0] != 0 or entry[0] is False])
def test_bad_betas(work, value, error, given):
    expected = "beta: expected a finite number >= 0" if error is ValueError else "beta: expected a number"
    fails(work, lambda: loss(beta=value), error, given, expected)


BAD_LOSSES = {
    "rows disagree": ({"h2": H2[:4]}, ValueError, "(5, 8) and (4, 8)", "the same shape"),
    "dtypes disagree": ({"h2": H2.half()}, ValueError, "torch.float32 and torch.float16", "the same dtype"),
    "devices disagree": ({"h2": H2.to("meta")}, ValueError, "cpu and meta", "the same device"),
    "the second view is wrong": ({"h2": torch.ones(5, 9)}, ValueError, "h2: expected shape (n, 8)", "got (5, 9)"),
    "unknown prior": ({"prior": "entropy"}, ValueError, "got 'entropy'", "('reverse_kl', 'cross_entropy')"),
    "prior is None": ({"prior": None}, ValueError, "got None", "('reverse_kl', 'cross_entropy')"),
    "q too short": ({"prior_probs": uniform(23)}, ValueError, "got (23,)", "expected shape (24,)"),
    "q as a row": ({"prior_probs": uniform()[None]}, ValueError, "got (1, 24)", "expected shape (24,)"),
    "q negative": ({"prior_probs": with_entry(-0.5)}, ValueError, "smallest value of -0.5", "probabilities >= 0"),
    "q zero": ({"prior_probs": prior_probs(24, zeros=True)}, ValueError, "got a zero", "reverse_kl needs q_j > 0"),
    "q sums to more": ({"prior_probs": 2 * uniform()}, ValueError, "got 2.0", "a sum of 1"),
    "q sums to less": ({"prior_probs": 0.999 * uniform()}, ValueError, "got 0.99", "a sum of 1"),
    "q with a NaN": ({"prior_probs": with_entry(math.nan)}, ValueError, "nan", "probabilities >= 0"),
    "q with an infinity": ({"prior_probs": with_entry(math.inf)}, ValueError, "got inf", "a sum of 1"),
    "q of integers": ({"prior_probs": torch.ones(24, dtype=torch.int64)}, TypeError, "got torch.int64", "floating"),
    "q as a list": ({"prior_probs": [1 / 24] * 24}, TypeError, "got list", "a floating-point tensor of shape (24,)"),
    "q elsewhere": ({"prior_probs": uniform().to("meta")}, ValueError, "got meta", "a tensor on cpu like h1"),
    "no process group": ({"process_group": object()}, TypeError, "got object", 'a ProcessGroup, "world" or None'),
    "its name": ({"process_group": "all"}, ValueError, "got 'all'", 'a ProcessGroup, "world" or None'),
    "no group yet": ({"process_group": "world"}, ValueError, "not initialised", "expected init_process_group()"),
    "rows": ({"rows": "split"}, ValueError, "got 'split'", "rows: expected one of ('sharded', 'replicated')"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_LOSSES)
@pytest.mark.parametrize("backend", [None, "torch", "reference"])
def test_bad_arguments_of_the_loss(work, case, backend):
    options, error, given, expected = BAD_LOSSES[case]
    fails(work, lambda: loss(**options, backend=backend), error, given, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_uniform_probabilities_in_any_float_dtype(dtype, backend):
    """log q is off by the rounding of 1/24: 2^-9 relative in bfloat16, so 2e-3 in log q and in the loss."""
    given = loss(prior_probs=uniform(dtype=dtype), backend=backend)
    assert float(given) == pytest.approx(float(loss(backend=backend)), abs=4 * torch.finfo(dtype).eps + 1e-6)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("top_k", [0, -1, 25, 1.0, True, None])
def test_bad_top_k(work, backend, top_k):
    whole = type(top_k) is int
    error, expected = (ValueError, "1 <= top_k <= 24") if whole else (TypeError, "top_k: expected an integer")
    fails(work, lambda: cpk.assign(H1, HADAMARD, top_k=top_k, backend=backend), error, f"got {top_k}", expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", DICTIONARY_KINDS)
@pytest.mark.parametrize("view", [0, 1])
def test_loss_of_embeddings_that_are_not_finite(value, backend, kind, view):
    if backend == "cpu" and kind != "hadamard":
        backend = None
    views = [H1.clone(), H2.clone()]
    views[view][2, 5] = value
    for prior in ("reverse_kl", "cross_entropy"):
        value, *grads = loss_and_gradients(*views, make_dictionary(kind, 8, 24), prior=prior, backend=backend)
        assert value.isnan() and bool(grads[view].isnan().all()) and bool(grads[1 - view][2].isnan().all())
        assert not loss(prior=prior, backend=backend).isnan()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("backend", FUSED)
def test_rows_that_are_not_finite_stay_alone(value, backend):
    """Functions of single rows: NaN in that row (assign: not finite), the others to the bit; the batch mean all NaN."""
    h = H1.clone()
    h[2, 5] = value
    others = [0, 1, 3, 4]
    names = [name for name in (*UNARY, "assign") if name != "mean_assignment" and hasattr(cpu, name)]
    for name in names if backend == "cpu" else (*UNARY[:3], "assign"):
        result, clean = (FUNCTIONS[name](x, HADAMARD, backend=backend) for x in (h, H1))
        result, clean = (x[0] if name == "assign" else x for x in (result, clean))
        assert not bool(result[2].isfinite().any()) and (name == "assign" or bool(result[2].isnan().all())), name
        assert torch.equal(result[others], clean[others]), name
    assert bool(cpk.mean_assignment(h, HADAMARD, temperature=0.5, backend=backend).isnan().all())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_shapes_of_results(backend, dtype):
    if backend == "cpu" and dtype == torch.float64:
        backend = None
    h1, h2 = H1.to(dtype), H2.to(dtype)
    result = torch.float64 if dtype == torch.float64 else torch.float32
    value, terms = loss(h1, h2, return_terms=True, backend=backend)
    for number in (value, *terms.values()):
        assert (number.shape, number.dtype) == ((), result)
    scores, codes = cpk.assign(h1, HADAMARD, top_k=3, backend=backend)
    assert (scores.shape, scores.dtype, codes.shape, codes.dtype) == ((5, 3), result, (5, 3), torch.int64)
    for name, shape in zip(UNARY, ((5, 24), (5,), (5, 8), (24,)), strict=True):
        served = None if backend == "cpu" and not hasattr(cpu, name) else backend
        output = FUNCTIONS[name](h1, HADAMARD, backend=served)
        assert (output.shape, output.dtype) == (shape, result), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("beta", [0.0, 0.5, 3.0])
def test_terms(backend, beta):
    """loss = prior + beta invariance up to float32 rounding, detached; asking for them changes nothing."""
    h1, h2 = (h.clone().requires_grad_() for h in (H1, H2))
    value, terms = loss(h1, h2, beta=beta, return_terms=True, backend=backend)
    assert sorted(terms) == ["invariance", "prior"]
    assert value.requires_grad and not any(term.requires_grad for term in terms.values())
    value = value.detach()
    assert float(terms["prior"] + beta * terms["invariance"]) == pytest.approx(float(value), rel=1e-6)
    assert float(terms["invariance"] + beta * terms["prior"]) != pytest.approx(float(value), rel=1e-6)
    assert torch.equal(value, loss(beta=beta, backend=backend))
