"""The report of a run: one HTML file with every number and picture in it."""

from __future__ import annotations

import base64
import html
import io
import math
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from train import checkpoint, figures
from train.augment import TwoViews
from train.checkpoint import Progress
from train.config import Config
from train.data import Images
from train.evaluate import Encoded

FILE = "report.html"

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1120px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 }
td, th { padding: .2em .9em .2em 0; text-align: left; vertical-align: top }
tr { border-bottom: 1px solid #ddd } td.number { text-align: right; font-variant-numeric: tabular-nums }
figure { display: inline-block; width: 530px; max-width: 100%; margin: 0 1em 1.5em 0; vertical-align: top }
figure.wide { width: 100% } img { max-width: 100% } figcaption { font-size: 13px; color: #555 }
details { margin: 1em 0 } code { background: #f3f3f3 }
"""


def write(config: Config, data: Images, method: nn.Module, progress: Progress, test: Encoded,
          summary: dict[str, Any]) -> None:
    """Write report.html to the output directory; it refers to no other file and to nothing on the network."""
    body = [
        f"<h1>{config.method} on {config.dataset}</h1>",
        f"<p>{len(data.train_images):,} training images, {len(data.test_images):,} test images, {config.epochs} epochs "
        f"of {config.batch_size} images per step, {config.num_codes:,} codes of length {config.num_features}, "
        f"seed {config.seed}.</p>",
        "<h2>Quality of the frozen features</h2>", _quality(summary, len(data.classes)),
        "<h2>Collapse</h2>", _collapse(config, summary, len(data.classes)),
        "<h2>Pictures</h2>", *_pictures(config, data, method, progress, test),
        "<h2>Time</h2>", _table(("what", "value"), [
            (name.replace("_", " "), _number(value)) for name, value in summary.items()
            if name.endswith("_of_step") or name in ("images_per_second", "seconds_training")]),
        "<details><summary>Configuration</summary>",
        _table(("option", "value"), [(name, str(value)) for name, value in config.to_dict().items()]), "</details>",
    ]
    page = (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f"<title>{config.method} on {config.dataset}</title><style>{STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n")
    checkpoint.write_atomically(config.output_dir / FILE,
                                lambda temporary: temporary.write_text(page, encoding="utf-8"))


def _quality(summary: dict[str, Any], classes: int) -> str:
    probe = "linear probe accuracy" + ("" if summary["linear_probe_converged"] else " (not converged)")
    return _table(("measure, on the test images", "value", "by chance"), [
        (probe, _number(summary["linear_probe"]), _number(1 / classes)),
        ("weighted k-NN accuracy", _number(summary["knn"]), _number(1 / classes)),
        ("normalised mutual information of codes and classes", _number(summary["nmi"]), "grows with the codes in use"),
        ("adjusted mutual information of codes and classes", _number(summary["ami"]), "0"),
    ])


def _collapse(config: Config, summary: dict[str, Any], classes: int) -> str:
    samples, f = summary["test_images"], config.num_features
    most = min(config.num_codes, samples)
    return _table(("collapse", "measure, on the test images", "value", "fully collapsed", "fully spread"), [
        ("representation", "standard deviation of unit-length embeddings", _number(summary["embedding_std"]), "0",
         f"1/√f = {1 / math.sqrt(f):.4f}"),
        ("cluster", "codes used", _number(summary["codes_used"]), "1", f"min(c, N) = {most}"),
        ("cluster", "perplexity of the assignments", _number(summary["perplexity"]), "1",
         f"{most} ({classes} classes)"),
        ("dimensional", "effective rank of the embeddings (RankMe)", _number(summary["effective_rank"]), "1",
         f"{min(f, samples)}"),
        ("dimensional", "effective rank of the features", _number(summary["effective_rank_features"]), "1",
         f"{min(config.widths[2], samples)}"),
        ("intracluster", "share of the variance within classes", _number(summary["within_class_scatter"]), "0", "1"),
    ])


def _pictures(config: Config, data: Images, method: nn.Module, progress: Progress, test: Encoded) -> list[str]:
    note = ""
    if config.prior != "reverse_kl":
        note = f" The levels hold for the reverse_kl prior; this run has {config.prior}."
    labels = data.test_labels.cpu()
    # The run's random draws are over; this seed only keeps the sample the same from report to report.
    torch.manual_seed(config.seed)
    sample = data.train_images[:10]
    first, second = TwoViews(config)(sample)
    return [
        _picture(figures.loss_curve(progress.history, method.lines()),
                 "Loss: log c is an encoder that gives every image the same code, log(c / min(n, c)) one that gives each "
                 "of the n images of a batch its own." + note),
        _picture(figures.term_curves(progress.history),
                 "Terms of the loss: the prior is low when the codes are in even use, the invariance when two views of "
                 "an image get the same code with certainty."),
        _picture(figures.spectrum(test.embeddings),
                 "Singular values of the embeddings: a curve that falls steeply is dimensional collapse."),
        _picture(figures.code_usage(test.clusters, config.num_codes),
                 "Use of the codes: a few codes with most of the images are cluster collapse."),
        _picture(figures.feature_products(test.embeddings),
                 "(f/N) HᵀH: close to the identity when the coordinates are uncorrelated and of equal size."),
        _picture(figures.sample_products(test.embeddings, labels, data.classes),
                 "HHᵀ sorted by class: blocks on the diagonal are classes that the encoder found without labels; blocks "
                 "of solid red would be intracluster collapse."),
        _picture(figures.augmented_views(sample, first, second), "Training images and two random views of each.",
                 "wide"),
    ]


def _picture(figure: Figure, caption: str, css_class: str = "") -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (f'<figure class="{css_class}"><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table><tr>{top}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _number(value: float | int) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
