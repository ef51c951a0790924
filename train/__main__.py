"""`python -m train`: configuration -> data -> training -> evaluation -> summary and report."""

from __future__ import annotations

import time

STARTED = time.perf_counter()  # before the imports below, which are seconds of every run

import os  # noqa: E402
import shlex  # noqa: E402
import shutil  # noqa: E402
import sys  # noqa: E402
import traceback  # noqa: E402
from contextlib import ExitStack, redirect_stderr, redirect_stdout  # noqa: E402
from dataclasses import replace  # noqa: E402

import torch  # noqa: E402
import tyro  # noqa: E402

from train import backbones, checkpoint, evaluate, loop, methods, optimisers, report, run_folder, threads  # noqa: E402
from train.checkpoint import Progress  # noqa: E402
from train.config import Config  # noqa: E402
from train.data import Images, load  # noqa: E402
from train.data.augment import TwoViews  # noqa: E402
from train.distributed import processes  # noqa: E402
from train.distributed.processes import ALONE, Elsewhere, Lost, Processes  # noqa: E402
from train.errors import Diverged, InputError  # noqa: E402
from train.files import write_json  # noqa: E402
from train.reporting import events  # noqa: E402
from train.run_folder import CHECKPOINT_FILE, CONFIG_FILE, DIVERGED_FILE, EMBEDDINGS_FILE, REPORT_FILE, SUMMARY_FILE  # noqa: E402  # noqa: E402
from train.seeds import derive_seed  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status (0 done, 1 diverged, 2 bad input, 130 or 143 stopped by a signal).

    Under torchrun every process runs this; 1 is also the status if one of them is lost. Only one of them prints.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(arguments)
    kept = [argument for argument in arguments if argument not in ("--resume", "--overwrite")]
    again = shlex.join([*processes.launcher(), *kept, "--resume"])
    ranks = ALONE
    try:
        ranks = processes.join()
        with ranks.watched():
            with ranks.agreement():
                config = config.resolved()
                ranks.check(config)
            if "--num-threads" not in " ".join(kept):
                # Another number of threads would give other roundings.
                again += f" --num-threads {config.num_threads}"
            run(config, ranks)
    except Elsewhere:
        return ranks.end_quietly()
    except (InputError, Diverged, Lost) as error:
        name = "" if ranks.first else f"rank {ranks.rank}: "
        return ranks.end(error.exit_status, f"error: {name}{error}")
    except loop.Interrupted as stop:
        return ranks.end(stop.exit_status, f"{stop} Go on with:\n  {again}")
    except BrokenPipeError:
        # Whoever read the output is gone; Python would complain once more when it flushes.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  until the process ends
        return ranks.end(
            141,
            f"Stopped, because nothing reads the output any more. If a checkpoint was saved, go on with:\n  {again}",
        )
    except KeyboardInterrupt:
        return ranks.end(130, f"Stopped. If a checkpoint was saved, go on with:\n  {again}")
    except Exception:
        if not ranks.together:
            raise
        # A mistake in the program; the others must not wait for this process.
        return ranks.end(1, f"rank {ranks.rank}: {traceback.format_exc()}")
    return 0


def parse(arguments: list[str]) -> Config:
    """The configuration that a command line gives; of many processes the first alone explains what is wrong with it."""
    with ExitStack() as silence:
        if not processes.is_first():
            nowhere = silence.enter_context(open(os.devnull, "w"))
            silence.enter_context(redirect_stdout(nowhere))
            silence.enter_context(redirect_stderr(nowhere))
        return tyro.cli(Config, args=arguments, prog="python -m train", config=(tyro.conf.FlagCreatePairsOff,))


def run(config: Config, ranks: Processes = ALONE) -> dict | None:
    """Train and evaluate as a resolved configuration says; the summary, which is also written to summary.json.

    Of many processes the first alone evaluates and returns something.
    """
    # The same convolution algorithm every time, or a resumed run on a GPU would differ in the last digits.
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    with threads.limited_to(config.num_threads), ExitStack() as held:
        with ranks.first_goes_ahead():
            if ranks.first:
                held.enter_context(run_folder.claim(config))
            data = load(replace(config, download=config.download and ranks.first)).to(config.device)
        with ranks.agreement():
            ranks.check_same(data.train_images)
        with ranks.agreement():
            torch.manual_seed(derive_seed(config.seed, "weights"))
            method = methods.build(config, backbones.build(config)).to(config.device)
        method = ranks.synchronised(method, config.device)
        optimiser = optimisers.build(config, method)
        with ranks.agreement():
            progress = start(config, method, optimiser, ranks.world) if ranks.first else Progress()
        progress = checkpoint.share(ranks, config, progress, method, optimiser)
        earlier = sum(progress.seconds.values())
        if ranks.first:
            shared = f" in {ranks.world} processes" if ranks.world > 1 else ""
            print(
                f"{config.method} on {config.dataset}: {len(data.train_images)} training and "
                f"{len(data.test_images)} test images, {sum(p.numel() for p in method.parameters()):,} weights, "
                f"{method.num_clusters:,} clusters, {config.device}{shared}"
            )
        loop.train(config, data, method, optimiser, progress, ranks)
        # Evaluation may take long, and nobody should have to wait for it.
        ranks.part()
        if not ranks.first:
            return None
        print("evaluating ...", flush=True)
        summary, test = evaluate.judge(config, data, method)
        summary |= {
            "levels": method.lines(),
            **loop.throughput(config, progress),
            "processes": ranks.world,
            "seconds": earlier + time.perf_counter() - STARTED,
        }
        with loop.writing(config.output_dir, progress.step):
            finish(config, data, summary, test)
    print(evaluate.table(summary))
    print(
        f"\n  {summary['images_per_second']:.0f} images/s in {summary['seconds_training']:.0f} s of training; "
        "share of a step: "
        + ", ".join(
            f"{name.removesuffix('_fraction_of_step').replace('_', ' ')} {value:.1%}"
            for name, value in summary.items()
            if name.endswith("_fraction_of_step")
        )
    )
    print(f"report: {config.output_dir / REPORT_FILE}")
    return summary


def start(config: Config, method: torch.nn.Module, optimiser: torch.optim.Optimizer, world: int) -> Progress:
    """Restore the checkpoint to be resumed, or begin at step 0; write config.json and a first checkpoint."""
    path = config.output_dir / CHECKPOINT_FILE
    progress = checkpoint.restore(path, config, method, optimiser) if config.resume else Progress()
    before, now = (progress.processes, progress.threads), (world, config.num_threads)
    if progress.threads is not None and before != now:
        print(
            f"Processes before and now: {before[0]} and {now[0]}; CPU threads of each: {before[1]} and {now[1]}. The "
            f"last digits may differ from those of a run that was not stopped."
        )
    progress.processes, progress.threads = now
    run_folder.check_room(config, method)
    try:
        if not config.resume:
            for name in (SUMMARY_FILE, EMBEDDINGS_FILE, REPORT_FILE, DIVERGED_FILE):
                (config.output_dir / name).unlink(missing_ok=True)
            shutil.rmtree(config.output_dir / events.FOLDER, ignore_errors=True)
        write_json(config.output_dir / CONFIG_FILE, config.to_dict())
        # A disk without room for a checkpoint is found out now and not an epoch later.
        checkpoint.save(path, config, progress, method, optimiser)
    except OSError as error:
        raise InputError(
            f"--output-dir {config.output_dir} cannot take a checkpoint ({error}), expected a folder with "
            f"room to write in."
        ) from None
    return progress


def finish(config: Config, data: Images, summary: dict, test: evaluate.Encoded) -> None:
    """Write embeddings.npz, summary.json and report.html; the report is made from the other files of the folder."""
    path = config.output_dir
    evaluate.save_embeddings(path / EMBEDDINGS_FILE, test, data.test_labels.cpu(), data.classes)
    write_json(path / SUMMARY_FILE, summary)
    # The run's random draws are over; this seed only keeps the pictured views the same from report to report.
    torch.manual_seed(derive_seed(config.seed, "pictured views"))
    sample = data.train_images[:10]
    report.write(path, (sample, *TwoViews(config)(sample)))


if __name__ == "__main__":
    sys.exit(main())
