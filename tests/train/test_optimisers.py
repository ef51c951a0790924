"""train/optimisers.py: each name gives its optimiser with the options that the configuration has for it."""

import pytest
import torch
from torch import nn

from train import optimisers


@pytest.mark.parametrize("name, kind, keys", [
    ("adam", "Adam", ("lr", "weight_decay")),
    ("sgd", "SGD", ("lr", "weight_decay", "momentum")),
    ("lars", "LARS", ("lr", "weight_decay", "momentum")),
])  # fmt: skip
def test_names_and_options(tiny_config, name, kind, keys):
    config = tiny_config(optimiser=name, lr=0.25, weight_decay=0.125, momentum=0.5)
    optimiser = optimisers.build(config, nn.Linear(3, 2))
    assert type(optimiser).__name__ == kind
    (group,) = optimiser.param_groups
    assert len(group["params"]) == 2 and all(group[key] == getattr(config, key) for key in keys)


def test_sgd_steps_as_written_out(tiny_config):
    layer = nn.Linear(3, 1, bias=False)
    optimiser = optimisers.build(tiny_config(optimiser="sgd", lr=0.1, momentum=0.5), layer)
    weight, expected, velocity = layer.weight.detach().clone(), layer.weight.detach().clone(), 0.0
    for _ in range(3):
        optimiser.zero_grad()
        layer(torch.tensor([[1.0, 2.0, 3.0]])).sum().backward()
        optimiser.step()
        velocity = 0.5 * velocity + torch.tensor([[1.0, 2.0, 3.0]])
        expected = expected - 0.1 * velocity
    assert torch.allclose(layer.weight, expected) and not torch.allclose(layer.weight, weight)


def test_lars_scales_a_layer_by_trust_and_not_a_bias(tiny_config):
    """Without momentum the weight moves by lr · 0.001 · ‖w‖ whatever its gradient's size, the bias by lr · grad."""
    moves = []
    for size in (1.0, 1000.0):
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        before, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
        optimiser = optimisers.build(tiny_config(optimiser="lars", lr=0.5, momentum=0.0), layer)
        (size * layer(torch.ones(1, 3)).sum()).backward()
        optimiser.step()
        moves.append(float((layer.weight.detach() - before).norm() / before.norm()))
        assert torch.allclose(layer.bias, bias - 0.5 * size)
    assert moves == [pytest.approx(0.5e-3, rel=1e-3)] * 2
