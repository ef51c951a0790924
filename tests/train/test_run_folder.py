"""train/run_folder.py: one run at a time in a folder, and no run where its checkpoints have no room."""

import shutil
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import pytest
from running import build

from train import run_folder
from train.errors import InputError


def test_a_folder_belongs_to_one_run_at_a_time(tiny_config):
    config = tiny_config()
    with run_folder.claim(config):
        with pytest.raises(InputError, match="is in use by another run, expected another folder"):
            run_folder.claim(config)
    run_folder.claim(config).close()


def test_a_run_that_was_not_mentioned_is_refused_and_frees_the_folder(tiny_config):
    run_folder.claim(tiny_config()).close()
    (tiny_config().output_dir / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(InputError, match="already holds a run, expected --resume"):
        run_folder.claim(tiny_config())
    run_folder.claim(tiny_config(resume=True)).close()
    run_folder.claim(tiny_config(overwrite=True)).close()


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


def test_of_runs_that_start_together_all_but_one_are_told_that_the_folder_is_in_use(tiny_config):
    barrier, config = threading.Barrier(4), tiny_config()

    def claim(_):
        barrier.wait()
        return run_folder.claim(config)

    with ThreadPoolExecutor(4) as pool:
        claims = [pool.submit(claim, i) for i in range(4)]
    errors = [claim.exception() for claim in claims if claim.exception() is not None]
    assert len(errors) == 3 and all("in use by another run" in str(error) for error in errors), errors
    assert all(isinstance(error, InputError) for error in errors)
    (winner,) = (claim.result() for claim in claims if claim.exception() is None)
    winner.close()
