"""Two random views of a whole batch on its device, with parameters drawn for each image."""

from __future__ import annotations

import kornia.augmentation as K
import torch
from torch import Tensor, nn

from train.config import Config

OF_THE_BATCH = ("order", "forward_input_shape")
"""kornia's parameters that are not one per image: in which order colours are changed, and a shape to undo crops by."""


class TwoViews(nn.Module):
    """Random views of a batch; only the second is ever solarised, as in the authors' recipe.

    All draws come from PyTorch's global generator, so `torch.manual_seed` before a call fixes both views. A part of a
    batch gets the views that it has in the whole one: parameters are drawn for all images, and those of the part used.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.views = nn.ModuleList([_view(config, 0.0), _view(config, config.solarise_prob)])

    @torch.no_grad()
    def forward(self, images: Tensor, first_row: int = 0, of: int | None = None) -> tuple[Tensor, Tensor]:
        """Images `(n, 3, s, s)`, uint8, to two views of that shape, float32 in [0, 1].

        The images are rows `first_row` to `first_row + n` of a batch of `of`; by default they are all of it.
        """
        x = images.float() / 255
        whole = (len(x) if of is None else of, *x.shape[1:])
        rows = slice(first_row, first_row + len(x))
        first, second = (_apply(view, x, whole, rows).clamp_(0, 1) for view in self.views)
        return first, second


def _apply(view: nn.Sequential, x: Tensor, whole: tuple[int, ...], rows: slice) -> Tensor:
    for step in view:
        drawn = step.forward_parameters(whole)
        x = step(x, params={name: value if name in OF_THE_BATCH else value[rows] for name, value in drawn.items()})
    return x


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
