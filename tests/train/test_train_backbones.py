"""train/backbones.py: shapes, depth, and what the stride of the stem saves."""

import pytest
import torch
from torch import nn

from train.backbones import ResNet8


@pytest.mark.parametrize("stem_stride, final", [(1, 8), (2, 4)])
def test_shapes(stem_stride, final):
    net = ResNet8((8, 8, 16), stem_stride)
    images = torch.rand(3, 3, 32, 32)
    assert net(images).shape == (3, net.out_features) == (3, 16)
    assert net.blocks(net.stem(images)).shape == (3, 16, final, final)


def test_eight_layers_with_the_head_and_the_papers_widths():
    net = ResNet8()
    on_the_longest_path = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(on_the_longest_path) + 1 == 8
    assert [m.out_channels for m in on_the_longest_path] == [32, 32, 32, 64, 64, 128, 128]


@pytest.mark.parametrize("widths", [(8, 8, 16), (4, 10, 16)])
def test_every_weight_gets_a_gradient(widths):
    """Also at widths that are no multiple of 8, which crash the process in channels-last layout."""
    net = ResNet8(widths)
    net(torch.rand(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
