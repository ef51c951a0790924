"""train/studies.py: shared runs, command lines that mean what they should, failures, interruption, and the JSON."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import tyro

from experiments.studies import __main__ as studies
from experiments.studies import runs
from experiments.studies.definitions import BUDGET, STUDIES, Arm, Study
from train.config import Config
from train.errors import InputError

SUMMARY = {"linear_probe": 0.5, "seconds": 3.0, "loss_fraction_of_step": 0.1, "num_features": 128}


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def small(monkeypatch):
    """One study of two arms, with runs that only write what a run leaves behind; an arm named bad fails."""
    arms = (Arm("a", {"num_codes": 8}), Arm("b", {"num_codes": 16}, seeds=1))
    monkeypatch.setitem(STUDIES, "small", Study("Which?", "a", arms))

    def command(run, threads):
        summary = SUMMARY | {"linear_probe": run.seed + run.options["num_codes"] / 100}
        script = f"""import json, pathlib
folder = pathlib.Path({str(run.folder)!r})
(folder / "config.json").write_text({json.dumps(run.config().to_dict())!r})
(folder / "summary.json").write_text({json.dumps(summary)!r})
with (folder / "times").open("a") as file: file.write("x")
"""
        return [sys.executable, "-c", script]

    monkeypatch.setattr(runs.Run, "command", command)
    return monkeypatch


def options(tmp_path, data, *more):
    return [
        "small",
        "--data-dir",
        str(data),
        "--output-dir",
        str(tmp_path / "runs"),
        "--results",
        str(tmp_path / "results"),
        "--seeds",
        "5",
        "6",
        *more,
    ]


def test_every_command_line_means_the_run_s_configuration(tmp_path, data):
    common = {"dataset": "cifar10", "data_dir": data, "crop_scale": (0.2, 1.0), "compile": False, "tensorboard": True}
    planned = [run for study in runs.plan(list(STUDIES), [0, 7], tmp_path, common).values() for run in study]
    assert len(planned) > 30
    for run in planned:
        words = run.command(3)
        assert words[1:3] == ["-m", "train"]
        assert tyro.cli(
            Config, args=words[3:], config=(tyro.conf.FlagCreatePairsOff,)
        ).resolved() == dataclasses.replace(run.config(), num_threads=3)


def test_arms_with_the_same_options_share_a_folder_and_no_others_do(tmp_path, data):
    plan = runs.plan(list(STUDIES), [0, 1, 2], tmp_path, {"dataset": "cifar10", "data_dir": data})
    by_folder = {}
    for run in (run for study in plan.values() for run in study):
        by_folder.setdefault(run.folder, []).append(run)
    for same in by_folder.values():
        assert len({json.dumps(run.config().to_dict()) for run in same}) == 1
    assert len({json.dumps({**same[0].config().to_dict(), "output_dir": ""}) for same in by_folder.values()}) == len(
        by_folder
    )
    assert max(map(len, by_folder.values())) == 4, "cplearn with 16384 codes belongs to four studies"


def test_a_study_from_runs_to_json(tmp_path, data, small, capsys):
    assert studies.main(options(tmp_path, data, "--jobs", "2", "--data-name", "made up")) == 0
    found = json.loads((tmp_path / "results" / "small.json").read_text())
    assert [[run["seed"] for run in arm["runs"]] for arm in found["arms"]] == [[5, 6], [5]]
    assert [run["linear_probe"] for run in found["arms"][0]["runs"]] == [5.08, 6.08]
    assert found["arms"][1]["runs"][0]["linear_probe"] == 5.16 and found["data"] == "made up"
    assert not {"seconds", "loss_fraction_of_step"} & found["arms"][0]["runs"][0].keys()
    assert found["command"].startswith("python -m experiments.studies small --data-dir") and found["machine"]["cpu"]
    assert found["steps"] == 6 * (20_000 // 128)
    assert found["common_options"]["epochs"] == 6 and "data_dir" not in found["common_options"]
    # Nothing is trained twice.
    assert studies.main(options(tmp_path, data)) == 0
    assert all(path.read_text() == "x" for path in (tmp_path / "runs").glob("*/times"))


def test_a_failed_run_is_named_and_leaves_no_json(tmp_path, data, small, capsys):
    plain = runs.Run.command
    small.setattr(
        runs.Run,
        "command",
        lambda run, threads: (
            plain(run, threads)
            if run.seed == 5
            else [sys.executable, "-c", "import sys; print('error: no luck.'); sys.exit(2)"]
        ),
    )
    assert studies.main(options(tmp_path, data)) == 1
    captured = capsys.readouterr()
    assert "exit status 2: error: no luck." in captured.out and "1 of its runs did not finish" in captured.err
    assert not (tmp_path / "results" / "small.json").exists()
    small.setattr(runs.Run, "command", plain)
    assert studies.main(options(tmp_path, data)) == 0
    assert (tmp_path / "results" / "small.json").exists()


def test_a_folder_with_another_run_is_refused(tmp_path, data, small, capsys):
    assert studies.main(options(tmp_path, data)) == 0
    path = next((tmp_path / "runs").glob("*/config.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "lr": 0.5}))
    assert studies.main(options(tmp_path, data)) == 2
    assert "holds a run with other options, expected the same lr (0.5" in capsys.readouterr().err
    path.write_text(json.dumps({**json.loads(path.read_text()), "lr": 0.002, "num_threads": 99}))
    assert studies.main(options(tmp_path, data)) == 0


def test_stopping_asks_the_runs_to_save_and_the_rest_not_to_start(tmp_path, data, small):
    """The child says whether it was asked; a signal to this process is what Ctrl-C sends."""
    script = (
        "import signal, sys, time, pathlib\n"
        "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path(sys.argv[1]).write_text('asked'), sys.exit(143)))\n"
        "pathlib.Path(sys.argv[2]).write_text('')\ntime.sleep(60)"
    )
    small.setattr(
        runs.Run,
        "command",
        lambda run, threads: [sys.executable, "-c", script, str(run.folder / "asked"), str(run.folder / "started")],
    )

    def interrupt():
        deadline = time.monotonic() + 30
        while not list((tmp_path / "runs").glob("*/started")) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    began = time.monotonic()
    assert studies.main(options(tmp_path, data)) == 130
    thread.join()
    assert time.monotonic() - began < 40
    assert [path.read_text() for path in (tmp_path / "runs").glob("*/asked")] == ["asked"]
    assert len(list((tmp_path / "runs").glob("*/started"))) == 1


def test_dry_run_and_bad_input(tmp_path, data, small, capsys):
    assert studies.main(options(tmp_path, data, "--dry-run")) == 0
    assert len(capsys.readouterr().out.split("import json")) == 4 and not (tmp_path / "runs").exists()
    assert studies.main(options(tmp_path, data, "--jobs", "0")) == 2
    assert "expected at least 1" in capsys.readouterr().err
    assert studies.main(options(tmp_path, tmp_path / "none")) == 2
    assert "none, expected an existing folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        studies.main(["no-such-study", "--data-dir", str(data)])


def test_a_started_run_goes_on_with_the_threads_that_it_began_with(tmp_path, data):
    (run,) = runs.plan(["longer"], [0], tmp_path, {"dataset": "cifar10", "data_dir": data, "epochs": 5})["longer"][:1]
    assert run.config().epochs == 20 and "epochs-20" in run.folder.name
    run.folder.mkdir()
    torch.save(
        {"config": {**run.config().to_dict(), "num_threads": 7}, "progress": {}, "method": {}, "optimiser": {}},
        run.folder / "checkpoint.pt",
    )
    words = run.command(3)
    assert words[words.index("--num-threads") + 1] == "7" and words[-1] == "--resume"


def test_longer_is_longer_under_every_budget(tmp_path, data):
    common = {"dataset": "cifar10", "data_dir": data}
    for budget in BUDGET.values():
        run = runs.plan(["longer"], [0], tmp_path, common | budget)["longer"][0]
        assert run.config().epochs == 4 * Config(output_dir=tmp_path, **common, **budget).resolved().epochs


def test_a_failure_is_told_in_this_attempt_s_words(tmp_path, data, small, capsys):
    small.setattr(runs.Run, "command", lambda run, threads: [sys.executable, "-c", "print('error: new.'); exit(1)"])
    for run in runs.plan(["small"], [5], tmp_path / "runs", {"dataset": "cifar10", "data_dir": data})["small"]:
        run.folder.mkdir(parents=True)
        (run.folder / "log.txt").write_text("Stopped by SIGTERM\nerror: old.\n")
    assert studies.main(options(tmp_path, data)) == 1
    said = capsys.readouterr().out
    assert "error: new." in said and "error: old" not in said


def test_definitions_are_sound(tmp_path):
    for name, study in STUDIES.items():
        labels = [arm.label for arm in study.arms]
        assert study.baseline in labels and len(set(labels)) == len(labels), name


def test_help_names_the_studies():
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.studies", "--help"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0 and all(study.question in done.stdout for study in STUDIES.values())
    with pytest.raises(InputError):
        studies.run_studies(studies.parser().parse_args(["codes", "--data-dir", str(root / "nowhere")]), "")
