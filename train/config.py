"""The configuration of a run: one dataclass that is the command line, `config.json` and what a checkpoint stores."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from train.errors import InputError

# What suits one data set and not another. A field left at None on the command line takes its value from here.
# digits: strokes carry the class, so no mirror image and only mild crops; the scans are grey, so hue, saturation and
# greyscale do nothing; they are 8x8 upscaled to 32x32, so a stride of 4 in the first convolution loses nothing. With
# beta = 1 and a few hundred steps, the embeddings settle on little more than one code per class (perplexity 9.8 to 13.3
# of the assignments in five trials of 12 epochs); 0.75 gave 62 and 0.5 gave 155, at the same k-NN accuracy. These were
# read off the test images, one seed each: beta is tuned to them.
# cifar10: the recipe of the paper.
PRESETS: dict[str, dict[str, Any]] = {
    "digits": dict(beta=0.75, epochs=20, batch_size=128, lr=5e-3, warmup_epochs=2, stem_stride=4, crop_scale=(0.8, 1.0),
                   rotation=8.0, jitter=(0.2, 0.2, 0.0, 0.0), jitter_prob=0.8, grey_prob=0.0, flip_prob=0.0,
                   solarise_prob=0.0),
    "cifar10": dict(beta=1.0, epochs=200, batch_size=256, lr=2e-3, warmup_epochs=10, stem_stride=1,
                    crop_scale=(0.08, 1.0), rotation=0.0, jitter=(0.4, 0.4, 0.2, 0.1), jitter_prob=0.8, grey_prob=0.2,
                    flip_prob=0.5, solarise_prob=0.2),
}

# Fields that say where things are, not what is computed: a checkpoint may be resumed under other values of these.
PLACES = ("output_dir", "data_dir", "download", "resume", "overwrite")


@dataclass(frozen=True)
class Config:
    """Train an image encoder without labels, evaluate it and write a report.

    The run's numbers, pictures and checkpoint go to the output directory. With no option but that one, the encoder is
    trained on scikit-learn's handwritten digits, which need no download. Options shown with "preset" take a value
    that depends on the data set unless given; config.json records what was used.
    """

    output_dir: Path
    """Directory for config.json, metrics.jsonl, summary.json, checkpoint.pt and report.html; made if missing."""

    dataset: Literal["digits", "cifar10"] = "digits"
    """Images to train on; cifar10 needs --data-dir."""
    data_dir: Path | None = None
    """Folder with CIFAR-10: binary files, python pickles, or train/CLASS/*.jpg and test/CLASS/*.jpg."""
    download: bool = False
    """Fetch CIFAR-10 (170 MB, checked against its MD5) into --data-dir unless it is there already."""
    num_train: int | None = None
    """Use only the first so many training images (class folders: the first of a fixed shuffle)."""
    num_test: int | None = None
    """Use only the first so many test images."""

    method: Literal["cplearn"] = "cplearn"
    """Objective to train with."""
    dictionary: Literal["hadamard", "rademacher"] = "hadamard"
    """Family of the fixed codes: Hadamard blocks (fast) or independent random signs (the paper's)."""
    num_codes: int = 16384
    """Number c of codes in the dictionary."""
    num_features: int = 128
    """Length f of an embedding and of a code."""
    embedding: Literal["l2", "tanh"] = "l2"
    """Last layer of the head: unit rows (the paper's) or tanh (its authors' code)."""
    beta: float | None = None
    """Weight of the invariance term (preset: digits .75, cifar10 1)."""
    prior: Literal["reverse_kl", "cross_entropy"] = "reverse_kl"
    """Form of the term that spreads assignments evenly over the codes."""
    eps: float | None = None
    """Probability left to each wrong code at the optimum; sets the temperature (None: min(1e-8, 1/(100 c)))."""
    backend: str | None = None
    """Implementation of the loss, e.g. reference, torch or cpu (None: the fastest that runs here)."""

    widths: tuple[int, int, int] = (32, 64, 128)
    """Channels of the three stages of the ResNet-8; the last is the size of the features that are evaluated."""
    stem_stride: int | None = None
    """Stride of the first convolution; 2 makes a step about four times cheaper (preset: digits 4, cifar10 1)."""

    epochs: int | None = None
    """Passes over the training images (preset: digits 20, cifar10 200)."""
    batch_size: int | None = None
    """Images per step, each seen in two views (preset: digits 128, cifar10 256)."""
    lr: float | None = None
    """Peak learning rate of Adam (preset: digits .005, cifar10 .002)."""
    warmup_epochs: int | None = None
    """Epochs of linear warm-up before the cosine decay to zero (preset: digits 2, cifar10 10, at most a fifth)."""
    weight_decay: float = 0.0
    """L2 penalty that Adam adds to the gradient."""

    crop_scale: tuple[float, float] | None = None
    """Area of a random crop as a share of the image, smallest and largest (preset: digits .8 1, cifar10 .08 1)."""
    rotation: float | None = None
    """Largest random rotation in degrees, 0 for none (preset: digits 8, cifar10 0)."""
    jitter: tuple[float, float, float, float] | None = None
    """Strength of brightness, contrast, saturation and hue changes (preset: digits .2 .2 0 0, cifar10 .4 .4 .2 .1)."""
    jitter_prob: float | None = None
    """Share of the images whose colours are changed (preset: .8)."""
    grey_prob: float | None = None
    """Share of the images turned grey (preset: digits 0, cifar10 .2)."""
    flip_prob: float | None = None
    """Share of the images mirrored left to right (preset: digits 0, cifar10 .5)."""
    solarise_prob: float | None = None
    """Share of the images solarised, second view only (preset: digits 0, cifar10 .2)."""

    knn_neighbours: int = 20
    """Neighbours that vote in the k-NN evaluation."""
    seed: int = 0
    """Seed of the weights, the order of the images, the views and the dictionary."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1, or auto for cuda where there is one."""
    num_threads: int | None = None
    """CPU threads (None: as many as PyTorch takes by itself)."""

    resume: bool = False
    """Go on from the checkpoint in the output directory; the numbers are those of a run that never stopped."""
    overwrite: bool = False
    """Start again in an output directory that already holds a run."""

    def resolved(self) -> Config:
        """The configuration with every preset, the device and the thread count filled in and every value checked.

        Raises InputError naming the option, what was given and what was expected.
        """
        preset = dict(PRESETS[self.dataset])
        epochs = self.epochs if self.epochs is not None else preset["epochs"]
        # A short trial should not spend all its steps warming up.
        preset["warmup_epochs"] = min(preset["warmup_epochs"], max(epochs, 0) // 5)
        given = {name: value for name, value in preset.items() if getattr(self, name) is None}
        given["device"] = _resolve_device(self.device)
        if self.num_threads is None:
            given["num_threads"] = torch.get_num_threads()
        config = dataclasses.replace(self, **given)
        config._check()
        return config

    def _check(self) -> None:
        for name in ("num_codes", "num_features", "stem_stride", "epochs", "batch_size", "knn_neighbours",
                     "num_threads", "num_train", "num_test"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "a whole number of at least 1")
        _require(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2, because batch norm needs a batch")
        _require(min(self.widths) >= 1, "widths", self.widths, "three numbers of at least 1")
        _require(0 <= self.warmup_epochs < self.epochs, "warmup_epochs", self.warmup_epochs,
                 f"at least 0 and less than the {self.epochs} epochs")
        for name in ("lr", "beta", "weight_decay", "rotation"):
            value = getattr(self, name)
            _require(0 <= value < float("inf"), name, value, "a finite number of at least 0")
        for name in ("jitter_prob", "grey_prob", "flip_prob", "solarise_prob"):
            value = getattr(self, name)
            _require(0 <= value <= 1, name, value, "a share between 0 and 1")
        _require(all(0 <= value <= 1 for value in self.jitter) and self.jitter[3] <= 0.5, "jitter", self.jitter,
                 "four numbers between 0 and 1, the last at most 0.5")
        low, high = self.crop_scale
        _require(0 < low <= high <= 1, "crop_scale", self.crop_scale, "two shares with 0 < smallest <= largest <= 1")
        _require(self.dataset == "digits" or self.data_dir is not None, "data_dir", self.data_dir,
                 "the folder that holds CIFAR-10 (or where --download should put it)")
        _require(not (self.resume and self.overwrite), "resume", "true together with --overwrite", "one of the two")

    def to_dict(self) -> dict[str, Any]:
        """Plain values only (str, int, float, bool, list, None), as written to config.json and to checkpoints."""
        def plain(value):
            return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        return {name: plain(value) for name, value in dataclasses.asdict(self).items()}


def differing_fields(stored: dict[str, Any], config: Config) -> list[str]:
    """Fields in which a stored configuration and this one compute different things, as 'name (stored, now)'."""
    now = config.to_dict()
    names = [name for name in {**now, **stored} if name not in PLACES]
    return [f"{name} ({stored.get(name)!r} in the checkpoint, {now.get(name)!r} now)"
            for name in names if stored.get(name) != now.get(name)]


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise InputError(f"--{name.replace('_', '-')} was {value}, expected {expected}.")


def _resolve_device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device was {name}, expected cpu, auto or an accelerator that runs here "
                         f"({reason}).") from None
    return str(device)
