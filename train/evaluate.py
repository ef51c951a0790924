"""Evaluation of a trained method on frozen features; `python -m train.evaluate CHECKPOINT` prints it."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn

from train import backbones, checkpoint, methods, threads
from train.config import Config
from train.data import Images, load
from train.data.augment import TwoViews
from train.errors import InputError, exit_status
from train.evaluation import collapse, quality, verdicts
from train.evaluation.measures import LABELS, MIXTURES
from train.files import write_atomically, write_json
from train.seeds import derive_seed


@dataclass(frozen=True)
class Encoded:
    """What a method makes of images, on the CPU: float32 features `(N, width)` and embeddings `(N, f)`, clusters.

    `clusters` is int64 `(N,)`; `view_clusters` int64 `(2, N)`, of two augmented views of each image, or None.
    """

    features: Tensor
    embeddings: Tensor
    clusters: Tensor
    view_clusters: Tensor | None = None


def judge(config: Config, data: Images, method: nn.Module) -> tuple[dict[str, Any], Encoded]:
    """Every measure of a trained method with the verdicts on collapse, and its encoded test images.

    Probe and k-NN learn from the training images' features; everything else is measured on the test images.
    Raises InputError if features or embeddings are not finite, as after a run that diverged.
    """
    train_x, train_y = encode_features(method, data.train_images), data.train_labels.cpu()
    test = dataclasses.replace(
        encode(method, data.test_images), view_clusters=encode_views(config, method, data.test_images)
    )
    test_y = data.test_labels.cpu()
    for name, value in (("features", train_x), ("features", test.features), ("embeddings", test.embeddings)):
        if bad := int((~value.isfinite()).any(1).sum()):
            raise InputError(
                f"The {name} of {bad} of {len(value)} images were not finite, expected an encoder whose "
                f"training has not diverged."
            )
    probe, converged = quality.linear_probe(train_x, train_y, test.features, test_y)
    counts = collapse.code_counts(test.clusters)
    summary = {
        "linear_probe": probe,
        "linear_probe_converged": converged,
        "knn": quality.knn(train_x, train_y, test.features, test_y, neighbours=config.knn_neighbours),
        **quality.cluster_agreement(test_y, test.clusters),
        "kmeans_nmi": quality.kmeans_nmi(test.features, test_y, len(data.classes)),
        "view_agreement": quality.view_agreement(test.view_clusters),
        "codes_used": len(counts),
        "perplexity": collapse.perplexity(counts),
        "num_clusters": method.num_clusters,
        "effective_rank": collapse.effective_rank(test.embeddings),
        "effective_rank_features": collapse.effective_rank(test.features),
        "embedding_std": collapse.embedding_std(test.embeddings),
        "within_class_scatter": collapse.within_class_scatter(test.embeddings, test_y),
        **collapse.mixture_measures(test.embeddings),
        "test_images": len(test_y),
        "num_features": test.embeddings.shape[1],
        "num_classes": len(data.classes),
    }
    summary["verdicts"] = {name: dataclasses.asdict(verdict) for name, verdict in verdicts.judge(summary).items()}
    return summary, test


@torch.no_grad()
def encode(method: nn.Module, images: Tensor, batch_size: int = 500) -> Encoded:
    """Encode images uint8 `(N, 3, 32, 32)` without augmentation; batch norm uses its running statistics."""
    features, embeddings, clusters = [], [], []
    with _evaluating(method):
        for batch in images.split(batch_size):
            x = method.backbone(batch.float() / 255)
            h = method.head(x)
            features.append(x.float().cpu())
            embeddings.append(h.float().cpu())
            clusters.append(method.assign(h).cpu())
    return Encoded(torch.cat(features), torch.cat(embeddings), torch.cat(clusters))


@torch.no_grad()
def encode_features(method: nn.Module, images: Tensor, batch_size: int = 500) -> Tensor:
    """The features of `encode` alone, float32 `(N, width)` on the CPU."""
    with _evaluating(method):
        return torch.cat([method.backbone(batch.float() / 255).float().cpu() for batch in images.split(batch_size)])


@torch.no_grad()
def encode_views(config: Config, method: nn.Module, images: Tensor, batch_size: int = 500) -> Tensor:
    """Clusters of two augmented views of each image uint8 `(N, 3, 32, 32)`, int64 `(2, N)` on the CPU.

    The views follow from the configuration's seed; PyTorch's generators are left as they were.
    """
    views, clusters = TwoViews(config).to(images.device), []
    devices = [images.device] if images.device.type == "cuda" else []
    with _evaluating(method), torch.random.fork_rng(devices):
        torch.manual_seed(derive_seed(config.seed, "evaluation views"))
        for batch in images.split(batch_size):
            clusters.append(
                torch.stack([method.assign(method.head(method.backbone(view))).cpu() for view in views(batch)])
            )
    return torch.cat(clusters, dim=1)


@contextmanager
def _evaluating(method: nn.Module) -> Iterator[None]:
    was_training = method.training
    method.eval()
    try:
        yield
    finally:
        method.train(was_training)


def save_embeddings(path: Path, encoded: Encoded, labels: Tensor, classes: list[str]) -> None:
    """Write what the test images were encoded to, atomically, as a compressed .npz file without pickles.

    Arrays: `embeddings`, `features`, `clusters`, `labels` int64 `(N,)`, `classes` strings `(K,)`, and `view_clusters`
    if there are any; shapes and types as in `Encoded`.
    """
    arrays = {
        "embeddings": encoded.embeddings,
        "features": encoded.features,
        "clusters": encoded.clusters,
        "labels": labels.cpu(),
        "view_clusters": encoded.view_clusters,
    }
    arrays = {name: value.numpy() for name, value in arrays.items() if value is not None}

    def write(temporary: Path) -> None:
        # An open file, because NumPy adds .npz to a name.
        with temporary.open("wb") as file:
            np.savez_compressed(file, classes=np.array(classes, dtype=np.str_), **arrays)

    write_atomically(path, write)


def restore(
    path: Path, data_dir: Path | None = None, device: str = "auto"
) -> tuple[Config, Images, nn.Module, list[dict[str, float]]]:
    """What a checkpoint holds: configuration, data set, method with its weights, and the metrics of each epoch.

    Args:
        path: the checkpoint.
        data_dir: folder of the data set; None for the one that the run used.
        device: where data and method go: cpu, cuda, cuda:1, or auto.

    Raises:
        InputError: the checkpoint or the data set is missing, damaged or of another program.
    """
    content = checkpoint.load(path, "cpu")
    stored = Config.from_dict(content["config"])
    config = dataclasses.replace(
        stored, data_dir=data_dir or stored.data_dir, device=device, download=False, resume=False, overwrite=False
    ).resolved()
    if config.dataset != "digits" and not config.data_dir.is_dir():
        source = "" if data_dir else ", as in the run"
        raise InputError(
            f"--data-dir was {config.data_dir}{source}, expected an existing folder with the images of "
            f"{config.dataset}."
        )
    data = load(config).to(config.device)
    method = methods.build(config, backbones.build(config))
    try:
        method.load_state_dict(content["method"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} holds other weights than its configuration says ({' '.join(str(error).split())}), "
            f"expected a checkpoint of this version of the program."
        ) from None
    return config, data, method.to(config.device).eval(), content["progress"]["history"]


def table(summary: dict[str, Any]) -> str:
    """The measures and the verdicts of a summary as aligned text."""
    shown = {name: label for name, label in LABELS.items() if name in summary and name not in MIXTURES}
    parts = [_aligned([[name, _text(summary[name]), label] for name, label in shown.items()])]
    if sizes := [size for size in collapse.MIXTURE_SIZES if f"mixture_scatter_{size}" in summary]:
        rows = [[kind, *(f"{summary[f'mixture_{kind}_{k}']:.4f}" for k in sizes)] for kind in ("scatter", "entropy")]
        parts.append(
            "Gaussian mixtures of the embeddings (scatter: 1 no clusters, 0 points; entropy in nats per coordinate)\n"
            + _aligned([["components", *map(str, sizes)], *rows])
        )
    head = ["collapse", "verdict", "measure", "value", "below", "threshold"]
    words = {True: "COLLAPSED", False: "no", None: "not judged"}
    rows = [
        [name, words[v["collapsed"]], v["measure"], *(_number(v[key]) for key in ("value", "threshold")), v["why"]]
        for name, v in summary["verdicts"].items()
    ]
    return "\n\n".join([*parts, _aligned([head, *rows])])


def _aligned(rows: list[list[str]]) -> str:
    """Text in columns, those with numbers to the right."""
    sides = ["right" if any(cell[:1].isdigit() for cell in column) else "left" for column in zip(*rows)]
    return textwrap.indent(tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=sides), "  ")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status, 0 or 2."""
    parser = argparse.ArgumentParser(
        prog="python -m train.evaluate",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Evaluate a checkpoint: quality of the frozen features, and which collapses its embeddings show.",
        epilog="The configuration, seed included, is read from the checkpoint, so the numbers are those at the end of "
        "the run.\nThe verdicts and their thresholds are explained in docs/collapse.md.\n\nexample:\n"
        "  python -m train.evaluate runs/digits/checkpoint.pt --output digits.json",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint.pt of a run, finished or not")
    parser.add_argument("--data-dir", type=Path, metavar="D", help="folder of the data set (default: as in the run)")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, or auto for cuda where there is one (default: auto)"
    )
    parser.add_argument("--num-threads", type=int, metavar="N", help="CPU threads (default: as many as PyTorch takes)")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="also write the numbers to this file as JSON")
    options = parser.parse_args(arguments)
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    output = options.output
    # Found out now and not after minutes of work.
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise InputError(f"--output was {output}, expected the name of a file in an existing folder.")
    with threads.limited_to(options.num_threads):
        config, data, method, history = restore(options.checkpoint, options.data_dir, options.device)
        print(
            f"{config.method} on {config.dataset}, {len(history)} of {config.epochs} epochs, seed {config.seed}, "
            f"{len(data.train_images):,} training images, on {config.device}",
            flush=True,
        )
        summary = judge(config, data, method)[0] | {"levels": method.lines(), "epochs": len(history)}
    print(table(summary))
    if output is not None:
        try:
            write_json(output, summary)
        except OSError as error:
            raise InputError(
                f"--output was {output}, expected a file that can be written ({error.strerror})."
            ) from None


if __name__ == "__main__":
    sys.exit(main())
