"""train/config.py: presets, checks and the comparison of stored configurations."""

import json

import pytest
from refusals import refused

from train.config import PRESETS, Config, differing_fields
from train.errors import InputError


def test_presets_fill_what_was_not_given(tiny_config, tmp_path):
    digits, cifar10 = tiny_config(), tiny_config(dataset="cifar10", data_dir=tmp_path, flip_prob=0.25)
    assert digits.flip_prob == 0 and digits.crop_scale == PRESETS["digits"]["crop_scale"]
    assert cifar10.flip_prob == 0.25 and cifar10.crop_scale == (0.08, 1.0)
    assert cifar10.jitter == (0.4, 0.4, 0.2, 0.1)
    assert (cifar10.jitter_prob, cifar10.grey_prob, cifar10.solarise_prob) == (0.8, 0.2, 0.2)


def test_a_resolved_configuration_has_no_open_preset(tiny_config):
    config = tiny_config()
    assert not [name for preset in PRESETS.values() for name in preset if getattr(config, name) is None]
    assert config.device in ("cpu", "cuda") and config.num_threads >= 1


@pytest.mark.parametrize("changes, words", [
    ({"epochs": 0}, ["--epochs", "0", "at least 1"]),
    ({"batch_size": 1}, ["--batch-size", "1", "at least 2"]),
    ({"lr": float("nan")}, ["--lr", "nan", "finite"]),
    ({"beta": -1.0}, ["--beta", "-1.0", "at least 0"]),
    ({"flip_prob": 1.5}, ["--flip-prob", "1.5", "between 0 and 1"]),
    ({"crop_scale": (0.9, 0.5)}, ["--crop-scale", "0.9", "smallest <= largest"]),
    ({"jitter": (0.4, 0.4, 0.4, 0.7)}, ["--jitter", "0.7", "at most 0.5"]),
    ({"warmup_epochs": 2}, ["--warmup-epochs", "2", "less than the 2 epochs"]),
    ({"dataset": "cifar10"}, ["--data-dir", "None", "folder that holds CIFAR-10"]),
    ({"device": "abacus"}, ["--device", "abacus", "cpu"]),
    ({"dictionary": "dense"}, ["--dictionary-file", "None", "--dictionary dense"]),
    ({"dictionary_file": "w.npy"}, ["--dictionary-file", "w.npy", "none with another"]),
    ({"num_prototypes": 0}, ["--num-prototypes", "0", "at least 1"]),
    ({"queue_length": -1}, ["--queue-length", "-1", "at least 0"]),
    ({"sinkhorn_epsilon": 0.0}, ["--sinkhorn-epsilon", "0.0", "above 0"]),
    ({"seed": 2**64}, ["--seed", "below 2^64"]),
    ({"seed": -1}, ["--seed", "-1", "at least 0"]),
    ({"num_test": 1}, ["--num-test", "1", "at least 2"]),
    ({"momentum": 1.0}, ["--momentum", "1.0", "below 1"]),
    ({"widths": ()}, ["--widths", "numbers of at least 1"]),
    ({"resume": True, "overwrite": True}, ["--resume", "--overwrite"]),
])  # fmt: skip
def test_bad_values_are_named(tiny_config, changes, words):
    refused(lambda: tiny_config(**changes), InputError, *words)


def test_from_dict_gives_the_same_back_and_refuses_other_fields(tiny_config, tmp_path):
    config = tiny_config(dataset="cifar10", data_dir=tmp_path, widths=(8, 16, 32, 64), beta=0.1)
    stored = config.to_dict()
    plain = json.loads(json.dumps(stored))
    assert plain == stored and Config.from_dict(plain) == config
    del stored["beta"]
    with pytest.raises(InputError, match="other fields .beta, new"):
        Config.from_dict(stored | {"new": 1})


def test_backbone_and_device_fill_widths_and_precision(tiny_config):
    assert tiny_config(widths=None).widths == (32, 64, 128)
    assert tiny_config(widths=None, backbone="resnet18").widths == (64, 128, 256, 512)
    assert tiny_config(device="cpu").precision == "float32"
    assert tiny_config(device="cpu", precision="bfloat16").precision == "bfloat16"


def test_differing_fields_names_both_values_and_ignores_places_and_threads(tiny_config, tmp_path):
    stored = tiny_config().to_dict()
    for of_no_matter in ({"output_dir": tmp_path / "other", "resume": True}, {"num_threads": 99}):
        assert differing_fields(stored, tiny_config(**of_no_matter)) == []
    (difference,) = differing_fields(stored, tiny_config(num_codes=128))
    assert all(word in difference for word in ("num_codes", "64", "128"))
    assert differing_fields({**stored, "gone": 1}, tiny_config())
