"""The program that runs under compute-sanitizer: every function, forward and backward, on small odd sizes.

It names each call before it makes it and ends with the line `all N calls made`, without which a clean report says
little. Values are the tests' concern; here they only have to be finite.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator

import torch

import cplearn_kernels as cpk

# (dictionary, f, n, c). Hadamard: every kind of block, f short of its block, a last block that is not full; blocks
# below 64 go the way of independent codes. n = 67: more rows than a tile has. Last: more codes than the column sums are
# held for at a time, for the loss alone.
SIZES = (
    ("hadamard", 24, 3, 77), ("hadamard", 100, 5, 259), ("hadamard", 128, 67, 259), ("hadamard", 512, 5, 1027),
    ("hadamard", 2048, 3, 4099), ("hadamard", 4096, 3, 4099), ("hadamard", 8192, 3, 8195),
    ("rademacher", 100, 5, 259), ("rademacher", 384, 67, 131), ("dense", 65, 5, 131), ("dense", 130, 3, 67),
    ("hadamard", 128, 3, (1 << 22) + 5),
)  # fmt: skip
UNARY = ("projector_softmax", "projector_logsumexp", "expected_code", "mean_assignment")


def call_all(
    kind: str, f: int, n: int, c: int, backend: str, device: torch.device
) -> Iterator[tuple[str, list[torch.Tensor]]]:
    """Makes every call on one size: yields (name, no results) before each and (name, results and gradients) after."""
    generator = torch.Generator().manual_seed(n * f)
    random = (cpk.HadamardDictionary if kind == "hadamard" else cpk.RademacherDictionary)(f, c, seed=5)
    dictionary = (cpk.DenseDictionary(random.to_dense()) if kind == "dense" else random).to(device)
    # Made on the CPU and moved: the device then runs little beside the kernels in question.
    h1, h2 = (torch.nn.functional.normalize(torch.randn(n, f, generator=generator)).to(device) for _ in range(2))
    prior = torch.rand(c, generator=generator).add(0.5).to(device)
    prior /= prior.sum()
    options = {"temperature": 4 / math.sqrt(f), "backend": backend}
    apart = [h.T.contiguous().T for h in (h1, h2)]
    losses = {
        "loss, reverse KL": ((h1, h2), {}), "loss, cross entropy": ((h1, h2), {"prior": "cross_entropy", "beta": 0.5}),
        "loss, reverse KL to given weights": ((h1, h2), {"prior_probs": prior}),
        "loss, cross entropy from given weights": ((h1, h2), {"prior": "cross_entropy", "prior_probs": prior}),
        "loss, bfloat16": ((h1.bfloat16(), h2.bfloat16()), {}), "loss, columns apart": (apart, {}),
    }  # fmt: skip
    for name, (views, more) in list(losses.items())[: 1 if c > 1 << 20 else None]:
        yield name, []
        views = [view.detach().requires_grad_() for view in views]
        value = cpk.cplearn_loss(*views, dictionary, **options, **more)
        yield name, [value, *torch.autograd.grad(value, views)]
    if c > 1 << 20:
        return
    yield "loss without gradient", []
    yield "loss without gradient", [cpk.cplearn_loss(h1, h2, dictionary, **options)]
    for name, dtype in [(name, torch.float32) for name in UNARY] + [("expected_code", torch.float16)]:
        yield f"{name}, {dtype}", []
        h = h1.to(dtype, copy=True).requires_grad_()
        result = getattr(cpk, name)(h, dictionary, **options)
        upstream = torch.rand(result.shape, generator=generator).to(device)
        yield f"{name}, {dtype}", [result, *torch.autograd.grad(result, h, upstream)]
    for top_k in (1, 3):
        yield f"assign, {top_k} each", []
        yield f"assign, {top_k} each", list(cpk.assign(h1, dictionary, top_k=top_k, backend=backend))


def main(arguments: list[str] | None = None) -> int:
    """Makes all calls; 1 where a result is not finite."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.sanitized_calls", description=__doc__)
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--most-features", type=int, default=8192, help="leave larger sizes out")
    given = parser.parse_args(arguments)
    made = 0
    for size in [size for size in SIZES if size[1] <= given.most_features]:
        for name, results in call_all(*size, given.backend, given.device):
            if not results:
                print("{} f={} n={} c={}: {}".format(*size, name), flush=True)
            elif not all(bool(result.detach().cpu().isfinite().all()) for result in results):
                print("a result is not finite", flush=True)
                return 1
            made += bool(results)
    print(f"all {made} calls made", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
