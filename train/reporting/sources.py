"""What a report is made from: a run folder, a checkpoint, or an array of embeddings, each read into a `Source`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from train.errors import InputError
from train.evaluation import arrays, verdicts
from train.evaluation.verdicts import Verdict
from train.files import read_json
from train.run_folder import CHECKPOINT_FILE, CONFIG_FILE, EMBEDDINGS_FILE, METRICS_FILE, SUMMARY_FILE

NO_EPOCH = "no epoch is finished"


@dataclass(frozen=True)
class Source:
    """One column of a report: the numbers of a run and what its pictures are drawn from, all on the CPU."""

    name: str
    """Short, and different from that of every other source of the report."""
    embeddings: Tensor
    """float32 `(N, f)`, of the test images."""
    summary: dict[str, Any]
    """The measures, by name; those that could not be taken are left out."""
    config: dict[str, Any] | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    """One row of metrics per epoch."""
    levels: dict[str, float] = field(default_factory=dict)
    """Constants that belong on a plot of the loss, by label."""
    features: Tensor | None = None
    """float32 `(N, width)`."""
    clusters: Tensor | None = None
    """int64 `(N,)`."""
    labels: Tensor | None = None
    """int64 `(N,)`, each below `len(classes)`."""
    classes: list[str] = field(default_factory=list)
    view_clusters: Tensor | None = None
    """int64 `(2, N)`, of two augmented views of each image."""
    absent: dict[str, str] = field(default_factory=dict)
    """Why a measure (by its name in `summary`) or a part (clusters, labels, history) is not there."""

    def verdicts(self) -> dict[str, Verdict]:
        """What is said of each collapse; always by today's thresholds, so that columns of a report can be compared."""
        return verdicts.judge(self.summary)

    def why_absent(self, name: str) -> str:
        """The reason, as a clause, why a measure or part is missing."""
        if name in self.absent:
            return self.absent[name]
        components, rows = name.rpartition("_")[2], self.summary.get("test_images", len(self.embeddings))
        if name.startswith("mixture_") and components.isdigit() and 5 * int(components) > rows:
            return f"a mixture of {components} takes at least {5 * int(components):,} rows, and there are {rows:,}"
        return "it was not measured"


def read(
    runs: Sequence[str | Path], labels: Path | None = None, data_dir: Path | None = None, device: str = "auto"
) -> list[Source]:
    """Read every RUN of a command line.

    Args:
        runs: folders of finished runs, checkpoint files, .npy files `(N, f)` or .npz files (see `arrays.load`).
        labels: .npy file of int `(N,)`, the classes of the rows of those arrays that hold no labels themselves.
        data_dir: folder of the data set, for checkpoints; None: where the checkpoint's configuration says.
        device: where a checkpoint is evaluated.

    Raises:
        InputError: something is missing, unfinished, damaged, of the wrong shape or type, or given twice.
    """
    paths = [Path(run) for run in runs]
    resolved = [path.resolve() for path in paths]
    for index, path in enumerate(paths):
        if not path.exists():
            raise InputError(
                f"RUN was {path}, which does not exist, expected the folder of a run, a checkpoint, or a "
                f".npy or .npz file."
            )
        if resolved[index] in resolved[:index]:
            raise InputError(f"RUN {path} was given twice, expected each once.")
    found, uses_labels = [], False
    for path, name in zip(paths, distinct_names(resolved)):
        if path.is_dir():
            found.append(from_folder(path, name))
        elif path.suffix in (".npy", ".npz"):
            content = arrays.load(path, labels)
            uses_labels |= content.labels_given
            found.append(from_array(content, name))
        else:
            found.append(from_checkpoint(path, name, data_dir, device))
    if labels is not None and not uses_labels:
        raise InputError(f"--labels was {labels}, expected a RUN that is an array without labels of its own.")
    return found


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path (two for a file called checkpoint.pt or embeddings.npz), more where those are alike.

    The paths are absolute and differ; ValueError if two are the same.
    """
    if len(set(paths)) < len(paths):
        raise ValueError(f"paths were {[str(path) for path in paths]}, expected no two the same")
    depth = [2 if path.name in (CHECKPOINT_FILE, EMBEDDINGS_FILE) else 1 for path in paths]
    while True:
        names = ["/".join(path.parts[-d:]) for path, d in zip(paths, depth)]
        alike = [names.count(name) > 1 for name in names]
        if not any(alike):
            return names
        depth = [d + same for d, same in zip(depth, alike)]


def from_folder(folder: Path, name: str) -> Source:
    """A finished run, from the files in its folder; InputError if one of them is missing or damaged."""
    if not (folder / SUMMARY_FILE).is_file():
        if (folder / CHECKPOINT_FILE).is_file():
            raise InputError(
                f"RUN {folder} holds a checkpoint but no {SUMMARY_FILE}, expected a finished run: go on with it by its "
                f"own command and --resume, or give {folder / CHECKPOINT_FILE} to have it judged as it stands."
            )
        raise InputError(
            f"RUN {folder} holds no {SUMMARY_FILE}, expected the output directory of a finished run of python -m train."
        )
    if not (folder / EMBEDDINGS_FILE).is_file():
        raise InputError(
            f"RUN {folder} holds no {EMBEDDINGS_FILE}, expected a run that kept its embeddings (for an "
            f"older run, give {folder / CHECKPOINT_FILE})."
        )
    summary, config = read_json(folder / SUMMARY_FILE), read_json(folder / CONFIG_FILE)
    parts, history = _parts(arrays.load(folder / EMBEDDINGS_FILE)), _rows(folder / METRICS_FILE)
    absent = {"history": NO_EPOCH} | dict.fromkeys(("clusters", "labels"), f"its {EMBEDDINGS_FILE} holds none")
    levels = summary.get("levels", {})
    return Source(name, summary=summary, config=config, history=history, levels=levels, absent=absent, **parts)


def from_checkpoint(path: Path, name: str, data_dir: Path | None, device: str) -> Source:
    """A checkpoint, finished or not: the data set is encoded and measured as at the end of a run."""
    # Imported here: the augmentations behind it take seconds to import, and the other sources need none of them.
    from train import evaluate

    config, data, method, history = evaluate.restore(path, data_dir, device)
    summary, test = evaluate.judge(config, data, method)
    parts = {**vars(test), "labels": data.test_labels.cpu(), "classes": list(data.classes)}
    run = {"config": config.to_dict(), "history": history, "levels": method.lines(), "absent": {"history": NO_EPOCH}}
    return Source(name, summary=summary, **parts, **run)


def from_array(content: arrays.Content, name: str) -> Source:
    """An array of embeddings: every measure that it allows, and the reasons for the others."""
    summary, absent = arrays.measure(content)
    return Source(name, summary=summary, absent=absent, **_parts(content))


def _parts(content: arrays.Content) -> dict[str, Any]:
    names = ("embeddings", "features", "clusters", "labels", "classes", "view_clusters")
    return {name: getattr(content, name) for name in names}


def _rows(path: Path) -> list[dict[str, float]]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if all({"epoch", "loss"} <= row.keys() for row in rows):
            return rows
        problem = "a line without epoch or loss"
    except (OSError, ValueError, AttributeError) as error:
        problem = type(error).__name__
    raise InputError(f"{path} could not be read ({problem}), expected one JSON object per epoch.")
