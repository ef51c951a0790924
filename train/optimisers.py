"""The optimisers that can be chosen: PyTorch's Adam and SGD, and LARS from pytorch_optimizer."""

from __future__ import annotations

import torch
from torch import nn

from train.config import Config


def build(config: Config, method: nn.Module) -> torch.optim.Optimizer:
    """The optimiser that a resolved configuration names, over every parameter of the method."""
    parameters = method.parameters()
    if config.optimiser == "adam":
        return torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)
    if config.optimiser == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    from pytorch_optimizer import LARS  # an import of seconds, which only runs with LARS should pay for

    # Layers are scaled by trust; biases and batch norms are not, nor are they decayed (You et al., 2017).
    return LARS(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
