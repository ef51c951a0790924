"""Calls whose c * f and n * c do not fit into 32 bits, and long calls that are interrupted (backend "cpu")."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from oracle import GRADIENT_TOLERANCE, LOSS_TOLERANCE, relative_error

import cplearn_kernels as cpk

pytestmark = pytest.mark.usefixtures("alone")  # minutes of work for all cores, and time limits

QUICK = (cpk.HadamardDictionary, "cplearn_loss")  # what of an interruption is not slow
KINDS = (cpk.HadamardDictionary, cpk.RademacherDictionary)
N, F, C = 65, 64, (1 << 26) + 5
assert C * F > 1 << 32 and N * C > 1 << 32
# Spread over the whole dictionary, the last code of all among them.
CODES = [C - 1 - i * (C // N) for i in range(N)]


@pytest.fixture(
    scope="module", params=[KINDS[0], pytest.param(KINDS[1], marks=pytest.mark.slow)], ids=lambda k: k.__name__
)
def aligned(request):
    """A dictionary and rows that each are one of its codes, scaled to unit length."""
    dictionary = request.param(F, C, seed=11)
    return dictionary, torch.cat([dictionary.to_dense(j, j + 1) for j in CODES], dim=1).T / math.sqrt(F)


def test_assign_finds_codes_beyond_32_bits(aligned):
    dictionary, rows = aligned
    scores, codes = cpk.assign(rows, dictionary, top_k=2, backend="cpu")
    assert codes[:, 0].tolist() == CODES
    assert torch.allclose(scores[:, 0], torch.tensor(math.sqrt(F)))
    # The second best is another code of which the score is true.
    second = torch.cat([dictionary.to_dense(j, j + 1) for j in codes[:, 1].tolist()], dim=1).T
    assert torch.allclose((rows * second).sum(1), scores[:, 1]) and (codes[:, 0] != codes[:, 1]).all()


@pytest.mark.slow
def test_mean_assignment_beyond_32_bits(aligned):
    """Rows aligned with different codes at a low temperature: 1/n each, nothing elsewhere."""
    dictionary, rows = aligned
    mean = cpk.mean_assignment(rows, dictionary, temperature=0.02, backend="cpu")
    assert torch.allclose(mean[CODES], torch.tensor(1 / N)) and mean.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_row_functions_beyond_32_bits(aligned):
    """At a low temperature: log-sum-exp is the best logit, the expected code the row's code.

    At a very high one it is log c plus the mean logit, which is below sqrt(f) / temperature in size.
    """
    dictionary, rows = aligned
    lse = cpk.projector_logsumexp(rows, dictionary, temperature=0.02, backend="cpu")
    assert torch.allclose(lse, torch.tensor(math.sqrt(F) / 0.02))
    lse = cpk.projector_logsumexp(rows, dictionary, temperature=1e9, backend="cpu")
    assert torch.allclose(lse, torch.tensor(math.log(C)), rtol=1e-7)
    expected = cpk.expected_code(rows[:3], dictionary, temperature=0.02, backend="cpu")
    assert torch.allclose(expected, rows[:3] * math.sqrt(F), atol=1e-5)


@pytest.mark.slow
def test_loss_with_more_than_32_bits_of_logits():
    """Aligned, one code per row: the invariance vanishes, the prior is log(c / n), and the gradient is nothing."""
    dictionary = cpk.HadamardDictionary(F, C, seed=12)
    rows = torch.cat([dictionary.to_dense(j, j + 1) for j in CODES], dim=1).T / math.sqrt(F)
    views = [rows.clone().requires_grad_() for _ in range(2)]
    loss, terms = cpk.cplearn_loss(*views, dictionary, temperature=0.02, return_terms=True, backend="cpu")
    assert loss.item() == pytest.approx(math.log(C / N), rel=LOSS_TOLERANCE)
    assert abs(terms["invariance"].item()) < 1e-6 * math.log(C)
    for gradient in torch.autograd.grad(loss, views):
        assert gradient.norm().item() < 1e-5 * math.sqrt(F / N) / 0.04


@pytest.mark.slow
def test_loss_and_gradient_with_more_than_32_bits_of_codes():
    """c * f beyond 2^32 against the other backend, which shares no code with this one."""
    f, c = 2048, (1 << 21) + 1
    assert c * f > 1 << 32
    dictionary = cpk.HadamardDictionary(f, c, seed=13)
    generator = torch.Generator().manual_seed(14)
    views = [torch.nn.functional.normalize(torch.randn(1, f, generator=generator), dim=1) for _ in range(2)]
    answers = []
    for backend in ("cpu", "torch"):
        inputs = [view.clone().requires_grad_() for view in views]
        loss = cpk.cplearn_loss(*inputs, dictionary, temperature=2.0, backend=backend)
        answers.append((loss.item(), torch.cat(torch.autograd.grad(loss, inputs)).double()))
    (loss, gradient), (expected, expected_gradient) = answers
    assert loss == pytest.approx(expected, rel=2 * LOSS_TOLERANCE)
    floor = 1e-2 * math.sqrt(f) / 4
    assert relative_error(gradient, expected_gradient, floor) < 2 * GRADIENT_TOLERANCE
    assert relative_error(-gradient, expected_gradient, floor) > 2 * GRADIENT_TOLERANCE


INTERRUPTED = """
import signal
import sys
import torch
import cplearn_kernels as cpk

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with SIGINT ignored
torch.set_num_threads(2)
kind, function = sys.argv[1:]
dictionary = getattr(cpk, kind)(64, 1 << 36)  # would take hours
small = getattr(cpk, kind)(64, 1000)
h = torch.nn.functional.normalize(torch.randn(4, 64, generator=torch.Generator().manual_seed(0)), dim=1)
calls = {
    "cplearn_loss": lambda d: cpk.cplearn_loss(h, h, d, temperature=0.3, backend="cpu"),
    "projector_logsumexp": lambda d: cpk.projector_logsumexp(h, d, temperature=0.3, backend="cpu"),
    "expected_code": lambda d: cpk.expected_code(h, d, temperature=0.3, backend="cpu"),
    "assign": lambda d: cpk.assign(h, d, backend="cpu")[0],
}
before = calls[function](small)
print("started", flush=True)
try:
    calls[function](dictionary)
except KeyboardInterrupt:
    print("interrupted", flush=True)
assert torch.equal(calls[function](small), before)
print("usable", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.parametrize("kind, function", [
    pytest.param(kind.__name__, function, marks=[pytest.mark.slow] if (kind, function) != QUICK else [])
    for kind in KINDS for function in ("cplearn_loss", "projector_logsumexp", "expected_code", "assign")
])  # fmt: skip
def test_long_calls_can_be_interrupted(kind, function):
    """Ctrl-C ends the call within a second or so with KeyboardInterrupt, and the next call works."""
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED, kind, function], stdout=subprocess.PIPE, text=True)
    limit = threading.Timer(120, process.kill)  # then the pipe closes, and the test fails instead of waiting
    limit.start()
    try:
        assert process.stdout.readline() == "started\n"
        time.sleep(0.5)
        assert process.poll() is None
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        assert time.monotonic() - sent < 10  # on a busy machine; alone it is 0.1 s
        assert process.stdout.read() == "usable\n" and process.wait(timeout=60) == 0
    finally:
        limit.cancel()
        process.kill()
        process.stdout.close()
        process.wait()
