"""train/data/cifar10.py: three layouts, damaged files, pickles that want more than data, the download."""

import hashlib
import pickle
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from train.data import cifar10
from train.errors import InputError

PER_FILE = 20


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    """Files of 20 images; everything else about the layouts is as published."""
    monkeypatch.setattr(cifar10, "IMAGES_PER_FILE", PER_FILE)


@pytest.fixture
def arrays():
    """Pixels (6 files, 20, 3072) and labels (6, 20); the last file is the test split, and every class is in it."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (6, PER_FILE, 3072), dtype=np.uint8), np.tile(np.arange(PER_FILE) % 10, (6, 1))


NAMES = [*cifar10.TRAIN_FILES, *cifar10.TEST_FILES]


def write_binary(folder, arrays):
    folder.mkdir(parents=True)
    for name, pixels, labels in zip(NAMES, *arrays):
        np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1).tofile(folder / f"{name}.bin")
    return folder


def write_pickle(folder, arrays):
    folder.mkdir(parents=True)
    for name, pixels, labels in zip(NAMES, *arrays):
        batch = {b"data": pixels, b"labels": labels.tolist(), b"batch_label": b"one of six"}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return folder


def write_folders(folder, arrays):
    pixels, labels = arrays
    for split, parts in (("train", range(5)), ("test", [5])):
        for name in cifar10.CLASSES:
            (folder / split / name).mkdir(parents=True)
        for part in parts:
            for row in range(PER_FILE):
                image = Image.fromarray(pixels[part, row].reshape(3, 32, 32).transpose(1, 2, 0))
                image.save(folder / split / cifar10.CLASSES[labels[part, row]] / f"{part}_{row:02}.png")
    return folder


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(
    "write, usual", [(write_binary, "cifar-10-batches-bin"), (write_pickle, "cifar-10-batches-py")]
)
def test_files_give_the_images_back_in_order(tmp_path, arrays, write, usual, inside):
    write(tmp_path / "data" / usual if inside else tmp_path / "data", arrays)
    train_x, train_y, test_x, test_y = cifar10.load(tmp_path / "data")
    pixels, labels = arrays
    assert train_x.dtype == torch.uint8 and train_y.dtype == torch.int64
    assert np.array_equal(train_x.numpy().reshape(-1, 3072), pixels[:5].reshape(-1, 3072))
    assert np.array_equal(train_y.numpy(), labels[:5].ravel())
    assert np.array_equal(test_x.numpy().reshape(-1, 3072), pixels[5]) and np.array_equal(test_y.numpy(), labels[5])


def test_folders_give_every_image_with_its_label(tmp_path, arrays):
    train_x, train_y, _, test_y = cifar10.load(write_folders(tmp_path / "data", arrays))
    pixels, labels = arrays
    expected = {pixels[part, row].tobytes(): labels[part, row] for part in range(5) for row in range(PER_FILE)}
    assert {x.numpy().tobytes(): int(y) for x, y in zip(train_x, train_y)} == expected
    assert sorted(test_y.tolist()) == sorted(labels[5].tolist())


def test_the_first_images_of_folders_are_not_all_of_one_class(tmp_path, arrays):
    _, labels, *_ = cifar10.load(write_folders(tmp_path / "data", arrays), num_train=20)
    assert len(labels) == 20 and len(labels.unique()) >= 5


def test_a_part_does_not_need_the_files_behind_it(tmp_path, arrays):
    folder = write_binary(tmp_path / "data", arrays)
    (folder / "data_batch_3.bin").unlink()
    assert len(cifar10.load(folder, num_train=2 * PER_FILE)[0]) == 2 * PER_FILE
    with pytest.raises(InputError, match="data_batch_3.bin is missing, expected 61460 bytes"):
        cifar10.load(folder, num_train=2 * PER_FILE + 1)


class Payload:
    """Pickles to a call that makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, arrays):
    folder, trace = write_pickle(tmp_path / "data", arrays), tmp_path / "trace"
    content = pickle.dumps({b"data": Payload(trace)})
    (folder / "data_batch_1").write_bytes(content)
    with pytest.raises(InputError, match="data_batch_1 could not be read .*open"):
        cifar10.load(folder)
    assert not trace.exists()
    pickle.loads(content)[b"data"].close()
    assert trace.exists(), "the payload is harmless, so refusing it proves nothing"


def cut(name, kept):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:kept])


def changed(change):
    def act(folder):
        batch = pickle.loads((folder / "data_batch_1").read_bytes())
        change(batch)
        (folder / "data_batch_1").write_bytes(pickle.dumps(batch))

    return act


def emptied(folder):
    shutil.rmtree(folder / "test" / "frog")
    (folder / "test" / "frog").mkdir()


def oversized(folder):
    Image.new("RGB", (40, 30)).save(folder / "train/cat/0_03.png")


DAMAGE = [
    (write_binary, cut("data_batch_4.bin", -1), "data_batch_4.bin has 61459 bytes, expected 61460 bytes"),
    (write_binary, cut("data_batch_4.bin", -3073), "data_batch_4.bin has 58387 bytes, expected 61460 bytes"),
    (write_pickle, changed(lambda b: b.pop(b"data")), "b'data' as uint8"),
    (write_pickle, changed(lambda b: b.update({b"data": b[b"data"][:, :-1]})), "shape"),
    (write_pickle, changed(lambda b: b.update({b"data": b[b"data"].astype(float)})), "uint8"),
    (write_pickle, changed(lambda b: b[b"labels"].pop()), "20 integers"),
    (write_pickle, changed(lambda b: b.update({b"labels": [10] * PER_FILE})), "a label 10, expected .* from 0 to 9"),
    (write_folders, emptied, "frog holds no .jpg or .png file, expected the images of class frog"),
    (write_folders, cut("train/cat/0_03.png", 1000), "0_03.png could not be read"),
    (write_folders, oversized, "0_03.png is 40x30, expected a 32x32 image"),
]
CUT_PICKLE = "test_batch could not be read .*expected a whole CIFAR-10 pickle"
DAMAGE += [(write_pickle, cut("test_batch", kept), CUT_PICKLE) for kept in (0, 1, 100, -1, -2000)]


@pytest.mark.parametrize("write, damage, words", DAMAGE)
def test_damage_is_said(tmp_path, arrays, write, damage, words):
    folder = write(tmp_path / "data", arrays)
    damage(folder)
    with pytest.raises(InputError, match=words):
        cifar10.load(folder)


def test_missing_and_foreign_folders(tmp_path):
    with pytest.raises(InputError, match="nowhere, expected an existing folder"):
        cifar10.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="expected it to hold data_batch_1.bin"):
        cifar10.load(tmp_path)


def archive(tmp_path, arrays):
    write_pickle(tmp_path / "source" / "cifar-10-batches-py", arrays)
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as file:
        file.add(tmp_path / "source" / "cifar-10-batches-py", "cifar-10-batches-py")
    return tmp_path / "cifar.tar.gz"


def test_download_checks_unpacks_and_is_not_repeated(tmp_path, arrays, monkeypatch):
    path = archive(tmp_path, arrays)
    monkeypatch.setattr(cifar10, "URL", path.as_uri())
    with pytest.raises(InputError, match=f"expected {cifar10.MD5}"):
        cifar10.download(tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []

    monkeypatch.setattr(cifar10, "MD5", hashlib.md5(path.read_bytes()).hexdigest())
    cifar10.download(tmp_path / "data")
    assert len(cifar10.load(tmp_path / "data")[0]) == 5 * PER_FILE
    path.unlink()
    cifar10.download(tmp_path / "data")


def test_download_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "URL", "http://127.0.0.1:9/cifar.tar.gz")
    with pytest.raises(InputError, match="could not be reached .*expected a network connection"):
        cifar10.download(tmp_path / "data")
