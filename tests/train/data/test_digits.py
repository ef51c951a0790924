"""train/data/__init__.py: the digits and the cuts."""

import torch

from train import data


def test_digits_split_is_fixed_stratified_and_disjoint():
    digits = data.digits()
    assert digits.train_images.shape == (1437, 3, 32, 32) and digits.test_images.shape == (360, 3, 32, 32)
    assert digits.train_images.dtype == torch.uint8 and digits.train_labels.dtype == torch.int64
    counts = digits.test_labels.bincount()
    assert len(counts) == 10 and counts.min() >= 34 and counts.max() <= 38
    train_rows = {row.numpy().tobytes() for row in digits.train_images}
    assert not any(row.numpy().tobytes() in train_rows for row in digits.test_images)
    assert torch.equal(digits.train_images, data.digits().train_images)


def test_digits_fill_the_range_in_three_equal_channels():
    images = data.digits().train_images
    assert images.min() == 0 and images.max() > 230
    assert torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])


def test_counts_cut_from_the_start(tiny_config):
    part, whole = data.load(tiny_config()), data.digits()
    assert torch.equal(part.train_images, whole.train_images[:96])
    assert torch.equal(part.test_labels, whole.test_labels[:60])
