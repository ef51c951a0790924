"""experiments/studies: shared runs, command lines that mean what they should, failures, interruption, and the JSON."""

import dataclasses
import json
import os
import signal
import sys
import threading
import time

import pytest
import torch
import tyro

from experiments.studies import __main__ as studies
from experiments.studies import runs, tables
from experiments.studies.definitions import BUDGET, STUDIES, Arm, Study
from train.config import Config

SUMMARY = dict.fromkeys(tables.MEASURES, 0.5) | {"seconds": 3.0, "loss_fraction_of_step": 0.1, "num_features": 128}
SUMMARY |= {"verdicts": {name: {"collapsed": False} for name in tables.COLLAPSES}}


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def child(patch, script):
    """Let every run be `script(run)` in a Python process."""
    patch.setattr(runs.Run, "command", lambda run, threads: [sys.executable, "-c", script(run)])


def finish(run):
    """Writes what a finished run leaves behind."""
    summary = SUMMARY | {"linear_probe": run.seed + run.options["num_codes"] / 100}
    return f"""import json, pathlib
folder = pathlib.Path({str(run.folder)!r})
(folder / "config.json").write_text({json.dumps(run.config().to_dict())!r})
(folder / "summary.json").write_text({json.dumps(summary)!r})
with (folder / "times").open("a") as file: file.write("x")
"""


@pytest.fixture
def small(monkeypatch):
    """One study of two arms, with runs that only write what a run leaves behind."""
    arms = (Arm("a", {"num_codes": 8}), Arm("b", {"num_codes": 16}, seeds=1))
    monkeypatch.setitem(STUDIES, "small", Study("Which?", "a", arms))
    child(monkeypatch, finish)
    before = signal.getsignal(signal.SIGTERM)
    yield monkeypatch
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def study(tmp_path, data, small):
    """`study(*options)`: the command's exit status on that study with seeds 5 and 6."""
    folders = {"--data-dir": data, "--output-dir": tmp_path / "runs", "--results": tmp_path / "results"}
    words = [str(word) for pair in folders.items() for word in pair]
    return lambda *more: studies.main(["small", *words, "--seeds", "5", "6", *more])


@pytest.fixture
def result(tmp_path):
    return tmp_path / "results" / "small.json"


def test_every_command_line_means_the_run_s_configuration(tmp_path, data):
    common = {"dataset": "cifar10", "data_dir": data, "crop_scale": (0.2, 1.0), "compile": False, "tensorboard": True}
    planned = [run for study in runs.plan(list(STUDIES), [0, 7], tmp_path, common).values() for run in study]
    assert len(planned) > 30
    for run in planned:
        words = run.command(3)
        assert words[1:3] == ["-m", "train"]
        config = tyro.cli(Config, args=words[3:], config=(tyro.conf.FlagCreatePairsOff,)).resolved()
        assert config == dataclasses.replace(run.config(), num_threads=3)


def test_arms_with_the_same_options_share_a_folder_and_no_others_do(tmp_path, data):
    plan = runs.plan(list(STUDIES), [0, 1, 2], tmp_path, {"dataset": "cifar10", "data_dir": data})
    by_folder = {}
    for run in (run for study in plan.values() for run in study):
        by_folder.setdefault(run.folder, []).append(run)
    for same in by_folder.values():
        assert len({json.dumps(run.config().to_dict()) for run in same}) == 1
    different = {json.dumps({**same[0].config().to_dict(), "output_dir": ""}) for same in by_folder.values()}
    assert len(different) == len(by_folder)
    assert max(map(len, by_folder.values())) == 4, "cplearn with 16384 codes belongs to four studies"


def test_a_study_from_runs_to_json(tmp_path, study, result):
    assert study("--jobs", "2", "--data-name", "made up") == 0
    found = json.loads(result.read_text())
    assert [[run["seed"] for run in arm["runs"]] for arm in found["arms"]] == [[5, 6], [5]]
    assert [run["linear_probe"] for run in found["arms"][0]["runs"]] == [5.08, 6.08]
    assert found["arms"][1]["runs"][0]["linear_probe"] == 5.16 and found["data"] == "made up"
    assert not {"seconds", "loss_fraction_of_step"} & found["arms"][0]["runs"][0].keys()
    assert found["command"].startswith("python -m experiments.studies small --data-dir") and found["machine"]["cpu"]
    assert found["steps"] == 6 * (20_000 // 128) and "missing" not in found
    assert found["common_options"]["epochs"] == 6 and "data_dir" not in found["common_options"]
    # Nothing is trained twice.
    assert study() == 0
    assert all(path.read_text() == "x" for path in (tmp_path / "runs").glob("*/times"))


@pytest.mark.parametrize("script, words", [
    ("import sys; print('error: no luck.'); sys.exit(2)", "exit status 2: error: no luck."),
    ("print('bye')", "no summary although the exit status was 0: bye"),
])  # fmt: skip
@pytest.mark.parametrize("arm, missing, kept", [("a", ["a, seed 6"], [[5], [5]]), ("b", ["b, seed 5"], [[5, 6]])])
def test_a_run_without_a_summary_is_named_and_the_others_are_collected(
    study, small, result, capsys, script, words, arm, missing, kept
):
    """The baseline's second seed, or an arm's only one; the tables are made of what there is."""
    name = missing[0]
    child(small, lambda run: script if run.name == name else finish(run))
    assert study() == 1
    captured = capsys.readouterr()
    assert f"{name}: {words}" in captured.out
    assert captured.err.count(f"error: 1 runs ended without a summary ({name} (small)), expected all") == 1
    found = json.loads(result.read_text())
    assert found["missing"] == missing
    assert [[run["seed"] for run in arm["runs"]] for arm in found["arms"]] == kept
    assert tables.main([str(result)]) == 0 and f"Not finished: {name}." in capsys.readouterr().out
    child(small, finish)
    assert study() == 0
    assert "missing" not in json.loads(result.read_text())


def test_where_no_run_finishes_there_is_no_json(study, small, result, capsys):
    child(small, lambda run: "raise SystemExit(1)")
    assert study() == 1
    assert "error: 3 runs ended without a summary" in capsys.readouterr().err and not result.exists()


def test_a_folder_with_another_run_is_refused(tmp_path, study, capsys):
    assert study() == 0
    path = next((tmp_path / "runs").glob("*/config.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "lr": 0.5}))
    assert study() == 2
    assert "holds a run with other options, expected the same lr (0.5" in capsys.readouterr().err
    path.write_text(json.dumps({**json.loads(path.read_text()), "lr": 0.002, "num_threads": 99}))
    assert study() == 0


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_stopping_asks_the_runs_to_save_and_the_rest_not_to_start(signum, tmp_path, study, small):
    """The child says whether it was asked; a signal to this process is what Ctrl-C sends."""

    def script(run):
        return f"""import signal, sys, time, pathlib
folder = pathlib.Path({str(run.folder)!r})
signal.signal(signal.SIGTERM, lambda *_: ((folder / "asked").write_text("asked"), sys.exit(143)))
(folder / "started").write_text("")
time.sleep(60)
"""

    def stop():
        deadline = time.monotonic() + 30
        while not list((tmp_path / "runs").glob("*/started")) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signum)

    child(small, script)
    thread = threading.Thread(target=stop)
    thread.start()
    began = time.monotonic()
    assert study() == 130
    thread.join()
    assert time.monotonic() - began < 40
    assert [path.read_text() for path in (tmp_path / "runs").glob("*/asked")] == ["asked"]
    assert len(list((tmp_path / "runs").glob("*/started"))) == 1


def test_dry_run_and_bad_input(tmp_path, data, study, capsys, fails):
    assert study("--dry-run") == 0
    assert len(capsys.readouterr().out.split("import json")) == 4 and not (tmp_path / "runs").exists()
    fails(lambda options: study(*options), ["--jobs", 0], "expected at least 1")
    fails(lambda options: study(*options), ["--data-dir", tmp_path / "none"], "none, expected an existing folder")
    with pytest.raises(SystemExit):
        studies.main(["no-such-study", "--data-dir", str(data)])


def test_a_started_run_goes_on_with_the_threads_that_it_began_with(tmp_path, data):
    (run,) = runs.plan(["longer"], [0], tmp_path, {"dataset": "cifar10", "data_dir": data, "epochs": 5})["longer"][:1]
    assert run.config().epochs == 20 and "epochs-20" in run.folder.name
    run.folder.mkdir()
    content = {"config": {**run.config().to_dict(), "num_threads": 7}, "progress": {}, "method": {}, "optimiser": {}}
    torch.save(content, run.folder / "checkpoint.pt")
    words = run.command(3)
    assert words[words.index("--num-threads") + 1] == "7" and words[-1] == "--resume"


def test_longer_is_longer_under_every_budget(tmp_path, data):
    common = {"dataset": "cifar10", "data_dir": data}
    for budget in BUDGET.values():
        run = runs.plan(["longer"], [0], tmp_path, common | budget)["longer"][0]
        assert run.config().epochs == 4 * Config(output_dir=tmp_path, **common, **budget).resolved().epochs


def test_a_failure_is_told_in_this_attempt_s_words(tmp_path, data, study, small, capsys):
    child(small, lambda run: "print('error: new.'); exit(1)")
    for run in runs.plan(["small"], [5], tmp_path / "runs", {"dataset": "cifar10", "data_dir": data})["small"]:
        run.folder.mkdir(parents=True)
        (run.folder / "log.txt").write_text("Stopped by SIGTERM\nerror: old.\n")
    assert study() == 1
    said = capsys.readouterr().out
    assert "error: new." in said and "error: old" not in said


def test_definitions_are_sound(tmp_path):
    for name, study in STUDIES.items():
        labels = [arm.label for arm in study.arms]
        assert study.baseline in labels and len(set(labels)) == len(labels), name


def test_help_names_the_studies(data, capsys):
    with pytest.raises(SystemExit) as caught:
        studies.main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0 and all(study.question in told for study in STUDIES.values())
