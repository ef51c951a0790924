"""ResNets for 32x32 images: a 3x3 stem, stages of residual blocks, global average pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.config import Config

BLOCKS_PER_STAGE = {"resnet8": 1, "resnet18": 2}
"""Residual blocks in each stage of the backbones that `config.backbone` can name."""


def build(config: Config) -> ResNet:
    """The backbone that a resolved configuration names, with fresh weights from PyTorch's global generator."""
    return ResNet(config.widths, BLOCKS_PER_STAGE[config.backbone], config.stem_stride)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a skip connection; `(n, i, s, s) -> (n, o, s/stride, s/stride)`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.skip = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.skip = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


class ResNet(nn.Module):
    """Images `(n, 3, 32, 32)` to features `(n, widths[-1])`, in the input's dtype or that of autocast.

    Every stage but the first halves the image. With the linear layer that a head adds, three stages of one block have
    eight weighted layers on the longest path, four stages of two blocks eighteen.
    """

    def __init__(
        self, widths: tuple[int, ...] = (32, 64, 128), blocks_per_stage: int = 1, stem_stride: int = 1
    ) -> None:
        super().__init__()
        self.out_features = widths[-1]
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, stem_stride, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        blocks, channels = [], widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks_per_stage):
                blocks.append(ResidualBlock(channels, width, 2 if stage > 0 and block == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        # Channels-last made forward and backward about 10 % faster on an AVX2 CPU, and on GPUs it suits tensor cores.
        # With widths such as 4 or 10, though, PyTorch 2.13's backward on an AVX2 CPU then writes past its buffers.
        aligned = all(width % 8 == 0 for width in widths)
        self.memory_format = torch.channels_last if aligned else torch.contiguous_format
        self.to(memory_format=self.memory_format)

    def forward(self, images: Tensor) -> Tensor:
        x = images.contiguous(memory_format=self.memory_format)
        return self.blocks(self.stem(x)).mean(dim=(2, 3))
