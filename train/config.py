"""The configuration of a run: one dataclass that is the command line, `config.json` and what a checkpoint stores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
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
# cifar10: augmentation and schedule of the paper. beta = 0.25 is ahead of 1 in the first thousands of steps
# (docs/studies.md, d and e); the authors' published configuration, for many more, has 1.
_OF_DIGITS_AND_CIFAR10: dict[str, tuple[Any, Any]] = {
    "beta": (0.75, 0.25),
    "freeze_prototypes": (11, 100),
    "epochs": (20, 200),
    "batch_size": (128, 256),
    "lr": (5e-3, 2e-3),
    "warmup_epochs": (2, 10),
    "stem_stride": (4, 1),
    "crop_scale": ((0.8, 1.0), (0.08, 1.0)),
    "rotation": (8.0, 0.0),
    "jitter": ((0.2, 0.2, 0.0, 0.0), (0.4, 0.4, 0.2, 0.1)),
    "jitter_prob": (0.8, 0.8),
    "grey_prob": (0.0, 0.2),
    "flip_prob": (0.0, 0.5),
    "solarise_prob": (0.0, 0.2),
}
PRESETS = {
    dataset: {name: values[column] for name, values in _OF_DIGITS_AND_CIFAR10.items()}
    for column, dataset in enumerate(("digits", "cifar10"))
}

# What belongs to a backbone: the channels of its stages.
WIDTHS = {"resnet8": (32, 64, 128), "resnet18": (64, 128, 256, 512)}

# Fields that say where things are, not what is computed: a checkpoint may be resumed under other values of these.
PLACES = ("output_dir", "data_dir", "download", "tensorboard", "checkpoint_minutes", "resume", "overwrite")

# Fields that say how many share the work: another value is allowed, too, and changes roundings only.
SHARES = ("num_threads",)


@dataclass(frozen=True)
class Config:
    """Train an image encoder without labels, evaluate it and write a report.

    The run's numbers, pictures and checkpoint go to the output directory. With no option but that one, the encoder is
    trained on scikit-learn's handwritten digits, which need no download. Options shown with "preset" take a value
    that depends on the data set unless given; config.json records what was used.
    """

    output_dir: Path
    """Directory for config.json, metrics.jsonl, summary.json, embeddings.npz, checkpoint.pt and report.html."""

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

    method: Literal["cplearn", "barlow_twins", "swav"] = "cplearn"
    """Objective to train with; the groups of options below say which belong to one method only."""
    num_features: int = 128
    """Length f of an embedding, and of a code or prototype."""

    dictionary: Literal["hadamard", "rademacher", "dense"] = "hadamard"
    """cplearn: fixed codes from Hadamard blocks (fast), independent random signs (the paper's) or a file."""
    dictionary_file: Path | None = None
    """cplearn: .npy file with the (num_features, num_codes) matrix of the dense dictionary."""
    num_codes: int = 16384
    """cplearn: number c of codes in the dictionary."""
    embedding: Literal["l2", "tanh"] = "l2"
    """cplearn: last layer of the head: unit rows (the paper's) or tanh (its authors' code)."""
    beta: float | None = None
    """cplearn: weight of the invariance term (preset: digits .75, cifar10 .25)."""
    prior: Literal["reverse_kl", "cross_entropy"] = "reverse_kl"
    """cplearn: form of the term that spreads assignments evenly over the codes."""
    eps: float | None = None
    """cplearn: probability left to a wrong code at the optimum; sets the temperature (None: min(1e-8, 1/(100 c)))."""
    backend: str | None = None
    """cplearn: implementation of the loss, e.g. reference, torch or cpu (None: the fastest that runs here)."""

    projector_hidden: int = 512
    """barlow_twins, swav: width of the projector's hidden layers (two and one of them; cplearn has none)."""
    barlow_lambda: float = 0.0051
    """barlow_twins: weight of the squared correlations off the diagonal."""
    num_prototypes: int = 128
    """swav: number K of learned prototypes."""
    swav_temperature: float = 0.1
    """swav: temperature of the predictions."""
    sinkhorn_epsilon: float = 0.05
    """swav: temperature of the assignments."""
    queue_length: int = 0
    """swav: earlier embeddings of each view that join a batch's assignment; of use when a batch is smaller than K."""
    freeze_prototypes: int | None = None
    """swav: steps at the start in which the prototypes stand still (preset: digits 11, an epoch; cifar10 100)."""

    backbone: Literal["resnet8", "resnet18"] = "resnet8"
    """Encoder: ResNet-8 (three stages of one block) or the CIFAR ResNet-18 (four of two)."""
    widths: tuple[int, ...] | None = None
    """Channels of the stages; the last is the size of the features that are evaluated (resnet8: 32 64 128)."""
    stem_stride: int | None = None
    """Stride of the first convolution; 2 makes a step about four times cheaper (preset: digits 4, cifar10 1)."""

    epochs: int | None = None
    """Passes over the training images (preset: digits 20, cifar10 200)."""
    batch_size: int | None = None
    """Images per step over all processes, each seen in two views (preset: digits 128, cifar10 256)."""
    optimiser: Literal["adam", "sgd", "lars"] = "adam"
    """Optimiser; sgd and lars want a larger --lr than the presets, which are for adam."""
    lr: float | None = None
    """Peak learning rate (preset: digits .005, cifar10 .002)."""
    momentum: float = 0.9
    """Momentum of sgd and lars."""
    warmup_epochs: int | None = None
    """Epochs of linear warm-up before the cosine decay to zero (preset: digits 2, cifar10 10, at most a fifth)."""
    weight_decay: float = 0.0
    """L2 penalty that the optimiser adds to the gradient."""

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
    """Where to compute: cpu, cuda, cuda:1, or auto for cuda where there is one; processes take a GPU each."""
    num_threads: int | None = None
    """CPU threads of each process (None: as many as PyTorch takes by itself; under torchrun one)."""
    precision: Literal["float32", "bfloat16"] | None = None
    """Arithmetic of the encoder: bfloat16 under autocast or float32 (None: bfloat16 on GPUs, float32 on CPUs)."""
    compile: bool = False
    """Put the encoder through torch.compile: minutes at the start, faster steps after."""

    tensorboard: bool = False
    """Also write the metrics of every epoch as TensorBoard events, in the output directory's folder tensorboard."""
    checkpoint_minutes: float = 10.0
    """Save a checkpoint at least this often, besides that at the end of every epoch."""

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
        if self.widths is None:
            given["widths"] = WIDTHS[self.backbone]
        given["device"] = _resolve_device(self.device)
        if self.precision is None:
            given["precision"] = "float32" if given["device"] == "cpu" else "bfloat16"
        if self.num_threads is None:
            given["num_threads"] = torch.get_num_threads()
        config = dataclasses.replace(self, **given)
        config._check()
        return config

    def _check(self) -> None:
        unbounded = float("inf")
        requirements: list[tuple[str, Callable[[Any], bool], str]] = [
            (
                "num_codes num_features num_prototypes projector_hidden stem_stride epochs batch_size knn_neighbours "
                "num_threads num_train num_test",
                lambda count: count is None or count >= 1,
                "a whole number of at least 1",
            ),
            ("queue_length freeze_prototypes", lambda count: count >= 0, "a whole number of at least 0"),
            ("seed", lambda seed: 0 <= seed < 2**64, "a whole number of at least 0 and below 2^64"),
            ("num_test", lambda count: count is None or count >= 2, "at least 2, for a spread"),
            ("batch_size", lambda count: count >= 2, "at least 2, because batch norm needs a batch"),
            ("widths", lambda widths: len(widths) >= 1 and min(widths) >= 1, "numbers of at least 1"),
            (
                "dictionary_file",
                lambda file: (self.dictionary == "dense") == (file is not None),
                "a file with --dictionary dense, and none with another dictionary",
            ),
            ("warmup_epochs", lambda n: 0 <= n < self.epochs, f"at least 0 and less than the {self.epochs} epochs"),
            (
                "lr beta weight_decay rotation barlow_lambda",
                lambda value: 0 <= value < unbounded,
                "a finite number of at least 0",
            ),
            (
                "swav_temperature sinkhorn_epsilon checkpoint_minutes",
                lambda value: 0 < value < unbounded,
                "a finite number above 0",
            ),
            ("momentum", lambda value: 0 <= value < 1, "at least 0 and below 1"),
            ("jitter_prob grey_prob flip_prob solarise_prob", lambda p: 0 <= p <= 1, "a share between 0 and 1"),
            (
                "jitter",
                lambda strengths: all(0 <= value <= 1 for value in strengths) and strengths[3] <= 0.5,
                "four numbers between 0 and 1, the last at most 0.5",
            ),
            ("crop_scale", lambda s: 0 < s[0] <= s[1] <= 1, "two shares with 0 < smallest <= largest <= 1"),
            (
                "data_dir",
                lambda folder: self.dataset == "digits" or folder is not None,
                "the folder that holds CIFAR-10 (or where --download should put it)",
            ),
        ]
        for names, holds, expected in requirements:
            for name in names.split():
                if not holds(value := getattr(self, name)):
                    raise InputError(f"--{name.replace('_', '-')} was {value}, expected {expected}.")
        if self.resume and self.overwrite:
            raise InputError("--resume was true together with --overwrite, expected one of the two.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values only (str, int, float, bool, list, None), as written to config.json and to checkpoints."""

        def plain(value):
            return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value

        return {name: plain(value) for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Config:
        """The configuration that `to_dict` gave; InputError if fields are missing or unknown."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if fields.keys() != stored.keys():
            others = ", ".join(sorted(fields.keys() ^ stored.keys()))
            raise InputError(f"The stored configuration has other fields ({others}), expected one of this version.")
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
        for name, field in fields.items():
            if "Path" in str(field.type) and values[name] is not None:
                values[name] = Path(values[name])
        return cls(**values)


def differing_fields(stored: dict[str, Any], config: Config) -> list[str]:
    """Fields in which a stored configuration and this one compute different things, as 'name (stored, now)'.

    Differences of roundings alone, which come from the number of threads, do not count.
    """
    now = config.to_dict()
    names = [name for name in {**now, **stored} if name not in PLACES + SHARES]
    return [
        f"{name} ({stored.get(name)!r} in the checkpoint, {now.get(name)!r} now)"
        for name in names
        if stored.get(name) != now.get(name)
    ]


def _resolve_device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"--device was {name}, expected cpu, auto or an accelerator that runs here ({reason})."
        ) from None
    return str(device)
