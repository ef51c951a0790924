"""The multilayer projector that Barlow Twins and SwAV put between features and embeddings."""

from __future__ import annotations

from torch import nn


def projector(in_features: int, hidden: int, hidden_layers: int, num_features: int) -> nn.Sequential:
    """`(n, in_features) -> (n, num_features)`: hidden layers of Linear, BatchNorm1d and ReLU, then a Linear."""
    layers: list[nn.Module] = []
    for _ in range(hidden_layers):
        layers += [nn.Linear(in_features, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
        in_features = hidden
    return nn.Sequential(*layers, nn.Linear(in_features, num_features, bias=False))
