"""The program that runs under compute-sanitizer: every function, forward and backward, on small odd sizes.

    compute-sanitizer --tool memcheck python -m bench.gpu.sanitized_calls

It names each call before it makes it and ends with the line `all N calls made`, without which a clean report says
little. Values are the tests' concern; here they only have to be finite.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

import cplearn_kernels as cpk

UNARY = ("projector_softmax", "projector_logsumexp", "expected_code", "mean_assignment")
# (dictionary, f, n, c). Hadamard: every kind of block, f short of its block, a last block that is not full; blocks
# below 64 go the way of independent codes. n = 67: more rows than a tile has.
SIZES = (
    ("hadamard", 24, 3, 77), ("hadamard", 100, 5, 259), ("hadamard", 128, 67, 259), ("hadamard", 512, 5, 1027),
    ("hadamard", 2048, 3, 4099), ("hadamard", 4096, 3, 4099), ("hadamard", 8192, 3, 8195),
    ("rademacher", 100, 5, 259), ("rademacher", 384, 67, 131), ("dense", 65, 5, 131), ("dense", 130, 3, 67),
)  # fmt: skip
SPAN = ("hadamard", 128, 3, (1 << 22) + 5)  # more codes than the column sums are held for at a time
Call = Callable[[], Iterator[torch.Tensor]]


def make_dictionary(kind: str, f: int, c: int, device: torch.device) -> cpk.Dictionary:
    """A dictionary of ±1 codes."""
    if kind == "hadamard":
        return cpk.HadamardDictionary(f, c, seed=5).to(device)
    random = cpk.RademacherDictionary(f, c, seed=5)
    return random.to(device) if kind == "rademacher" else cpk.DenseDictionary(random.to_dense()).to(device)


def calls(kind: str, f: int, n: int, c: int, backend: str, device: torch.device) -> Iterator[tuple[str, Call]]:
    """(name, call) of every function on one size; a call yields its results, the gradients among them."""
    dictionary = make_dictionary(kind, f, c, device)
    generator = torch.Generator().manual_seed(n * f)
    # Made on the CPU and moved: the device then runs little beside the kernels in question.
    h1, h2 = (torch.nn.functional.normalize(torch.randn(n, f, generator=generator)).to(device) for _ in range(2))
    options: dict[str, Any] = {"temperature": 4 / math.sqrt(f), "backend": backend}

    def loss(first=h1, second=h2, grad=True, **more) -> Iterator[torch.Tensor]:
        views = [view.detach().requires_grad_(grad) for view in (first, second)]
        value = cpk.cplearn_loss(*views, dictionary, **options, **more)
        yield value
        if grad:
            yield from torch.autograd.grad(value, views)

    def unary(name: str, dtype=torch.float32) -> Iterator[torch.Tensor]:
        h = h1.to(dtype, copy=True).requires_grad_()
        result = getattr(cpk, name)(h, dictionary, **options)
        upstream = torch.rand(result.shape, generator=generator).to(device)
        yield result
        yield from torch.autograd.grad(result, h, upstream)

    prior = torch.rand(c, generator=generator) + 0.5
    prior = (prior / prior.sum()).to(device)
    yield "loss, reverse KL", loss
    if c > 1 << 20:
        return
    yield "loss, cross entropy", lambda: loss(prior="cross_entropy", beta=0.5)
    yield "loss, reverse KL to given weights", lambda: loss(prior_probs=prior)
    yield "loss, cross entropy from given weights", lambda: loss(prior="cross_entropy", prior_probs=prior)
    yield "loss without gradient", lambda: loss(grad=False)
    yield "loss, bfloat16", lambda: loss(h1.bfloat16(), h2.bfloat16())
    yield "loss, columns apart", lambda: loss(h1.T.contiguous().T, h2.T.contiguous().T)
    for name in UNARY:
        yield name, lambda name=name: unary(name)
    yield "expected_code, float16", lambda: unary("expected_code", torch.float16)
    yield "assign", lambda: iter(cpk.assign(h1, dictionary, backend=backend))
    yield "assign, three each", lambda: iter(cpk.assign(h1, dictionary, top_k=3, backend=backend))


def main(arguments: list[str] | None = None) -> int:
    """Makes all calls; 1 where a result is not finite."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.sanitized_calls", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--most-features", type=int, default=8192, help="leave larger sizes out")
    given = parser.parse_args(arguments)
    sizes = [size for size in (*SIZES, SPAN) if size[1] <= given.most_features and (size is not SPAN or _on_gpu(given))]
    made = 0
    for kind, f, n, c in sizes:
        for name, call in calls(kind, f, n, c, given.backend, given.device):
            print(f"{kind} f={f} n={n} c={c}: {name}", flush=True)
            if not all(bool(result.detach().cpu().isfinite().all()) for result in call()):
                print("a result is not finite", flush=True)
                return 1
            made += 1
    print(f"all {made} calls made", flush=True)
    return 0


def _on_gpu(given: argparse.Namespace) -> bool:
    return given.device.type == "cuda"  # four million codes take other devices too long


if __name__ == "__main__":
    sys.exit(main())
