"""The data sets as tensors: scikit-learn's digits, or CIFAR-10 from a folder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from train.config import Config
from train.data import cifar10
from train.errors import InputError


@dataclass(frozen=True)
class Images:
    """A data set: images uint8 `(N, 3, 32, 32)` and labels int64 `(N,)` for training and test, and the class names."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: list[str]

    def to(self, device: str) -> Images:
        """The same with every tensor on `device`: even CIFAR-10 is only 180 MB, so a step never waits for a copy."""
        return Images(
            self.train_images.to(device),
            self.train_labels.to(device),
            self.test_images.to(device),
            self.test_labels.to(device),
            self.classes,
        )


def load(config: Config) -> Images:
    """The data set that a resolved configuration names, cut to its `num_train` and `num_test`.

    Raises InputError if the data are missing, damaged or too few for one batch.
    """
    if config.dataset == "digits":
        data = digits()
    else:
        if config.download:
            cifar10.download(config.data_dir)
        data = Images(*cifar10.load(config.data_dir, config.num_train, config.num_test), cifar10.CLASSES)
    data = Images(
        data.train_images[: config.num_train],
        data.train_labels[: config.num_train],
        data.test_images[: config.num_test],
        data.test_labels[: config.num_test],
        data.classes,
    )
    if len(data.train_images) < config.batch_size:
        raise InputError(
            f"--batch-size was {config.batch_size}, expected at most the {len(data.train_images)} "
            f"training images in use."
        )
    return data


def digits() -> Images:
    """scikit-learn's 1797 scanned digits, upscaled from 8x8 to 32x32: 1437 for training, 360 for test.

    The split is stratified and fixed; it depends on no seed of the run.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    small = torch.from_numpy(bunch.images).float()[:, None] * (255 / 16)
    large = torch.nn.functional.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
    images = large.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    train, test = train_test_split(np.arange(len(labels)), test_size=360, random_state=0, stratify=labels.numpy())
    return Images(images[train], labels[train], images[test], labels[test], [str(name) for name in bunch.target_names])
