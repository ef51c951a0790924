"""`python -m train.report RUN [RUN ...]`: runs or embeddings side by side, in one HTML file and as PNG files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from train import threads
from train.errors import InputError, exit_status
from train.files import write_text
from train.reporting import figures, planar, sources, tables
from train.reporting.page import Picture, render
from train.reporting.sources import Source
from train.run_folder import REPORT_FILE

DESCRIPTION = """\
Put runs side by side: their numbers, whether each of four collapses happened and by which threshold, and pictures.

A RUN is one of
  the output directory of a finished `python -m train`;
  a checkpoint file, of a finished run or not: its test images are encoded and measured first (--data-dir for CIFAR-10);
  FILE.npy with embeddings, float (N, f), of any method (--labels for their classes);
  FILE.npz with "embeddings" and, where there are any, "features" float (N, width), "clusters" and "labels" int (N,),
    "view_clusters" int (2, N), "num_clusters" int, "classes" strings.
"""
EXAMPLES = """\
examples:
  python -m train.report runs/digits --png pictures
  python -m train.report runs/cplearn runs/swav --output both.html
  python -m train.report mine.npy runs/cplearn --labels labels.npy
"""


CAPTIONS = {
    "loss": "Loss, the mean over each epoch.",
    "terms": "Terms of the loss, the mean over each epoch. For cplearn, the prior is low when the codes are in even "
    "use, the invariance when two views of an image get the same code with certainty.",
    "singular_values": "Singular values of the unit-length embeddings: a curve that falls steeply is dimensional "
    "collapse.",
    "cluster_usage": "Use of the clusters: a few with most of the images are cluster collapse.",
    "mixture_scatter": "Share of the variance of the embeddings that lies within the components of a Gaussian mixture: "
    "near 0, the embeddings are points (intracluster collapse).",
    "hth": "(f/N) HᵀH: close to the identity when the coordinates are uncorrelated and of equal size.",
    "hht_sorted_by_class": f"HHᵀ of at most {figures.MOST_ROWS} test images, sorted by class: blocks on the diagonal "
    "are classes that the encoder found without labels; blocks of solid red would be intracluster collapse.",
    "map": planar.CAPTION,
    "augmented_views": "Training images and two random views of each.",
}


def write(folder: Path, augmented: tuple[Tensor, Tensor, Tensor] | None = None) -> None:
    """Write a finished run's report.html from the other files in its folder.

    Args:
        folder: holds config.json, summary.json, metrics.jsonl and embeddings.npz.
        augmented: training images uint8 `(n, 3, s, s)` and two views of each, float in [0, 1], to be shown.

    Raises:
        InputError: one of the files is missing or damaged.
    """
    found = sources.read([folder])
    title = f"{found[0].config.get('method')} on {found[0].config.get('dataset')}"
    text = document(title, found, pictures(found, augmented))
    write_text(folder / REPORT_FILE, text)


def document(title: str, found: list[Source], drawn: Iterable[Picture]) -> str:
    """The whole report as HTML that refers to no other file and to nothing on the network."""
    configuration = tables.configuration(found)
    return render(
        title=title,
        introductions=map(tables.introduction, found),
        verdicts=tables.verdicts(found),
        collapse=tables.collapse(found),
        quality=tables.quality(found),
        missing=tables.missing(found),
        pictures=drawn,
        time=tables.time(found),
        configuration=configuration,
        differing=tables.differing(configuration),
    )


def pictures(found: list[Source], augmented: tuple[Tensor, Tensor, Tensor] | None = None) -> list[Picture]:
    """Every picture, in the order of the page; the names are those of the PNG files and do not change."""
    thresholds = [source.verdicts()["intracluster"].threshold for source in found]
    threshold = next((value for value in thresholds if value is not None), None)
    drawn = {}
    if any(source.history for source in found):
        drawn |= {"loss": figures.losses(found), "terms": figures.terms(found)}
    drawn |= {
        "singular_values": figures.spectra(found),
        "cluster_usage": figures.code_usage(found),
        "mixture_scatter": figures.mixture_scatters(found, threshold),
        "hth": figures.feature_products(found),
        "hht_sorted_by_class": figures.sample_products(found),
        "map": planar.maps(found),
    }
    if augmented is not None:
        drawn["augmented_views"] = figures.augmented_views(*augmented)
    captions = CAPTIONS | {"loss": CAPTIONS["loss"] + _levels(found)}
    wide = ["augmented_views"] + (["loss", "terms", "hth", "hht_sorted_by_class", "map"] if len(found) > 1 else [])
    return [
        Picture(name, figure, captions[name], name in wide, name == "augmented_views") for name, figure in drawn.items()
    ]


def _levels(found: list[Source]) -> str:
    """What the lines of cplearn's loss mean, and where they do not hold."""
    configs = [
        source.config
        for source in found
        if source.levels and source.config and source.config.get("method") == "cplearn"
    ]
    if not configs:
        return ""
    priors = sorted({config["prior"] for config in configs if config.get("prior", "reverse_kl") != "reverse_kl"})
    return (
        " For cplearn, log c is an encoder that gives every image the same code, log(c / min(n, c)) one that gives "
        "each of the n images of a batch its own."
        + "".join(f" The levels hold for the reverse_kl prior, not for {prior}." for prior in priors)
    )


def save(drawn: Iterable[Picture], folder: Path) -> list[Path]:
    """Write each picture to `folder`/NAME.png, in an existing folder. Returns the files."""
    files = []
    for each in drawn:
        files.append(folder / f"{each.name}.png")
        files[-1].write_bytes(each.png)
    return files


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status: 0, or 2 after one sentence about bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m train.report",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run directory, checkpoint, .npy or .npz file")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.html",
        help=f"the report (default: {REPORT_FILE} in the current directory; none if only --png is given)",
    )
    parser.add_argument("--png", type=Path, metavar="DIR", help="also write each picture to DIR/NAME.png")
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE.npy",
        help="int (N,): classes of the rows of the arrays that hold no labels themselves",
    )
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="data set of the checkpoints (default: where their runs found it)"
    )
    parser.add_argument("--device", default="auto", help="where checkpoints are evaluated: cpu, cuda, auto (default)")
    parser.add_argument("--num-threads", type=int, metavar="N", help="CPU threads (default: what PyTorch takes)")
    options = parser.parse_args(arguments)
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    output = options.output or (None if options.png else Path(REPORT_FILE))
    if output is not None and output.suffix not in (".html", ".htm"):
        raise InputError(f"--output was {output}, expected a name that ends in .html.")
    # Found out now and not after minutes of work.
    if output is not None:
        _make(output.parent, "--output", output)
        if output.is_dir():
            raise InputError(f"--output was {output}, which is a folder, expected the name of a file.")
    if options.png is not None:
        _make(options.png, "--png", options.png)
    with threads.limited_to(options.num_threads):
        print("reading and measuring ...", flush=True)
        found = sources.read(options.runs, options.labels, options.data_dir, options.device)
        drawn = pictures(found)
        title = found[0].name if len(found) == 1 else "Comparison of " + ", ".join(source.name for source in found)
        try:
            files = [] if options.png is None else save(drawn, options.png)
            if output is not None:
                text = document(title, found, drawn)
                write_text(output, text)
                files.append(output)
        except OSError as error:
            raise InputError(
                f"{error.filename} could not be written ({error.strerror}), expected a place that can."
            ) from None
    for source in found:
        print(
            f"{source.name}: "
            + ", ".join(f"{kind} {tables.LOOKS[verdict.collapsed][1]}" for kind, verdict in source.verdicts().items())
        )
    print("\n".join(map(str, files)))


def _make(folder: Path, option: str, value: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{option} was {value}, expected a place that can be written ({error.strerror}).") from None


if __name__ == "__main__":
    sys.exit(main())
