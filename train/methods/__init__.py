"""The objectives that can be trained: each is one class in one file with the same few members.

A method is an `nn.Module` made from (config, backbone) with

    backbone(images)  (n, 3, 32, 32) -> (n, backbone.out_features), what the evaluation judges
    head(features)    (n, backbone.out_features) -> (n, f), the embeddings that the loss sees
    loss(h1, h2)      two (n, f) embeddings -> (0-d loss, {name of a term: detached 0-d tensor})
    assign(h)         (n, f) -> (n,) int64, the cluster of each embedding
    num_clusters      how many different clusters `assign` can return
    lines()           {label: level} of constants that belong on every plot of this loss
"""

from __future__ import annotations

from torch import nn

from train.config import Config
from train.methods.barlow_twins import BarlowTwins
from train.methods.cplearn import CPLearn
from train.methods.swav import SwAV

METHODS: dict[str, type[nn.Module]] = {"cplearn": CPLearn, "barlow_twins": BarlowTwins, "swav": SwAV}


def build(config: Config, backbone: nn.Module) -> nn.Module:
    """The method that `config.method` names, around the given backbone."""
    return METHODS[config.method](config, backbone)
