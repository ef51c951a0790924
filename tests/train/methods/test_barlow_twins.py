"""train/methods/barlow_twins.py: the loss against its sums written out, and embeddings whose loss is known."""

import pytest
import torch
from running import build

N, F = 64, 16


@pytest.fixture
def method(tiny_config):
    return build(tiny_config(method="barlow_twins", barlow_lambda=0.01))


def standardised(seed=0, n=N):
    h = torch.randn(n, F, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (h - h.mean(0)) / h.std(0, unbiased=False)


def test_the_loss_is_the_sum_over_the_correlation_matrix(method):
    h1, h2 = standardised(0), standardised(1)
    expected = 0.0
    for k in range(F):
        for m in range(F):
            c = float((h1[:, k] * h2[:, m]).mean())
            expected += (1 - c) ** 2 if k == m else 0.01 * c**2
    loss, terms = method.loss(h1, h2)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert loss.item() == pytest.approx(terms["invariance"].item() + 0.01 * terms["redundancy"].item(), rel=1e-12)
    aligned, opposed = method.loss(h1, h1)[0].item(), method.loss(h1, -h1)[0].item()
    assert opposed > aligned + 3.9 * F, "a swapped sign goes unnoticed"


def test_known_ends(method):
    """Equal and uncorrelated coordinates give 0; one coordinate copied to all gives λ f (f - 1)."""
    white = torch.linalg.qr(standardised())[0]
    white = white - white.mean(0)
    white = torch.linalg.qr(white)[0] * N**0.5
    assert method.loss(white, white)[0].item() == pytest.approx(0, abs=1e-12)
    copied = standardised()[:, :1].expand(-1, F)
    assert method.loss(copied, copied)[0].item() == pytest.approx(0.01 * F * (F - 1))
    (level,) = method.lines().values()
    zeros = torch.zeros(N, F, dtype=torch.float64)
    assert method.loss(zeros, white)[0].item() == pytest.approx(level) == F


def test_the_head_standardises_over_the_batch_and_clusters_are_coordinates(method):
    method.train()
    h = method.head(torch.randn(N, 16))
    assert h.shape == (N, F)
    assert h.mean(0).abs().max() < 1e-5 and (h.var(0, unbiased=False) - 1).abs().max() < 1e-2
    assert method.assign(torch.eye(F)[[3, 0, 15]]).tolist() == [3, 0, 15] and method.num_clusters == F


def test_gradients_reach_backbone_and_projector(method):
    h = method.head(method.backbone(torch.rand(8, 3, 32, 32)))
    method.loss(h, h.flip(0))[0].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.parameters())
