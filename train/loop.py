"""The training loop: every step, metrics of every epoch, interruptions, and exact continuation."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from train import checkpoint
from train.checkpoint import Progress
from train.config import Config
from train.data import Images
from train.data.augment import TwoViews
from train.distributed.processes import ALONE, Elsewhere, Processes
from train.errors import Diverged, InputError
from train.files import write_text
from train.reporting.events import Events
from train.run_folder import CHECKPOINT_FILE, DIVERGED_FILE, METRICS_FILE
from train.seeds import derive_seed


class Interrupted(Exception):
    """A signal asked the run to stop and a checkpoint has been saved; its exit status is the shell's usual one."""

    def __init__(self, signum: int, step: int, total: int) -> None:
        super().__init__(
            f"Stopped by {signal.Signals(signum).name} after step {step} of {total}; a checkpoint is saved."
        )
        self.exit_status = 128 + signum


class NotFinite(Exception):
    """A loss or a gradient is infinite or NaN; says which."""


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up to `config.lr`, then half a cosine to zero after the last step; `step` counts from 0."""
    warmup, total = config.warmup_epochs * steps_per_epoch, config.epochs * steps_per_epoch
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def batches(config: Config, count: int, first_step: int) -> Iterator[Tensor]:
    """The image numbers of every step from `first_step` to the last, int64 `(batch_size,)`.

    Each epoch is a permutation of the `count` images that depends on the seed and the epoch only; its remainder that
    fills no batch is left out.
    """
    steps_per_epoch = count // config.batch_size
    first_epoch, skip = divmod(first_step, steps_per_epoch)
    for epoch in range(first_epoch, config.epochs):
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "order", epoch))
        order = torch.randperm(count, generator=generator)
        yield from order.split(config.batch_size)[skip:steps_per_epoch]
        skip = 0


class Stopwatch:
    """Adds up the seconds of each part of the steps in a dictionary; waits for the GPU so that they are its parts."""

    def __init__(self, seconds: dict[str, float], device: str) -> None:
        self.seconds, self.device = seconds, torch.device(device)
        self.last = time.perf_counter()

    def mark(self, part: str) -> None:
        """Count the time since the previous mark for `part`."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self.last
        self.last = now


def encoder(config: Config, method: nn.Module) -> Callable[[Tensor], Tensor]:
    """Images `(n, 3, 32, 32)` to embeddings `(n, f)`, float32, computed in the configured precision."""

    def encode(images: Tensor) -> Tensor:
        with torch.autocast(torch.device(config.device).type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            return method.head(method.backbone(images)).float()

    return torch.compile(encode) if config.compile else encode


class BothViews(nn.Module):
    """The encoder of two views in one call, which is how DistributedDataParallel can wrap it.

    Each view goes through by itself, so that batch norms see one at a time.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], method: nn.Module) -> None:
        super().__init__()
        self.encode = encode
        # For whoever asks for the parameters that take part; `encode` has its own way to them.
        self.backbone, self.head = method.backbone, method.head

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return self.encode(first), self.encode(second)


def train_step(
    encode: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    method: nn.Module,
    optimiser: torch.optim.Optimizer,
    first: Tensor,
    second: Tensor,
    watch: Stopwatch,
) -> dict[str, float]:
    """One step of optimisation on two views `(n, 3, 32, 32)`; the loss and its terms, of all processes' rows.

    The graph is cut at the embeddings and joined again, which leaves every gradient as it is and lets the loss's
    forward and gradient be timed apart from the encoder's. Raises NotFinite, before anything is updated, if the loss or
    a gradient is.
    """
    h1, h2 = encode(first, second)
    leaf1, leaf2 = (h.detach().requires_grad_() for h in (h1, h2))
    watch.mark("encoder forward")
    loss, terms = method.loss(leaf1, leaf2)
    metrics = {"loss": loss.item(), **{name: term.item() for name, term in terms.items()}}
    if not math.isfinite(metrics["loss"]):
        raise NotFinite(f"The loss became {metrics['loss']}")
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    watch.mark("loss")
    torch.autograd.backward([h1, h2], [leaf1.grad, leaf2.grad])
    norm = nn.utils.get_total_norm([p.grad for p in method.parameters() if p.grad is not None]).item()
    watch.mark("encoder backward")
    # A step along it would put NaN into the weights, and the next checkpoint would keep them.
    if not math.isfinite(norm):
        raise NotFinite(f"The gradient's norm became {norm}")
    optimiser.step()
    watch.mark("optimiser")
    return metrics


def train(
    config: Config,
    data: Images,
    method: nn.Module,
    optimiser: torch.optim.Optimizer,
    progress: Progress,
    ranks: Processes = ALONE,
) -> None:
    """Train from where `progress` stands to the end, updating it; metrics and checkpoints go to the output directory.

    With many processes each sees its rows of every batch, and the first alone writes; `method` has synchronised batch
    norms and is, like `optimiser` and `progress`, the same in all of them. They stop after the same step.

    Raises Interrupted after SIGINT or SIGTERM, with a checkpoint of that very step; Diverged when the loss or a
    gradient is not finite, leaving the last checkpoint as it is and the present state beside it; InputError when the
    disk is full.
    """
    folder = Path(config.output_dir)
    views, own = TwoViews(config).to(config.device), ranks.rows(config.batch_size)
    encode = ranks.wrap(BothViews(encoder(config, method), method))
    steps_per_epoch = len(data.train_images) // config.batch_size
    total = config.epochs * steps_per_epoch
    saved = time.monotonic()

    def save(name: str) -> None:
        nonlocal saved
        if not ranks.first:
            return
        with writing(folder, progress.step):
            checkpoint.save(folder / name, config, progress, method, optimiser)
        saved = time.monotonic()

    method.train()
    if ranks.first:
        with writing(folder, progress.step):
            write_metrics(folder / METRICS_FILE, progress.history)
    with (
        stop_requests(ranks.world > 1) as requests,
        Events(folder, config.tensorboard and ranks.first, progress.step) as events,
        tqdm(total=total, initial=progress.step, unit="step", disable=None if ranks.first else True) as bar,
    ):
        watch = Stopwatch(progress.seconds, config.device)
        first_step, started = progress.step, time.perf_counter()
        for index in batches(config, len(data.train_images), progress.step):
            # Every draw of this step follows from this seed, so a checkpoint needs no generator state.
            torch.manual_seed(derive_seed(config.seed, "step", progress.step))
            lr = learning_rate(config, progress.step, steps_per_epoch)
            for group in optimiser.param_groups:
                group["lr"] = lr
            images = data.train_images[index[own].to(config.device)]
            first, second = views(images, own.start, config.batch_size)
            watch.mark("views")
            try:
                metrics = train_step(encode, method, optimiser, first, second, watch)
            except NotFinite as what:
                if not ranks.first:
                    # The loss and the gradients are the same everywhere: process 0 has found it, too.
                    raise Elsewhere from None
                problem = f"{what} at step {progress.step + 1} of {total}, expected a finite number"
                try:
                    save(DIVERGED_FILE)
                except InputError as error:
                    raise Diverged(f"{problem}. {error}") from error
                raise Diverged(
                    f"{problem}; the state is in {folder / DIVERGED_FILE} and the last one before it that "
                    f"was saved in {folder / CHECKPOINT_FILE} (try a lower --lr with "
                    f"--overwrite)."
                ) from None
            progress.step += 1
            stop = ranks.stop_signal(requests)
            for name, value in metrics.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
            rate = (progress.step - first_step) * config.batch_size / (time.perf_counter() - started)
            bar.update()
            bar.set_postfix_str(f"{rate:.0f} images/s  " + "  ".join(f"{k} {v:.3f}" for k, v in metrics.items()))
            if progress.step % steps_per_epoch == 0:
                epoch = progress.step // steps_per_epoch
                means = {name: value / steps_per_epoch for name, value in progress.sums.items()}
                progress.history.append({"epoch": epoch, "step": progress.step, "lr": lr, **means})
                progress.sums.clear()
                if ranks.first:
                    with writing(folder, progress.step):
                        write_metrics(folder / METRICS_FILE, progress.history)
                        events.add(progress.history[-1])
                    save(CHECKPOINT_FILE)
                    tqdm.write(
                        f"epoch {epoch}/{config.epochs}  {rate:.0f} images/s  "
                        + "  ".join(f"{k} {v:.4f}" for k, v in means.items())
                    )
            elif stop or time.monotonic() - saved > 60 * config.checkpoint_minutes:
                save(CHECKPOINT_FILE)
            watch.mark("checkpoint")
            if stop:
                raise Interrupted(stop, progress.step, total) if ranks.first else Elsewhere
        # Asked while the last checkpoint was being written.
        if stop := ranks.stop_signal(requests):
            raise Interrupted(stop, progress.step, total) if ranks.first else Elsewhere


@contextmanager
def writing(folder: Path, step: int) -> Iterator[None]:
    """Turns what a full or vanished disk raises into an InputError that says how to go on."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"Step {step} could not be saved in {folder} ({error.strerror or error}), expected a folder "
            f"with room to write in; what was saved there before is whole, and --resume goes on from "
            f"it."
        ) from error


def throughput(config: Config, progress: Progress) -> dict[str, float]:
    """Images per second of training, its seconds, and the share of each part of a step."""
    seconds, total = progress.seconds, sum(progress.seconds.values())
    shares = {f"{part.replace(' ', '_')}_fraction_of_step": value / total for part, value in seconds.items()}
    return {"images_per_second": progress.step * config.batch_size / total, "seconds_training": total, **shares}


def write_metrics(path: Path, history: list[dict[str, float]]) -> None:
    """Write one JSON object per finished epoch.

    The whole file each time: after a crash it may hold epochs that the checkpoint does not, and those come again.
    """
    text = "".join(json.dumps(row) + "\n" for row in history)
    write_text(path, text)


@contextmanager
def stop_requests(patient: bool = False) -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in the list that is returned; a second SIGINT acts at once, as usual.

    Not with `patient`: Ctrl-C may reach a process of torchrun's from the terminal and from torchrun, which kills what
    has not ended after half a minute. A SIGINT that is ignored, as in a script's background, stays so: Ctrl-C is for
    another program then.
    """
    requests: list[int] = []

    def note(signum, frame) -> None:
        requests.append(signum)
        if not patient and signal.SIGINT in previous:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    heeded = [signal.SIGTERM] if signal.getsignal(signal.SIGINT) == signal.SIG_IGN else [signal.SIGINT, signal.SIGTERM]
    previous = {signum: signal.signal(signum, note) for signum in heeded}
    try:
        yield requests
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
