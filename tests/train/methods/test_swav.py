"""train/methods/swav.py: Sinkhorn's marginals, the loss written out, the queue, and prototypes that stand still."""

import math

import pytest
import running
import torch

from train.methods.swav import cosines, sinkhorn

F, K = 16, 12


def build(tiny_config, **changes):
    return running.build(tiny_config(**{"method": "swav", "num_prototypes": K, "freeze_prototypes": 0} | changes))


def rows(seed, n=24):
    h = torch.randn(n, F, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(h, dim=1)


def test_sinkhorn_evens_the_prototypes_and_keeps_rows():
    """Skewed scores: without Sinkhorn most samples would go to prototype 0."""
    scores = torch.rand(60, K, generator=torch.Generator().manual_seed(0)) * 0.3
    scores[:, 0] += 0.5
    q = sinkhorn(scores, 0.05, iterations=50)
    assert torch.allclose(q.sum(1), torch.ones(60), atol=1e-5)
    assert torch.allclose(q.sum(0), torch.full((K,), 60 / K), rtol=1e-3)
    plain = torch.softmax(scores / 0.05, 1).sum(0)
    assert plain[0] > 3 * 60 / K, "the case is not skewed, so it shows nothing"


def test_sinkhorn_is_the_plain_scaling_where_that_does_not_overflow():
    scores = rows(0) @ torch.nn.functional.normalize(rows(1, K), dim=1).T
    q = (scores.double() / 0.05).exp()
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(0, keepdim=True) * K
        q /= q.sum(1, keepdim=True) * len(q)
    assert torch.allclose(sinkhorn(scores, 0.05).double(), q * len(q), atol=1e-5)
    assert torch.isfinite(sinkhorn(scores, 1e-4)).all()


def test_the_loss_is_the_swapped_cross_entropy(tiny_config):
    method = build(tiny_config).eval()
    h1, h2 = rows(0), rows(1)
    s1, s2 = (h @ torch.nn.functional.normalize(method.prototypes, dim=1).T for h in (h1, h2))
    swapped = torch.nn.functional.cross_entropy
    expected = (swapped(s2 / 0.1, sinkhorn(s1.detach(), 0.05)) + swapped(s1 / 0.1, sinkhorn(s2.detach(), 0.05))) / 2
    loss, terms = method.loss(h1, h2)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    straight = (swapped(s1 / 0.1, sinkhorn(s1.detach(), 0.05)) + swapped(s2 / 0.1, sinkhorn(s2.detach(), 0.05))) / 2
    assert abs(loss.item() - straight.item()) > 0.01, "views that are not swapped go unnoticed"
    assert 0 < terms["assignment_entropy"] < math.log(K)


def test_uniform_predictions_cost_the_line(tiny_config):
    method = build(tiny_config)
    with torch.no_grad():
        method.prototypes.copy_(method.prototypes[:1].expand(K, -1))
    (level,) = method.lines().values()
    assert method.loss(rows(0), rows(1))[0].item() == pytest.approx(level, rel=1e-6) == pytest.approx(math.log(K))


def test_the_queue_is_used_when_full_and_moves_only_in_training(tiny_config):
    method, plain = build(tiny_config, queue_length=48), build(tiny_config)
    first = method.loss(rows(0), rows(1))[0]
    assert first.item() == plain.loss(rows(0), rows(1))[0].item() and int(method.queued) == 24
    assert torch.equal(method.queue[0, :24], rows(0)) and torch.equal(method.queue[1, :24], rows(1))
    method.loss(rows(2), rows(3))
    assert int(method.queued) == 48 and torch.equal(method.queue[1, :24], rows(3))
    assert torch.equal(method.queue[1, 24:], rows(1))

    everything = torch.cat([method.queue[0], rows(4)])
    expected = sinkhorn(cosines(everything, method.prototypes), 0.05)[48:]
    before = method.queue.clone()
    method.eval()
    loss = method.loss(rows(4), rows(5))[0]
    assert torch.equal(method.queue, before) and int(method.steps) == 2
    assert torch.equal(method._assignments(0, cosines(rows(4), method.prototypes)), expected)
    assert loss.item() != plain.eval().loss(rows(4), rows(5))[0].item()


def test_prototypes_stand_still_for_the_first_steps(tiny_config):
    method = build(tiny_config, freeze_prototypes=2)
    for step in range(3):
        method.zero_grad()
        h = rows(step).requires_grad_()
        method.loss(h, rows(9))[0].backward()
        assert h.grad.abs().sum() > 0
        assert (method.prototypes.grad is None) == (step < 2), step


def test_prototypes_start_at_unit_length(tiny_config):
    """The normalisation divides gradients by the length: at length √f a step would turn them 16 times less."""
    method = build(tiny_config)
    assert torch.allclose(method.prototypes.norm(dim=1), torch.ones(K), atol=1e-6)


def test_assign_and_head(tiny_config):
    method = build(tiny_config)
    assert method.assign(torch.nn.functional.normalize(method.prototypes.detach()[[3, 11, 0]])).tolist() == [3, 11, 0]
    h = method.head(torch.randn(8, 16))
    assert h.shape == (8, F) and torch.allclose(h.norm(dim=1), torch.ones(8), atol=1e-5) and method.num_clusters == K
