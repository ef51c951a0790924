"""What a GPU backend is held to on a GPU, whichever it is: real sizes, graphs, streams, the compiler, memory."""

from __future__ import annotations

import math

import pytest
import torch
from cases import loss_and_gradients, same_bits
from oracle import SETTINGS, LossOracle, check_loss, make_case, run_loss

import cplearn_kernels as cpk

DEVICE = "cuda"


def dictionary_of(kind, f, c):
    return {"hadamard": cpk.HadamardDictionary, "rademacher": cpk.RademacherDictionary}[kind](f, c, seed=11)


def views_of(n, f, dtype=torch.float32, seed=0):
    generator = torch.Generator(device=DEVICE).manual_seed(seed)
    first = torch.nn.functional.normalize(torch.randn(n, f, generator=generator, device=DEVICE))
    second = torch.nn.functional.normalize(first + 0.05 * torch.randn(n, f, generator=generator, device=DEVICE))
    return first.to(dtype), second.to(dtype)


class GpuChecks:
    """Tests for a subclass that names its `backend`."""

    backend: str

    @pytest.mark.parametrize("kind, f, c, n", [
        ("hadamard", 2048, 16384, 64), ("hadamard", 2048, 16385, 257), ("hadamard", 128, 16384, 256),
        ("hadamard", 384, 16385, 64), ("hadamard", 1024, 9000, 128), ("hadamard", 4096, 8192, 33),
        ("hadamard", 8192, 9000, 5), ("rademacher", 128, 16385, 256), ("rademacher", 384, 16384, 64),
        ("rademacher", 2048, 16384, 129),
    ])  # fmt: skip
    def test_loss_and_gradient_at_real_sizes(self, kind, f, c, n, conformance):
        """The tensor cores round as they like: the tolerances hold, or this says by how much they do not."""
        dictionary = dictionary_of(kind, f, c)
        for position, regime in enumerate(("l2", "tanh")):
            case = make_case(dictionary, n, regime)
            oracle = LossOracle(dictionary, case)
            for setting in (SETTINGS[(position * 5 + f + n) % 16], SETTINGS[(position * 3 + c + 7) % 16]):
                answer = run_loss(dictionary, case, setting, self.backend, DEVICE)
                check_loss(conformance, self.backend, oracle, setting, *answer)

    def test_many_codes_agree_with_the_chunked_backend(self):
        """c = 2^22 + 5: two spans. Beyond what the oracle can hold, so against backend "torch" on the same GPU."""
        dictionary = cpk.HadamardDictionary(128, (1 << 22) + 5, seed=3)
        views = views_of(32, 128)
        temperature = cpk.default_temperature(128, dictionary.num_codes)
        mine = loss_and_gradients(*views, dictionary, temperature=temperature, backend=self.backend)
        other = loss_and_gradients(*views, dictionary, temperature=temperature, backend="torch")
        assert abs(mine[0] - other[0]) <= 2e-6 * abs(other[0])
        for one, two in zip(mine[1:], other[1:], strict=True):
            assert float((one - two).norm()) <= 2e-5 * max(
                float(two.norm()), 1e-2 * math.sqrt(128 / 32) / (2 * temperature)
            )

    @pytest.mark.parametrize("kind, f", [("hadamard", 2048), ("hadamard", 128), ("rademacher", 384)])
    def test_same_bits_every_time(self, kind, f):
        dictionary, views = dictionary_of(kind, f, 20000), views_of(100, f)
        runs = [loss_and_gradients(*views, dictionary, backend=self.backend) for _ in range(3)]
        for other in runs[1:]:
            assert all(same_bits(one, two) for one, two in zip(runs[0], other, strict=True))

    @pytest.mark.parametrize("kind, f", [("hadamard", 2048), ("rademacher", 384)])
    def test_a_cuda_graph_replays_on_new_data(self, kind, f):
        dictionary = dictionary_of(kind, f, 16384)
        static = [view.clone().requires_grad_() for view in views_of(64, f)]

        def step():
            loss = cpk.cplearn_loss(*static, dictionary, temperature=0.5, backend=self.backend)
            return loss, *torch.autograd.grad(loss, static)

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        fresh = views_of(64, f, seed=1)
        with torch.no_grad():
            for buffer, view in zip(static, fresh, strict=True):
                buffer.copy_(view)
        graph.replay()
        expected = loss_and_gradients(*fresh, dictionary, temperature=0.5, backend=self.backend)
        assert all(same_bits(one.detach(), two) for one, two in zip(captured, expected, strict=True))

    def test_another_stream(self):
        dictionary, views = dictionary_of("hadamard", 256, 5000), views_of(64, 256)
        expected = loss_and_gradients(*views, dictionary, backend=self.backend)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            other = loss_and_gradients(*views, dictionary, backend=self.backend)
        torch.cuda.current_stream().wait_stream(stream)
        assert all(same_bits(one, two) for one, two in zip(expected, other, strict=True))

    def test_under_the_compiler_and_autocast(self):
        dictionary, (h1, h2) = dictionary_of("hadamard", 256, 5000), views_of(64, 256)

        def loss(first, second):
            return cpk.cplearn_loss(first * 1.0, second * 1.0, dictionary, temperature=0.5, backend=self.backend)

        expected = loss(h1, h2)
        assert torch.allclose(torch.compile(loss, fullgraph=True)(h1, h2), expected, rtol=1e-6)
        with torch.autocast("cuda", torch.bfloat16):
            assert torch.allclose(loss(h1, h2), expected, rtol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision_operators(self, dtype):
        dictionary = dictionary_of("hadamard", 256, 500)
        h = views_of(5, 256, dtype)[0].requires_grad_()
        for function in ("projector_softmax", "projector_logsumexp", "expected_code", "mean_assignment"):
            result = getattr(cpk, function)(h, dictionary, temperature=0.5, backend=self.backend)
            assert result.dtype == torch.float32
            (gradient,) = torch.autograd.grad(result.square().sum(), h)
            assert gradient.dtype == dtype and torch.isfinite(gradient).all(), function

    def test_peak_memory_does_not_grow_with_the_number_of_codes(self):
        peaks = {}
        views = views_of(256, 256)
        for log2 in (18, 20):
            dictionary = cpk.HadamardDictionary(256, 1 << log2)
            loss_and_gradients(*views, dictionary, backend=self.backend)
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            loss_and_gradients(*views, dictionary, backend=self.backend)
            peaks[log2] = torch.cuda.max_memory_allocated() - before
        # An n x c array would be 0.5 GB and 2 GB; the column sums of one span take 2 x 2 x 4 bytes per code.
        assert peaks[20] < 64e6 and peaks[20] - peaks[18] < 24e6, peaks

    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
    def test_another_device_than_the_current_one(self):
        dictionary, views = dictionary_of("hadamard", 256, 5000), views_of(64, 256)
        expected = loss_and_gradients(*views, dictionary, backend=self.backend)
        other = loss_and_gradients(*[view.to("cuda:1") for view in views], dictionary, backend=self.backend)
        assert all(same_bits(one.cpu(), two.cpu()) for one, two in zip(expected, other, strict=True))
