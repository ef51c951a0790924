"""CIFAR-10 from disk in its three usual layouts, and its download."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from train.errors import InputError

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
IMAGES_PER_FILE = 10_000
PIXELS = 3 * 32 * 32
TRAIN_FILES = [f"data_batch_{i}" for i in range(1, 6)]
TEST_FILES = ["test_batch"]

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"

Split = tuple[Tensor, Tensor]


def load(data_dir: Path, num_train: int | None = None, num_test: int | None = None) -> tuple[Tensor, ...]:
    """Training images, training labels, test images, test labels; uint8 `(N, 3, 32, 32)` and int64 `(N,)`.

    `data_dir` is the folder with the files or the one above it. The counts only save reading; the caller cuts.
    Raises InputError naming the folder or file and what was expected of it.
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise InputError(
            f"--data-dir was {data_dir}, expected an existing folder with CIFAR-10 (--download fetches it there)."
        )
    if (layout := _find(data_dir)) is not None:
        read, folder = layout
        return *read(folder, "train", num_train), *read(folder, "test", num_test)
    raise InputError(
        f"--data-dir was {data_dir}, expected it to hold data_batch_1.bin (binary layout), data_batch_1 "
        f"(python layout) or train/CLASS/*.jpg, or a folder cifar-10-batches-bin or cifar-10-batches-py."
    )


def _find(data_dir: Path):
    """The reader and the folder of the first layout found in `data_dir` or in its usual subfolder, else None."""
    for read, usual_name, marker in (
        (_read_binary, "cifar-10-batches-bin", "data_batch_1.bin"),
        (_read_pickle, "cifar-10-batches-py", "data_batch_1"),
        (_read_folders, "CIFAR-10-images", "train"),
    ):
        for folder in (data_dir, data_dir / usual_name):
            if (folder / marker).exists():
                return read, folder
    return None


def _file_names(split: str, count: int | None) -> list[str]:
    names = TRAIN_FILES if split == "train" else TEST_FILES
    return names if count is None else names[: -(-count // IMAGES_PER_FILE)]


def _read_binary(folder: Path, split: str, count: int | None) -> Split:
    """Records of one label byte and 3072 pixel bytes, red, green and blue planes."""
    parts = []
    for name in _file_names(split, count):
        path, expected = folder / f"{name}.bin", IMAGES_PER_FILE * (1 + PIXELS)
        size = path.stat().st_size if path.is_file() else None
        if size != expected:
            found = "is missing" if size is None else f"has {size} bytes"
            raise InputError(f"{path} {found}, expected {expected} bytes ({IMAGES_PER_FILE} records of {1 + PIXELS}).")
        parts.append(np.fromfile(path, dtype=np.uint8).reshape(IMAGES_PER_FILE, 1 + PIXELS))
    table = np.concatenate(parts)
    return _tensors(folder, table[:, 1:], table[:, 0])


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles arrays, bytes, numbers and containers only: a pickle may otherwise run any code it likes."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str):
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def load_plain_pickle(path: Path) -> object:
    """The object in a pickle file that holds nothing but arrays, bytes, strings, numbers and containers.

    Raises InputError if the file is cut short, is no pickle, or asks for any other class or function.
    """
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="bytes").load()
    # A damaged pickle can fail anywhere in the interpreter of its opcodes, hence the long list.
    except (
        pickle.UnpicklingError,
        EOFError,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        ImportError,
        OverflowError,
        MemoryError,
    ) as error:
        raise InputError(
            f"{path} could not be read ({error or type(error).__name__}), expected a whole CIFAR-10 "
            f"pickle of arrays, bytes and lists."
        ) from None


def _read_pickle(folder: Path, split: str, count: int | None) -> Split:
    """Dictionaries with b'data', uint8 (10000, 3072), and b'labels', a list."""
    pixels, labels = [], []
    for name in _file_names(split, count):
        path = folder / name
        batch = load_plain_pickle(path)
        data = batch.get(b"data") if isinstance(batch, dict) else None
        shape = (IMAGES_PER_FILE, PIXELS)
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != shape:
            raise InputError(f"{path} holds no such array, expected b'data' as uint8 of shape {shape}.")
        names = batch.get(b"labels")
        if not isinstance(names, list) or len(names) != IMAGES_PER_FILE or not all(type(n) is int for n in names):
            raise InputError(f"{path} holds no such list, expected b'labels' as {IMAGES_PER_FILE} integers.")
        pixels.append(data)
        labels += names
    return _tensors(folder, np.concatenate(pixels), np.array(labels))


def _read_folders(folder: Path, split: str, count: int | None) -> Split:
    """One folder per class with image files; read in a fixed shuffled order, so that a part has every class."""
    from PIL import Image, UnidentifiedImageError

    files = []
    for label, name in enumerate(CLASSES):
        found = sorted(p for p in (folder / split / name).glob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if not found:
            raise InputError(
                f"{folder / split / name} holds no .jpg or .png file, expected the images of class {name}."
            )
        files += [(path, label) for path in found]
    order = np.random.default_rng(0).permutation(len(files))[:count]
    pixels = np.empty((len(order), 3, 32, 32), dtype=np.uint8)
    for row, index in enumerate(tqdm(order, desc=f"reading {split} images", unit="file", leave=False, disable=None)):
        path = files[index][0]
        try:
            with Image.open(path) as image:
                size, array = image.size, np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise InputError(f"{path} could not be read ({error}), expected a whole 32x32 image.") from None
        if size != (32, 32):
            raise InputError(f"{path} is {size[0]}x{size[1]}, expected a 32x32 image.")
        pixels[row] = array.transpose(2, 0, 1)
    return _tensors(folder, pixels, np.array([files[index][1] for index in order]))


def _tensors(folder: Path, pixels: np.ndarray, labels: np.ndarray) -> Split:
    if labels.min() < 0 or labels.max() >= len(CLASSES):
        raise InputError(
            f"{folder} holds a label {labels.max() if labels.min() >= 0 else labels.min()}, "
            f"expected labels from 0 to {len(CLASSES) - 1}."
        )
    images = torch.from_numpy(np.ascontiguousarray(pixels).reshape(-1, 3, 32, 32))
    return images, torch.from_numpy(labels.astype(np.int64))


def download(data_dir: Path) -> None:
    """Fetch the python layout into `data_dir`, with a progress bar and a checksum, unless `load` finds data there.

    Raises InputError if there is no network, the checksum differs or the folder cannot be written.
    """
    data_dir = Path(data_dir)
    if _find(data_dir) is not None:
        return
    partial = data_dir / (Path(URL).name + ".part")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(URL, timeout=30) as response, partial.open("wb") as file:
            digest, total = hashlib.md5(usedforsecurity=False), response.headers.get("Content-Length")
            with tqdm(total=total and int(total), unit="B", unit_scale=True, desc="CIFAR-10", disable=None) as bar:
                while block := response.read(1 << 20):
                    file.write(block)
                    digest.update(block)
                    bar.update(len(block))
        if digest.hexdigest() != MD5:
            raise InputError(f"The download of {URL} has MD5 {digest.hexdigest()}, expected {MD5}.")
        with tarfile.open(partial) as archive:
            archive.extractall(data_dir, filter="data")
    except urllib.error.URLError as error:
        raise InputError(
            f"{URL} could not be reached ({error.reason}), expected a network connection, or CIFAR-10 "
            f"already unpacked in --data-dir."
        ) from None
    except (OSError, tarfile.TarError) as error:
        raise InputError(
            f"The download of {URL} to {data_dir} failed ({error}), expected a steady connection and a "
            f"folder that can be written."
        ) from None
    finally:
        partial.unlink(missing_ok=True)
