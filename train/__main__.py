"""`python -m train`: configuration -> data -> training -> evaluation -> summary and report."""

from __future__ import annotations

import time

STARTED = time.perf_counter()  # before the imports below, which are seconds of every run

import json  # noqa: E402
import shlex  # noqa: E402
import sys  # noqa: E402

import torch  # noqa: E402
import tyro  # noqa: E402

from train import backbones, checkpoint, collapse, evaluate, loop, methods, report  # noqa: E402
from train.checkpoint import Progress  # noqa: E402
from train.config import Config  # noqa: E402
from train.data import load  # noqa: E402
from train.errors import Diverged, InputError  # noqa: E402

SUMMARY_FILE = "summary.json"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status (0 done, 1 diverged, 2 bad input, 130 or 143 stopped by a signal)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = tyro.cli(Config, args=arguments, prog="python -m train", config=(tyro.conf.FlagCreatePairsOff,))
    kept = [argument for argument in arguments if argument not in ("--resume", "--overwrite")]
    again = shlex.join(["python", "-m", "train", *kept, "--resume"])
    try:
        run(config.resolved())
    except (InputError, Diverged) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except loop.Interrupted as stop:
        print(f"{stop} Go on with:\n  {again}", file=sys.stderr)
        return stop.exit_status
    except KeyboardInterrupt:
        print(f"Stopped. If a checkpoint was saved, go on with:\n  {again}", file=sys.stderr)
        return 130
    return 0


def run(config: Config) -> dict:
    """Train and evaluate as a resolved configuration says; the summary, which is also written to summary.json."""
    torch.set_num_threads(config.num_threads)
    # The same convolution algorithm every time, or a resumed run on a GPU would differ in the last digits.
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    prepare_folder(config)
    data = load(config).to(config.device)

    torch.manual_seed(loop.derive_seed(config.seed, "weights"))
    method = methods.build(config, backbones.ResNet8(config.widths, config.stem_stride)).to(config.device)
    optimiser = torch.optim.Adam(method.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    progress = start(config, method, optimiser)
    earlier = sum(progress.seconds.values())
    print(f"{config.method} on {config.dataset}: {len(data.train_images)} training and {len(data.test_images)} test "
          f"images, {sum(p.numel() for p in method.parameters()):,} weights, {config.num_codes:,} codes, {config.device}")

    loop.train(config, data, method, optimiser, progress)
    print("evaluating ...")
    summary, test = evaluate.judge(config, data, method)
    summary |= loop.throughput(config, progress)
    report.write(config, data, method, progress, test, summary)
    summary["seconds"] = earlier + time.perf_counter() - STARTED
    checkpoint.write_atomically(config.output_dir / SUMMARY_FILE,
                                lambda temporary: temporary.write_text(json.dumps(summary, indent=2) + "\n"))
    for name, value in summary.items():
        print(f"  {name:28} {value:.4g}" if isinstance(value, float) else f"  {name:28} {value}")
    print(f"report: {config.output_dir / report.FILE}")
    return summary


def prepare_folder(config: Config) -> None:
    """Make the output directory; InputError if it cannot be written or holds a run that was not mentioned."""
    folder = config.output_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.write_atomically(folder / "write-test", lambda temporary: temporary.write_bytes(b"\0"))
        (folder / "write-test").unlink()
    except OSError as error:
        raise InputError(f"--output-dir was {folder}, expected a folder that can be written "
                         f"({error.strerror}).") from None
    if (folder / checkpoint.FILE).exists() and not (config.resume or config.overwrite):
        raise InputError(f"--output-dir {folder} already holds a run, expected --resume to go on with it, --overwrite "
                         f"to start again, or another folder.")


def start(config: Config, method: torch.nn.Module, optimiser: torch.optim.Optimizer) -> Progress:
    """Restore the checkpoint to be resumed, or begin at step 0; write config.json and a first checkpoint."""
    path = config.output_dir / checkpoint.FILE
    progress = checkpoint.restore(path, config, method, optimiser) if config.resume else Progress()
    try:
        if not config.resume:
            for name in (SUMMARY_FILE, report.FILE, loop.DIVERGED_FILE):
                (config.output_dir / name).unlink(missing_ok=True)
        (config.output_dir / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
        # A disk without room for a checkpoint is found out now and not an epoch later.
        checkpoint.save(path, config, progress, method, optimiser)
    except (OSError, RuntimeError) as error:
        raise InputError(f"--output-dir {config.output_dir} cannot take a checkpoint ({error}), expected a folder with "
                         f"room to write in.") from None
    return progress


if __name__ == "__main__":
    sys.exit(main())
