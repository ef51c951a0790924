"""train/backbones.py: shapes, depth, and which backbone a configuration gets."""

import pytest
import torch
from torch import nn

from train import backbones
from train.backbones import ResNet


@pytest.mark.parametrize("stem_stride, final", [(1, 8), (2, 4)])
def test_shapes(stem_stride, final):
    net = ResNet((8, 8, 16), stem_stride=stem_stride)
    images = torch.rand(3, 3, 32, 32)
    assert net(images).shape == (3, net.out_features) == (3, 16)
    assert net.blocks(net.stem(images)).shape == (3, 16, final, final)


def widths_on_the_longest_path(net):
    return [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]


def test_layers_with_the_head_and_the_papers_widths(tiny_config):
    """Counted with the linear layer of the head, the numbers in the names."""
    small = backbones.build(tiny_config(widths=None))
    assert widths_on_the_longest_path(small) == [32, 32, 32, 64, 64, 128, 128] and small.out_features == 128
    large = backbones.build(tiny_config(backbone="resnet18", widths=None))
    assert widths_on_the_longest_path(large) == [64] * 5 + [128] * 4 + [256] * 4 + [512] * 4
    assert large.out_features == 512
    # The CIFAR ResNet-18 of the literature has 11.17 million weights without its last layer.
    assert sum(p.numel() for p in large.parameters()) == 11_168_832


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("widths", [(8, 8, 16), (4, 10, 16)])
def test_every_weight_gets_a_gradient(widths, blocks):
    """Also at widths that are no multiple of 8, which crash the process in channels-last layout."""
    net = ResNet(widths, blocks)
    net(torch.rand(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
