"""train/data/augment.py: parameters per image, equal draws from equal seeds, the share of images that steps touch."""

import pytest
import torch

from train.data.augment import TwoViews

PLAIN = dict(
    crop_scale=(1.0, 1.0), rotation=0.0, jitter=(0.0, 0.0, 0.0, 0.0), grey_prob=0.0, flip_prob=0.0, solarise_prob=0.0
)


@pytest.fixture
def image():
    """One image (3, 32, 32) with smooth gradients of different direction in each channel."""
    ramp = torch.linspace(0, 220, 32)
    return torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32), 255 - ramp.expand(32, 32)]).to(torch.uint8)


def views(config, images, seed=0):
    torch.manual_seed(seed)
    return TwoViews(config)(images)


@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
def test_copies_of_one_image_get_views_of_their_own(tiny_config, tmp_path, image, dataset):
    config = tiny_config(dataset=dataset, data_dir=tmp_path)
    first, second = views(config, image.expand(16, -1, -1, -1))
    assert first.shape == second.shape == (16, 3, 32, 32) and first.dtype == torch.float32
    assert min(first.min(), second.min()) >= 0 and max(first.max(), second.max()) <= 1
    everything = torch.cat([first, second]).flatten(1)
    assert torch.pdist(everything).min() > 1e-3


def test_the_seed_decides(tiny_config, tmp_path, image):
    config = tiny_config(dataset="cifar10", data_dir=tmp_path)
    images = image.expand(8, -1, -1, -1)
    assert all(torch.equal(a, b) for a, b in zip(views(config, images, 1), views(config, images, 1)))
    assert not torch.equal(views(config, images, 1)[0], views(config, images, 2)[0])


@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
@pytest.mark.parametrize("n, first, last", [(12, 0, 5), (12, 5, 12), (12, 7, 8), (4, 2, 4)])
def test_a_part_of_a_batch_gets_the_views_of_the_whole_one(tiny_config, tmp_path, dataset, n, first, last):
    """To the last bit. Four is also the number of ways to change colours, whose order is not one per image."""
    config = tiny_config(dataset=dataset, data_dir=tmp_path)
    images = torch.randint(0, 256, (n, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    whole = views(config, images)
    torch.manual_seed(0)
    part = TwoViews(config)(images[first:last], first, n)
    assert all(torch.equal(a, b[first:last]) for a, b in zip(part, whole))
    torch.manual_seed(0)
    alone = TwoViews(config)(images[first:last])
    assert first == 0 or not torch.equal(alone[0], part[0]), "as if the part were the first rows of the batch"


def test_nothing_switched_on_changes_nothing(tiny_config, image):
    first, second = views(tiny_config(**PLAIN), image[None])
    assert torch.equal(first[0], image.float() / 255) and torch.equal(second, first)


def share(changed, of):
    """Share of the rows that `changed` marks, with four standard errors of room at n = 2000."""
    return abs(float(changed.float().mean()) - of) < 0.045


def test_flips_grey_and_solarisation_touch_their_share_and_the_right_view(tiny_config, image):
    images = image.expand(2000, -1, -1, -1)
    plain = image.float() / 255

    first, second = views(tiny_config(**PLAIN | {"flip_prob": 0.5}), images)
    flipped = (first - plain.flip(-1)).abs().amax((1, 2, 3)) < 1e-6
    unchanged = (first - plain).abs().amax((1, 2, 3)) < 1e-6
    assert torch.all(flipped ^ unchanged) and share(flipped, 0.5)
    assert not torch.equal(first, second)

    first, _ = views(tiny_config(**PLAIN | {"grey_prob": 0.2}), images)
    assert share((first[:, 0] - first[:, 2]).abs().amax((1, 2)) < 1e-6, 0.2)

    first, second = views(tiny_config(**PLAIN | {"solarise_prob": 0.2}), images)
    solarised = torch.where(plain >= 0.5, 1 - plain, plain)
    assert torch.equal(first, plain.expand_as(first))
    assert share((second - solarised).abs().amax((1, 2, 3)) < 1e-6, 0.2)


def test_jitter_touches_its_share(tiny_config, image):
    config = tiny_config(**PLAIN | {"jitter": (0.4, 0.4, 0.2, 0.1), "jitter_prob": 0.8})
    first, _ = views(config, image.expand(2000, -1, -1, -1))
    assert share((first - image.float() / 255).abs().amax((1, 2, 3)) > 1e-3, 0.8)


def test_small_crops_show_less_of_the_image(tiny_config, image):
    """The red channel is a ramp, so its range in a view is the share of the width that the crop kept."""

    def kept(scale):
        first, _ = views(tiny_config(**PLAIN | {"crop_scale": scale}), image.expand(500, -1, -1, -1))
        return float((first[:, 0].amax((1, 2)) - first[:, 0].amin((1, 2))).mean()) / (220 / 255)

    assert kept((0.08, 0.081)) == pytest.approx(0.08**0.5, rel=0.15)
    assert kept((0.49, 0.5)) == pytest.approx(0.5**0.5, rel=0.15)
