"""train/checkpoint.py: everything comes back, nothing half-written stays, and strange files are refused."""

import pickle

import pytest
import torch
from refusals import refused
from running import make

from train import checkpoint, files
from train.checkpoint import Progress
from train.errors import InputError


def test_everything_comes_back(tiny_config, tmp_path):
    config, path = tiny_config(), tmp_path / "c.pt"
    method, optimiser = make(config)
    method.head(method.backbone(torch.rand(4, 3, 32, 32))).sum().backward()
    optimiser.step()
    progress = Progress(step=4, sums={"loss": 0.1 + 0.2}, history=[{"epoch": 1, "loss": 1 / 3}], seconds={"views": 0.7})
    checkpoint.save(path, config, progress, method, optimiser)
    other, other_optimiser = make(config, seed=1)
    assert not torch.equal(other.backbone.stem[0].weight, method.backbone.stem[0].weight)
    assert checkpoint.restore(path, config, other, other_optimiser) == progress
    assert all(torch.equal(a, b) for a, b in zip(method.state_dict().values(), other.state_dict().values()))
    a, b = optimiser.state_dict()["state"], other_optimiser.state_dict()["state"]
    assert a.keys() == b.keys() and all(torch.equal(a[k]["exp_avg_sq"], b[k]["exp_avg_sq"]) for k in a)


def test_another_configuration_is_named_field_by_field(tiny_config, tmp_path):
    config, path = tiny_config(), tmp_path / "c.pt"
    checkpoint.save(path, config, Progress(), *make(config))
    other = tiny_config(num_codes=128, seed=7)
    words = "num_codes (64 in the checkpoint, 128 now), seed (0 in the checkpoint, 7 now)"
    said = refused(lambda: checkpoint.restore(path, other, *make(other)), InputError, words)
    assert "lr" not in said.split("expected")[1]


def test_missing_damaged_and_foreign_files(tiny_config, tmp_path):
    config, path = tiny_config(), tmp_path / "c.pt"
    with pytest.raises(InputError, match="expected a checkpoint at .*c.pt"):
        checkpoint.restore(path, config, *make(config))
    checkpoint.save(path, config, Progress(), *make(config))
    cut, a_function = path.read_bytes()[:-500], pickle.dumps({"config": print}, protocol=2)
    for content in (b"", b"PK\x03\x04 not a checkpoint", a_function, cut):
        path.write_bytes(content)
        with pytest.raises(InputError, match="c.pt could not be read .*expected a checkpoint of this program"):
            checkpoint.restore(path, config, *make(config))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def half(temporary):
        temporary.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, half)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
