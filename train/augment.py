"""Two random views of a whole batch on its device, with parameters drawn for each image."""

from __future__ import annotations

import kornia.augmentation as K
import torch
from torch import Tensor, nn

from train.config import Config


class TwoViews(nn.Module):
    """Random views of a batch; only the second is ever solarised, as in the authors' recipe.

    All draws come from PyTorch's global generator, so `torch.manual_seed` before a call fixes both views.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.views = nn.ModuleList([_view(config, 0.0), _view(config, config.solarise_prob)])

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images `(n, 3, s, s)`, uint8, to two views of that shape, float32 in [0, 1]."""
        x = images.float() / 255
        first, second = (view(x).clamp_(0, 1) for view in self.views)
        return first, second


def _view(config: Config, solarise_prob: float) -> nn.Sequential:
    # Options at zero are left out, not run without effect: half of the time of the digits' views is saved.
    steps: list[nn.Module] = []
    if config.rotation > 0:
        steps.append(K.RandomRotation(config.rotation, p=1.0))
    if config.crop_scale != (1.0, 1.0):
        # "resample" cuts and scales all images in one grid_sample; the default mode loops over the images.
        steps.append(K.RandomResizedCrop((32, 32), scale=config.crop_scale, cropping_mode="resample"))
    if config.flip_prob > 0:
        steps.append(K.RandomHorizontalFlip(p=config.flip_prob))
    if config.jitter_prob > 0 and any(config.jitter):
        steps.append(K.ColorJitter(*config.jitter, p=config.jitter_prob))
    if config.grey_prob > 0:
        steps.append(K.RandomGrayscale(p=config.grey_prob))
    if solarise_prob > 0:
        # Exactly the usual solarisation: everything above one half is inverted, nothing is added first.
        steps.append(K.RandomSolarize(thresholds=(0.5, 0.5), additions=(0.0, 0.0), p=solarise_prob))
    return nn.Sequential(*steps)
