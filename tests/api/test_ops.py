"""Tests of ops.py: opcheck, the compiler, autocast, half precision, strides, graphs, second derivatives."""

import pytest
import torch
import torch._dynamo.testing
from cases import FUSED, embeddings, loss_and_gradients, make_dictionary, one_thread, prior_probs, same_bits  # noqa: F401
from tiers import slow

import cplearn_kernels as cpk
from cplearn_kernels import ops

OPS = torch.ops.cplearn_kernels
F, C = 7, 20
DICTIONARIES = {kind: make_dictionary(kind, F, C, seed=2**63 + 1) for kind in ("hadamard", "rademacher", "dense")}
SHAPES = {
    "projector_softmax": lambda n: (n, C),
    "projector_logsumexp": lambda n: (n,),
    "expected_code": lambda n: (n, F),
    "mean_assignment": lambda n: (C,),
}
# A dense dictionary of ±1 travels as its packed signs too.
DICTIONARIES_OF_OPERATORS = {**DICTIONARIES, "dense ±1": cpk.DenseDictionary(DICTIONARIES["rademacher"].to_dense())}
# (backend, dictionary, dtype) of every path an operator can take here.
PATHS = [("cpu", "hadamard", torch.float32), ("cpu", "hadamard", torch.float16), ("torch", "hadamard", torch.bfloat16)]
PATHS += [("cpu", "rademacher", torch.float32), ("cpu", "dense ±1", torch.float32)]
PATHS += [("torch", kind, torch.float64) for kind in DICTIONARIES] + [("", "hadamard", torch.float32)]
# Where there is a GPU its kernels do not take these tensors on the CPU.
PATHS += [slow("triton", "hadamard", torch.float32)] if "interpreter" in cpk.backends()["triton"].reason else []


def check(operator, *arguments):
    torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("backend, kind, dtype", PATHS)
@pytest.mark.parametrize("need_grad", [False, True])
def test_loss_operator(backend, kind, dtype, need_grad):
    h1, h2 = (h.requires_grad_(need_grad) for h in embeddings(3, F, dtype=dtype))
    q = prior_probs(C) if need_grad else None
    arguments = ops.dictionary_arguments(DICTIONARIES_OF_OPERATORS[kind])
    check(OPS.loss.default, h1, h2, q, *arguments, 0.5, 1.0, "reverse_kl", need_grad, backend)


@pytest.mark.parametrize("backend, kind, dtype", PATHS)
@pytest.mark.parametrize("name", SHAPES)
def test_operators_of_one_batch(name, backend, kind, dtype):
    h = embeddings(3, F, dtype=dtype)[0]
    arguments = (*ops.dictionary_arguments(DICTIONARIES_OF_OPERATORS[kind]), 0.5, backend)
    operator = getattr(OPS, name).default
    output = operator(h, *arguments)
    kept = output if name == "projector_softmax" else None
    check(getattr(OPS, f"{name}_backward").default, torch.ones(SHAPES[name](3)).to(output), h, kept, *arguments)
    check(operator, h.requires_grad_(), *arguments)


@pytest.mark.parametrize("backend, kind, dtype", PATHS)
def test_operators_without_a_derivative(backend, kind, dtype):
    h = embeddings(3, F, dtype=dtype)[0]
    check(OPS.assign.default, h, *ops.dictionary_arguments(DICTIONARIES_OF_OPERATORS[kind]), 4, backend)
    gradient = torch.randn(3, F, dtype=torch.promote_types(dtype, torch.float32))
    check(OPS.loss_backward.default, torch.tensor(2.0).to(gradient), gradient, h)


def test_opcheck_notices_a_wrong_fake():
    with torch.library._scoped_library("cplearn_kernels_test", "DEF") as library:
        library.define("wrong(Tensor x) -> Tensor")
        library.impl("wrong", lambda x: x.sum(1), "CompositeExplicitAutograd")
        torch.library.register_fake("cplearn_kernels_test::wrong", lambda x: torch.empty_like(x), lib=library)
        with pytest.raises(Exception, match="opcheck"):
            check(torch.ops.cplearn_kernels_test.wrong.default, torch.ones(2, 3))


@pytest.mark.parametrize("kind", DICTIONARIES)
def test_dictionaries_cross_the_boundary_as_plain_values(kind):
    weight, signs, *values = ops.dictionary_arguments(DICTIONARIES[kind])
    assert values[:3] == [kind, F, C]
    assert -(2**63) <= values[3] < 2**63
    assert (weight is None) == (kind != "dense") and signs is None
    of_signs = DICTIONARIES_OF_OPERATORS["dense ±1"]
    assert ops.dictionary_arguments(of_signs)[1] is of_signs.signs and of_signs.signs.dtype == torch.int32


def compiled(function, backend="aot_eager", **options):
    torch._dynamo.reset()
    return torch.compile(function, backend=backend, fullgraph=True, **options)


@pytest.mark.parametrize("kind, beta, prior, given", [
    ("hadamard", 1.0, "reverse_kl", False),
    ("hadamard", 0.5, "cross_entropy", True),
    ("dense", 1.0, "reverse_kl", True),
])  # fmt: skip
@pytest.mark.parametrize("backend", [None, "torch"])
def test_compiled_loss_equals_eager(kind, beta, prior, given, backend):
    """The operator is the same code on both sides, so the bits agree."""
    options = {"beta": beta, "prior": prior, "prior_probs": prior_probs(C) if given else None, "backend": backend}
    h1, h2 = embeddings(5, F)
    eager = loss_and_gradients(h1, h2, DICTIONARIES[kind], **options)
    traced = loss_and_gradients(h1, h2, DICTIONARIES[kind], loss=compiled(cpk.cplearn_loss), **options)
    assert all(same_bits(a, b) for a, b in zip(eager, traced, strict=True))
    assert not any(same_bits(a, -b) for a, b in zip(eager, traced, strict=True))


@pytest.mark.slow
def test_compiled_by_inductor():
    """The default compiler, with code around the operator that it fuses: equal to float32 rounding."""

    def step(x1, x2):
        h1, h2 = (torch.nn.functional.normalize(x, dim=1) for x in (x1, x2))
        return 2 * cpk.cplearn_loss(h1, h2, DICTIONARIES["hadamard"], temperature=0.5)

    views = [h.requires_grad_() for h in embeddings(5, F, kind="tanh")]
    expected = step(*views)
    got = compiled(step, backend="inductor")(*views)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(torch.autograd.grad(got, views), torch.autograd.grad(expected, views), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_one_graph_serves_all_batch_sizes():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    function = compiled(cpk.cplearn_loss, backend=counter, dynamic=True)
    for n in (4, 6, 9):
        views = embeddings(n, F)
        eager = loss_and_gradients(*views, DICTIONARIES["hadamard"])
        traced = loss_and_gradients(*views, DICTIONARIES["hadamard"], loss=function)
        assert all(same_bits(a, b) for a, b in zip(eager, traced, strict=True))
        if n == 4:
            graphs = counter.frame_count
    assert counter.frame_count == graphs


def test_a_temperature_schedule_stays_compiled():
    """From its second value on the compiler makes a symbol of the temperature, which the checks must let pass."""
    function = compiled(cpk.cplearn_loss)
    for temperature in (0.5, 0.25, 0.125):
        options = {"temperature": temperature, "beta": 2 * temperature}
        eager = loss_and_gradients(*embeddings(5, F), DICTIONARIES["hadamard"], **options)
        traced = loss_and_gradients(*embeddings(5, F), DICTIONARIES["hadamard"], loss=function, **options)
        assert all(same_bits(a, b) for a, b in zip(eager, traced, strict=True))


@pytest.mark.parametrize("name", SHAPES)
def test_compiled_functions_of_one_batch(name):
    h = embeddings(5, F)[0].requires_grad_()
    run = lambda h: getattr(cpk, name)(h, DICTIONARIES["hadamard"], temperature=0.5).square().sum()  # noqa: E731
    expected, got = run(h), compiled(run)(h)
    assert same_bits(expected, got)
    assert same_bits(torch.autograd.grad(expected, h)[0], torch.autograd.grad(got, h)[0])
    scores, codes = compiled(cpk.assign)(h, DICTIONARIES["hadamard"], top_k=3)
    assert codes.tolist() == cpk.assign(h, DICTIONARIES["hadamard"], top_k=3)[1].tolist() and not scores.requires_grad


@pytest.mark.parametrize("kind", DICTIONARIES)
@pytest.mark.parametrize("backend", ["reference", *FUSED])
def test_autocast_changes_nothing(kind, backend):
    if backend == "cpu" and kind != "hadamard":
        backend = None
    h1, h2 = embeddings(5, F)
    outside = loss_and_gradients(h1, h2, DICTIONARIES[kind], backend=backend)
    # The backward of plain PyTorch code belongs outside autocast; that of the operators may run anywhere.
    results = slice(0, 1 if backend == "reference" else 3)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss_and_gradients(h1, h2, DICTIONARIES[kind], backend=backend)
        row_functions = [getattr(cpk, name)(h1, DICTIONARIES[kind], temperature=0.5) for name in SHAPES]
        layer = torch.nn.Linear(F, F)
        h = layer(h1)
        assert h.dtype == torch.bfloat16
        value = cpk.cplearn_loss(h, h, DICTIONARIES[kind], temperature=0.5, backend=backend)
    assert all(same_bits(a, b) for a, b in zip(outside[results], inside[results], strict=True))
    for name, result in zip(SHAPES, row_functions, strict=True):
        assert same_bits(result, getattr(cpk, name)(h1, DICTIONARIES[kind], temperature=0.5)), name
    value.backward()
    assert value.dtype == torch.float32 and layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_come_in_the_dtype_of_the_inputs(backend, dtype):
    """The half-precision gradient is the float32 one of the rounded inputs, cast once."""
    halves = embeddings(5, F, dtype=dtype)
    value, *grads = loss_and_gradients(*halves, DICTIONARIES["hadamard"], backend=backend)
    exact, *expected = loss_and_gradients(*(h.float() for h in halves), DICTIONARIES["hadamard"], backend=backend)
    assert same_bits(value, exact)
    assert all(same_bits(grad, full.to(dtype)) for grad, full in zip(grads, expected, strict=True))
    for name in SHAPES:
        h = halves[0].clone().requires_grad_()
        getattr(cpk, name)(h, DICTIONARIES["hadamard"], temperature=0.5).square().sum().backward()
        assert h.grad.dtype == dtype


@pytest.mark.parametrize("backend", FUSED)
def test_a_loss_scale_arrives_before_the_cast(backend):
    """Gradients near 1e-9 are zero in float16 (smallest: 6e-8); times 65536 first they keep 2^-11, 5e-4, and half an
    ulp of a subnormal, 3e-8, for those that stay below 6e-5."""
    halves = embeddings(5, F, dtype=torch.float16)
    options = {"temperature": 2000.0, "backend": backend}
    exact = loss_and_gradients(*(h.float() for h in halves), DICTIONARIES["hadamard"], **options)[1:]
    assert all(float(grad.abs().max()) < 3e-8 for grad in exact)
    scaled = loss_and_gradients(*halves, DICTIONARIES["hadamard"], upstream=65536.0, **options)[1:]
    late = loss_and_gradients(*halves, DICTIONARIES["hadamard"], **options)[1:]
    for grad, wrong, full in zip(scaled, late, exact, strict=True):
        torch.testing.assert_close(grad.float(), 65536 * full, rtol=5e-4, atol=3e-8)
        assert not wrong.any() and grad.any()
