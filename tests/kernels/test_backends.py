"""Tests of backends/: what backends() says, who serves a call, instruction sets, determinism, memory against c."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import embeddings, loss_and_gradients, make_dictionary, same_bits
from tiers import slow

import cplearn_kernels as cpk
from cplearn_kernels.backends import select
from cplearn_kernels.backends.chunked import functions as chunked
from cplearn_kernels.backends.cpu import functions as cpu
from cplearn_kernels.backends.cpu import launch
from cplearn_kernels.options import BACKENDS
from cplearn_kernels.validation import check_backend

FUNCTIONS = ("cplearn_loss", "projector_softmax", "projector_logsumexp", "expected_code", "mean_assignment", "assign")
SUPPORT = Path(__file__).resolve().parents[1] / "support"
H = embeddings(2, 64)[0]


# ---- what runs here --------------------------------------------------------------------------------------------------


def test_backends_lists_every_name():
    found = cpk.backends()
    assert set(found) == set(BACKENDS) == {"reference", "torch", "cpu", "triton", "cuda"}
    for name in ("reference", "torch"):
        info = found[name]
        assert info.available and info.functions == FUNCTIONS
        assert info.dictionaries == ("hadamard", "rademacher", "dense")
        assert info.dtypes == ("float16", "bfloat16", "float32", "float64")
    # Without a GPU it says what it was built for, or why it was built without CUDA kernels.
    assert found["cuda"].functions == (FUNCTIONS if found["cuda"].available else ())
    assert found["cuda"].available or re.search(
        r"built for sm_.*; (no device|there is)|without CUDA: ", found["cuda"].reason
    )
    # Without a GPU the tests interpret Triton's kernels, if there is a Triton.
    assert found["triton"].functions == (FUNCTIONS if found["triton"].available else ())
    assert found["cpu"].available and found["cpu"].functions == FUNCTIONS and "float64" not in found["cpu"].dtypes
    assert found["cpu"].dictionaries == ("hadamard", "rademacher", "dense")


def test_backends_prints_as_a_list():
    text = str(cpk.backends())
    assert repr(cpk.backends()) == text
    heads = [line for line in text.splitlines() if not line.startswith(" ")]
    assert [line.split(":")[0] for line in heads] == list(cpk.backends())
    for line in heads:
        assert ("cannot run (" in line) != ("runs here (" in line)
    assert f"instruction set {cpu.targets()[0]}" in text and "dictionaries: hadamard, rademacher, dense" in text


def test_a_core_that_is_missing_is_explained(monkeypatch):
    monkeypatch.setattr(launch, "core", None)
    monkeypatch.setattr(launch, "missing", "no module named _core")
    info = cpk.backends()["cpu"]
    assert not info.available and "compiled core cannot be imported: no module named _core" in info.reason
    dictionary = make_dictionary("hadamard", 64, 100)
    assert select(None, "assign", dictionary, H) is chunked
    with pytest.raises(RuntimeError, match="'cpu' cannot run assign: the compiled core cannot be imported"):
        cpk.assign(H, dictionary, backend="cpu")


# ---- who serves a call -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function, kind, h, chosen", [
    ("cplearn_loss", "hadamard", H, cpu), ("projector_logsumexp", "hadamard", H.half(), cpu),
    ("mean_assignment", "hadamard", H.bfloat16(), cpu), ("assign", "hadamard", H, cpu),
    ("cplearn_loss", "hadamard", H.double(), chunked), ("cplearn_loss", "hadamard", H.to("meta"), chunked),
    ("cplearn_loss", "rademacher", H, cpu), ("projector_softmax", "rademacher", H.half(), cpu),
    ("expected_code", "dense ±1", H, cpu), ("cplearn_loss", "dense ±1", H, cpu),
    ("cplearn_loss", "rademacher", H.double(), chunked), ("assign", "dense", H, chunked),
    ("cplearn_loss", "dense", H, chunked),
])  # fmt: skip
def test_default_choice(function, kind, h, chosen):
    dictionary = make_dictionary(kind.removesuffix(" ±1"), 64, 100)
    if kind == "dense ±1":
        dictionary = cpk.DenseDictionary(dictionary.weight.sign())
    assert select(None, function, dictionary, h) is chosen
    assert select("torch", function, dictionary, h) is chunked
    if chosen is chunked:
        with pytest.raises(RuntimeError, match=f"'cpu' cannot run {function}: it (serves|does not serve)"):
            select("cpu", function, dictionary, h)


@pytest.mark.parametrize("kind, module", [("hadamard", cpu), ("rademacher", cpu), ("dense", chunked)])
def test_the_chosen_backend_does_the_work(monkeypatch, kind, module):
    called = []
    original = module.assign
    monkeypatch.setattr(module, "assign", lambda *args: called.append(module) or original(*args))
    cpk.assign(H, make_dictionary(kind, 64, 100))
    assert called == [module]


@pytest.mark.parametrize("name", ["gpu", "CPU", "", 1])
def test_unknown_names(name):
    allowed = "'reference', 'cpu', 'cuda', 'triton', 'torch'"
    with pytest.raises(ValueError, match=f"backend: expected None or one of .*{allowed}.*{name!r}"):
        check_backend(name)


def test_few_features_go_to_the_torch_backend_unless_cpu_is_named():
    h = embeddings(3, 16)[0]
    assert select(None, "cplearn_loss", make_dictionary("hadamard", 16, 50), h).NAME == "torch"
    assert select(None, "cplearn_loss", make_dictionary("hadamard", 17, 50), embeddings(3, 17)[0]).NAME == "cpu"
    assert select("cpu", "cplearn_loss", make_dictionary("hadamard", 16, 50), h).NAME == "cpu"


# ---- instruction sets ------------------------------------------------------------------------------------------------


def fast_results(n, f, c, kind="hadamard"):
    """Every result that the cpu backend makes, by name."""
    dictionary = make_dictionary(kind, f, c, seed=3)
    h1, h2 = embeddings(n, f)
    results = {}
    for prior in ("reverse_kl", "cross_entropy"):
        names = (f"{prior} loss", f"{prior} gradient 1", f"{prior} gradient 2")
        values = loss_and_gradients(h1, h2, dictionary, prior=prior, backend="cpu")
        results.update(zip(names, values, strict=True))
    h = h1.requires_grad_()
    for name in ("projector_softmax", "projector_logsumexp", "expected_code", "mean_assignment"):
        value = getattr(cpk, name)(h, dictionary, temperature=0.3, backend="cpu")
        upstream = torch.linspace(-1, 1, value.numel()).view_as(value)
        results[name] = value.detach()
        results[f"{name} gradient"] = torch.autograd.grad(value, h, upstream)[0]
    results["scores"], results["codes"] = cpk.assign(h, dictionary, top_k=min(3, c), backend="cpu")
    return results


@pytest.mark.parametrize("kind", ["hadamard", "rademacher"])
@pytest.mark.parametrize("target", cpu.targets())
def test_every_instruction_set(target, kind):
    """Sums in another order: float32 roundings apart, 1e-5 relative as in the conformance suite; codes the same."""
    with cpu.use_target(target):
        assert f"instruction set {target} of" in cpu.description()
        mine = fast_results(15, 100, 300, kind)
    expected = fast_results(15, 100, 300, kind)
    for name, value in expected.items():
        if name == "codes":
            assert torch.equal(mine[name], value)
        else:
            assert float((mine[name] - value).norm()) <= 1e-5 * float(value.norm()), name
            assert float((-mine[name] - value).norm()) > 1e-5 * float(value.norm()), name


def test_targets_are_restored():
    before = cpu.description()
    slowest = cpu.targets()[-1]
    with contextlib.suppress(ZeroDivisionError), cpu.use_target(slowest):
        assert f"instruction set {slowest}" in cpu.description()
        raise ZeroDivisionError
    assert cpu.description() == before
    with pytest.raises(ValueError, match="instruction set: expected one of .*'baseline'.*got 'sse9'"):
        cpu.use_target("sse9").__enter__()
    assert cpu.description() == before


# ---- determinism -----------------------------------------------------------------------------------------------------


@pytest.fixture
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


SHAPES = [(1, 1, 9), (1, 7, 1000), (15, 100, 3001), (15, 2048, 4097), (257, 128, 1000), (257, 7, 65), (1, 2048, 2048)]
# The slower instruction sets share the schedule: small shapes do for them.
RUNS = [(t, *s) for t in cpu.targets() for s in SHAPES if t == cpu.targets()[0] or s[0] * s[1] < 2000]
RUNS = [pytest.param(*run, marks=[pytest.mark.slow] if run[1] * run[2] > 20_000 else []) for run in RUNS]


@pytest.mark.parametrize("kind", ["hadamard", "rademacher"])
@pytest.mark.parametrize("target, n, f, c", RUNS)
def test_same_bits_for_any_number_of_threads_and_every_time(target, n, f, c, kind, threads_as_before):
    runs = []
    for count in (1, 2, 2, 3):
        torch.set_num_threads(count)
        with cpu.use_target(target):
            runs.append(fast_results(n, f, c, kind))
    for name, value in runs[0].items():
        assert all(same_bits(value, other[name]) for other in runs[1:]), name
    assert not same_bits(runs[0]["reverse_kl gradient 1"], runs[0]["reverse_kl gradient 1"] + 1e-7) or f == 1


@pytest.mark.parametrize("f, c", [(1, 9), (17, 40), (100, 301), (600, 1000)])
def test_a_dense_dictionary_of_signs_gives_the_bits_of_the_generated_one(f, c):
    """Packed and generated codes meet the same kernel."""
    h1, h2 = embeddings(5, f)
    generated = make_dictionary("rademacher", f, c, seed=9)
    dense = cpk.DenseDictionary(generated.to_dense())
    for call in (
        lambda dictionary: loss_and_gradients(h1, h2, dictionary, backend="cpu"),
        lambda dictionary: cpk.assign(h1, dictionary, top_k=3, backend="cpu"),
    ):
        assert all(map(same_bits, call(generated), call(dense)))


# ---- memory ----------------------------------------------------------------------------------------------------------

MEASURE = """
import json, sys
import torch
import cplearn_kernels as cpk
from cases import embeddings, loss_and_gradients, make_dictionary

def peak():
    # Not ru_maxrss, which starts at the peak of the process that started this one.
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024  # MB

backend, kind = sys.argv[1:]
grown = {}
views = embeddings(64, 64)
def run(c):
    dictionary = make_dictionary(kind, 64, c)
    loss_and_gradients(*views, dictionary, backend=backend)
    if backend == "torch":
        return  # slow, and its other functions go through the same chunks
    h = views[0].clone().requires_grad_()
    cpk.projector_logsumexp(h, dictionary, temperature=0.3, backend=backend).sum().backward()
    cpk.expected_code(h, dictionary, temperature=0.3, backend=backend).sum().backward()
    cpk.assign(h, dictionary, top_k=2, backend=backend)
run(1 << 10)
ballast = torch.ones(1 << 25)  # imports peak above what stays: 128 MB close that gap, in which growth could hide
for log2 in (16, 17):
    run(1 << log2)
    grown[log2] = peak()
loss_and_gradients(*views, make_dictionary(kind, 64, 1 << 17), backend="reference")
grown["reference"] = peak()
print(json.dumps(grown))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("backend, kind", [("cpu", "hadamard"), slow("cpu", "rademacher"), slow("torch", "hadamard")])
def test_memory_does_not_grow_with_the_number_of_codes(backend, kind):
    """From 2^16 to 2^17 codes one (n, c) array grows by 16 MB; allocator noise is a few MB, so 8 MB tells them apart.

    Large blocks go straight back to the system (a fixed threshold; malloc's own moves with use), or it would be more.
    """
    path = os.pathsep.join([str(SUPPORT), str(SUPPORT.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, backend, kind], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    peaks = json.loads(run.stdout)
    assert peaks["17"] - peaks["16"] < 8, peaks
    assert peaks["reference"] - peaks["16"] > 8, peaks
