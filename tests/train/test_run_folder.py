"""train/run_folder.py: one run at a time in a folder, and no run where its checkpoints have no room."""

import shutil
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import pytest
from running import build

from train import run_folder
from train.errors import InputError


def test_a_disk_without_room_is_refused(tiny_config, monkeypatch):
    config = tiny_config()
    config.output_dir.mkdir()
    method = build(config)
    weights = sum(p.numel() for p in method.parameters()) * 4
    run_folder.check_room(config, method)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, run_folder.SPARE_BYTES + 5 * weights))
    with pytest.raises(InputError, match="MB of free disk, expected at least the"):
        run_folder.check_room(config, method)


def test_a_folder_belongs_to_one_run_at_a_time_also_when_they_start_together(tiny_config):
    barrier, config = threading.Barrier(4), tiny_config()

    def claim(_):
        barrier.wait()
        return run_folder.claim(config)

    with ThreadPoolExecutor(4) as pool:
        claims = [pool.submit(claim, i) for i in range(4)]
    errors = [claim.exception() for claim in claims]
    (winner,) = (claim.result() for claim, error in zip(claims, errors, strict=True) if error is None)
    refused = [error for error in errors if isinstance(error, InputError) and "in use by another run" in str(error)]
    assert len(refused) == 3, errors
    winner.close()
    run_folder.claim(config).close()
